"""Batches of documents with every option, for any framework."""

from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True)
class Case:
    """Documents, their window, and the sizes of the operands."""

    shapes: tuple
    kernel_size: tuple
    stride: tuple
    dilation: tuple
    is_causal: tuple
    output_stride: tuple
    fit: str = "error"
    heads: int = 2
    kv_heads: int = 1
    dim: int = 3
    value_dim: int = 2
    bias: bool = False
    extra: int = 0
    dtype: str = "float64"

    @property
    def rank(self):
        return len(self.kernel_size)

    @property
    def window(self):
        names = ("kernel_size", "stride", "dilation", "is_causal", "output_stride")
        return {name: getattr(self, name) for name in names}

    def outputs(self, shape):
        return tuple(-(-extent // step) for extent, step in zip(shape, self.output_stride, strict=True))


def case(shapes, kernel_size, stride=1, dilation=1, is_causal=False, output_stride=1, **rest):
    shapes = tuple(s if isinstance(s, tuple) else (s,) for s in shapes)
    every = lambda value: value if isinstance(value, tuple) else (value,) * len(shapes[0])  # noqa: E731
    return Case(shapes, *map(every, (kernel_size, stride, dilation, is_causal, output_stride)), **rest)


@st.composite
def cases(draw, dtypes=("float64", "float32"), longest=(19, 7, 4)):
    rank = draw(st.integers(1, 3))
    extents = st.one_of(st.integers(1, longest[rank - 1]), st.just(1), st.just(0))
    distinct = draw(st.lists(st.tuples(*[extents] * rank), min_size=1, max_size=3))
    shapes = tuple(draw(st.lists(st.sampled_from(distinct), min_size=1, max_size=5)))
    clip = draw(st.booleans())
    window = []
    for axis in range(rank):
        shortest = min((shape[axis] for shape in shapes if 0 not in shape), default=longest[rank - 1])
        dilation = draw(st.integers(1, min(3, shortest)))
        most = longest[rank - 1] + 2 if clip and dilation == 1 else shortest // dilation
        size = draw(st.integers(1, most))
        window.append(
            (size, draw(st.integers(1, size)), dilation, draw(st.booleans()), draw(st.integers(1, 3)))
        )
    kv_heads = draw(st.integers(1, 2))
    return Case(
        shapes,
        *zip(*window, strict=True),
        fit="clip" if clip else "error",
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=draw(st.integers(1, 5)),
        value_dim=draw(st.integers(1, 5)),
        bias=draw(st.booleans()),
        extra=draw(st.sampled_from((0, 0, 2))),
        dtype=draw(st.sampled_from(dtypes)),
    )


def clipped(case, shape, bias):
    """Kernel size of a document, and the part of a bias that it uses."""
    sizes = tuple(map(min, case.kernel_size, shape)) if case.fit == "clip" else case.kernel_size
    parts = [slice(k - size, k + size - 1) for k, size in zip(case.kernel_size, sizes, strict=True)]
    return sizes, (slice(None), *parts), None if bias is None else bias[(slice(None), *parts)]


CASES = {
    "line": case((7, 12, 7, 9), 5),
    "everything": case(
        ((5, 9), (0, 3), (6, 9), (5, 9), (6, 9)),
        (4, 3),
        (2, 1),
        (1, 3),
        (True, False),
        (1, 2),
        heads=4,
        kv_heads=2,
        bias=True,
        extra=3,
    ),
    "clipped": case(
        (1, 3, 0, 8, 3, 20), 9, 4, is_causal=True, output_stride=2, fit="clip", bias=True, extra=1
    ),
    "volume": case(((3, 4, 5), (2, 4, 5), (1, 1, 1)), 3, 2, fit="clip", bias=True),
    "single tokens": case((1, 1, 1), 1),
    "neighbors": case((6, 6, 6, 9, 9), 4, is_causal=True),
    "nothing": case((0, 0), 3, bias=True, extra=2),
    "covering": case(((3, 3), (4, 2), (3, 3)), 5, fit="clip", extra=1),
    "half": case((9, 14, 9), 5, bias=True, dtype="bfloat16", dim=8),
}

# For kernels with tiles: several tiles on an axis, dilation groups, head dims of no power of two.
EXTRA = {
    "planes": case(((9, 20), (17, 8), (30, 3)), (5, 3), dilation=(1, 1), heads=4, kv_heads=2, dim=20),
    "dilated": case(((14, 9), (15, 23), (31, 9)), (3, 2), (2, 1), (4, 3), (True, False), (2, 6), bias=True),
    "ragged": case((25, 40, 33), 3, dilation=8, output_stride=6, value_dim=5, extra=18),
    "long": case((100, 1, 333, 2), 31, fit="clip", heads=2, kv_heads=2, dim=16, value_dim=24),
    "uneven": case((70, 64, 129), 60, 7, is_causal=True, extra=3),
    "heads": case(((40, 33), (64, 17), (9, 70), (0, 9)), 7, heads=8, kv_heads=8, dim=64, value_dim=64),
}
