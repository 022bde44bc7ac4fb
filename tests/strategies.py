"""Problems of every combination of options, small enough for the oracle."""

from hypothesis import strategies as st

from vicinal import Axis, Problem


def window(problem):
    """The window arguments of a public function."""
    fields = {"kernel_size": "size", "is_causal": "causal"}
    names = ("kernel_size", "stride", "dilation", "is_causal", "output_stride")
    return {n: tuple(getattr(axis, fields.get(n, n)) for axis in problem.axes) for n in names}


@st.composite
def axes(draw, longest):
    """One axis with every option."""
    length = draw(st.integers(1, longest))
    dilation = draw(st.integers(1, min(3, length)))
    size = draw(st.integers(1, length // dilation))
    stride = draw(st.integers(1, size))
    return Axis(length, size, stride, dilation, draw(st.booleans()), draw(st.integers(1, 3)))


@st.composite
def problems(draw, dtypes=("float64", "float32"), longest=(23, 9, 5)):
    """Problems in which every option meets every other."""
    rank = draw(st.integers(1, len(longest)))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    return Problem(
        tuple(draw(axes(longest[rank - 1])) for _ in range(rank)),
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        dim=draw(st.integers(1, 9)),
        value_dim=draw(st.integers(1, 9)),
        dtype=draw(st.sampled_from(dtypes)),
        bias=draw(st.booleans()),
        extra=draw(st.sampled_from((0, 0, 1, 3))),
        gradients=True,
    )
