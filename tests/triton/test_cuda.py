"""The portable backend on a GPU, through the public functions and the backend protocol."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from tests.torch import problems as make
from vicinal import Axis, Problem
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.reference import REFERENCE
from vicinal.torch.backends.triton import TRITON

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
    pytest.mark.usefixtures("blank_is_nan"),
]

NEEDS = (True,) * 6


def on_gpu(problem, **changes):
    return replace(problem, device="cuda", gradients=True, **changes)


def tensors(problem, seed=0):
    """Operands as a backend gets them."""
    named = make.operands(problem, seed, gradients=False)
    steps = (slice(None), *(slice(None, None, axis.output_stride) for axis in problem.axes))
    named["query"] = named["query"][steps]
    return Operands(**{name: x.cuda() for name, x in named.items()})


def noise(shape, dtype=torch.float32, seed=7):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def run(problem, operands, scale=0.2, backend=TRITON):
    """Forward and every gradient."""
    out, lse = backend.attend(problem, operands, scale)
    dtype = operands.query.dtype
    grad_out, grad_lse = noise(out.shape).to(dtype), noise(lse.shape, seed=8)
    grads = backend.attend_back(problem, operands, out, lse, grad_out, grad_lse, scale, NEEDS)
    return {"out": out, "lse": lse, **{name: x for name, x in grads._asdict().items() if x is not None}}


def assert_near(found, exact, dtype):
    """Each result within a rounding or two of the float64 reference, as a share of its largest value."""
    rounding = {"float32": 2.0**-17, "float16": 2.0**-8, "bfloat16": 2.0**-5}[dtype]
    assert found.keys() == exact.keys()
    for name, x in found.items():
        error = (x.double() - exact[name].double()).abs().max()
        limit = rounding * exact[name].double().abs().max().clamp_min(2.0**-6)
        assert error <= limit, f"{name}: {error:.3g} over {limit:.3g}"


def check_by_reference(problem, seed=0):
    operands = tensors(problem, seed)
    assert TRITON.refusal(problem) is None
    wide = Operands(*(None if x is None else x.double() for x in operands))
    found = run(problem, operands)
    exact = run(replace(problem, dtype="float64"), wide, backend=REFERENCE)
    assert_near(found, exact, problem.dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("dim", [1, 12, 32, 48, 80, 96, 128, 192, 256])
def test_head_dims(dim, dtype):
    axes = (Axis(20, 7), Axis(37, 9, 2))
    check_by_reference(
        on_gpu(Problem(axes, heads=4, kv_heads=2, dim=dim, value_dim=max(1, dim // 2), dtype=dtype))
    )


WINDOWS = {
    "small": (Axis(56, 7), Axis(56, 7)),
    "cube": (Axis(9, 3), Axis(12, 3), Axis(10, 5)),
    "large": (Axis(40, 25), Axis(36, 20)),
    "large_stride": (Axis(48, 32, 16), Axis(40, 16, 8)),
    "dilated": (Axis(57, 7, 1, 8), Axis(50, 5, 2, 9)),
    "causal": (Axis(300, 130, 1, 1, True),),
    "causal_dilated": (Axis(41, 9, 3, 4, True), Axis(33, 16, 1, 2)),
    "sampled": (Axis(65, 9, 2, 1, False, 3), Axis(40, 11, 1, 2, True, 2)),
    "long": (Axis(1200, 201),),
}
# Loops over many boxes.
LARGE = (
    ((Axis(60, 25, 1, 1, True), Axis(36, 20, 4)), "float16"),
    ((Axis(61, 20, 1, 3), Axis(40, 17, 2, 2, True)), "bfloat16"),
    ((Axis(65, 31, 2, 1, False, 2), Axis(40, 21)), "bfloat16"),
    ((Axis(9, 7, 2), Axis(14, 6, 1, 2), Axis(11, 9, 1, 1, True)), "float16"),
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name, dtype):
    check_by_reference(on_gpu(Problem(WINDOWS[name], 1, 2, 1, 32, 32, dtype)))


# The reference gathers what every query sees.
@pytest.mark.xdist_group("large windows")
@pytest.mark.parametrize(("axes", "dtype"), LARGE)
@pytest.mark.parametrize(("dim", "value_dim"), [(32, 32), (48, 64)])
def test_large_windows(axes, dtype, dim, value_dim):
    check_by_reference(on_gpu(Problem(axes, 1, 4, 2, dim, value_dim, dtype)))


@pytest.mark.parametrize("name", WINDOWS)
def test_bias_and_additional_tokens(name):
    options = {"bias": len(WINDOWS[name]) > 1, "extra": 21}
    check_by_reference(on_gpu(Problem(WINDOWS[name], 1, 2, 1, 40, 24, "float16", **options)))


@st.composite
def any_problem(draw):
    axes = []
    for _ in range(draw(st.integers(1, 3))):
        length = draw(st.integers(1, 14))
        size = draw(st.integers(1, length))
        dilation = draw(st.integers(1, length // size))
        stride, sampling = draw(st.integers(1, size)), draw(st.integers(1, 3))
        axes.append(Axis(length, size, stride, dilation, draw(st.booleans()), sampling))
    kv_heads = draw(st.integers(1, 2))
    return Problem(
        tuple(axes),
        draw(st.integers(1, 3)),
        kv_heads * draw(st.integers(1, 2)),
        kv_heads,
        draw(st.integers(1, 40)),
        draw(st.integers(1, 40)),
        draw(st.sampled_from(["float32", "float16", "bfloat16"])),
        bias=draw(st.booleans()),
        extra=draw(st.sampled_from([0, 1, 70])),
    )


@pytest.mark.parametrize("shard", range(6))
def test_any_options(shard):
    # Shrinking would compile kernels for minutes; the error names the problem.
    @seed(shard)
    @settings(max_examples=2, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(any_problem())
    def check(problem):
        # Whatever the seed, the smallest problem comes first.
        assume(problem.pairs > 8)
        check_by_reference(on_gpu(problem), shard)

    check()


def test_gradients_are_bitwise_equal_every_time():
    axes = (Axis(40, 7, 2), Axis(40, 9, 1, 2))
    problem = on_gpu(Problem(axes, 2, 4, 2, 32, 32, "bfloat16", bias=True, extra=9))
    operands = tensors(problem)
    first = run(problem, operands)
    for _ in range(4):
        for name, x in run(problem, operands).items():
            assert torch.equal(x, first[name]), name


@pytest.mark.parametrize("dim", [32, 64, 128])
def test_many_tiles_are_bitwise_equal_every_time(dim):
    problem = on_gpu(Problem((Axis(512, 9), Axis(512, 9)), 1, 4, 4, dim, dim, "bfloat16"))
    operands = Operands(*(noise((1, 512, 512, 4, dim), torch.bfloat16, seed) for seed in range(3)))
    first = run(problem, operands)
    for _ in range(6):
        for name, x in run(problem, operands).items():
            assert torch.equal(x, first[name]), name


def test_strided_operands_need_no_copy():
    problem = on_gpu(Problem((Axis(20, 5), Axis(22, 7)), 2, 4, 4, 32, 32, "float16"))
    plain = tensors(problem)
    packed = torch.stack(plain[:3], -3).transpose(1, 2)
    query, key, value = (packed.transpose(1, 2)[..., part, :, :] for part in range(3))
    heads_first = key.movedim(-2, 1).contiguous().movedim(1, -2)
    exact = run(problem, plain)
    for name, x in run(problem, Operands(query, heads_first, value)).items():
        assert torch.equal(x, exact[name]), name


def test_expanded_output_gradient():
    problem = on_gpu(Problem((Axis(20, 5),), 2, 2, 2, 32, 32))
    operands = tensors(problem)
    out, lse = TRITON.attend(problem, operands, 0.2)
    ones = torch.ones((), device="cuda")
    found, exact = (
        TRITON.attend_back(problem, operands, out, lse, grad, None, 0.2, NEEDS)
        for grad in (ones.expand_as(out), torch.ones_like(out))
    )
    for name, x in found._asdict().items():
        assert (x is None and getattr(exact, name) is None) or torch.equal(x, getattr(exact, name)), name


def test_graph_capture():
    problem = on_gpu(Problem((Axis(32, 7), Axis(32, 7)), 2, 4, 2, 32, 32, "bfloat16", bias=True, extra=3))
    operands = tensors(problem)
    run(problem, operands)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    grad_out, grad_lse = noise((2, 32, 32, 4, 32), torch.bfloat16), noise((2, 32, 32, 4))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out, lse = TRITON.attend(problem, operands, 0.2)
        grads = TRITON.attend_back(problem, operands, out, lse, grad_out, grad_lse, 0.2, NEEDS)
    operands.query.copy_(noise(operands.query.shape, torch.bfloat16, seed=3))
    graph.replay()
    again_out, again_lse = TRITON.attend(problem, operands, 0.2)
    again = TRITON.attend_back(problem, operands, again_out, again_lse, grad_out, grad_lse, 0.2, NEEDS)
    for kept, new in zip((out, lse, *grads), (again_out, again_lse, *again), strict=True):
        assert torch.equal(kept, new)


def test_many_batches():
    problem = on_gpu(Problem((Axis(5, 3),), 70_001, 1, 1, 16, 16, "float16"))
    check_by_reference(problem)


@pytest.mark.xdist_group("large")
def test_more_than_two_to_the_31_elements():
    length, heads, dim, kept = 2**21 + 77, 4, 256, 400
    problem = on_gpu(Problem((Axis(length, 5),), 1, heads, heads, dim, dim, "float16"))
    query, key, value = (noise((1, length, heads, dim), torch.float16, seed=seed) for seed in range(3))
    found = run(problem, Operands(query, key, value))
    grad_out, grad_lse = noise(query.shape, torch.float16), noise(query.shape[:-1], seed=8)
    # The last tokens see nothing of the rest, so that they are a problem of their own.
    tail = replace(problem, axes=(Axis(kept, 5),))
    ends = Operands(*(x[:, -kept:].double() for x in (query, key, value)))
    out, lse = REFERENCE.attend(tail, ends, 0.2)
    grads = REFERENCE.attend_back(
        tail, ends, out, lse, grad_out[:, -kept:].double(), grad_lse[:, -kept:].double(), 0.2, NEEDS
    )
    exact = {"out": out, "lse": lse, "query": grads.query, "key": grads.key, "value": grads.value}
    inner = {name: x[:, -kept:][:, 20:] for name, x in found.items()}
    assert_near(inner, {name: x[:, 20:] for name, x in exact.items()}, "float16")


@pytest.mark.parametrize("name", WINDOWS)
def test_walks(name):
    problem = Problem(WINDOWS[name], 1, 2, 1, 48, 48, "float16", device="cuda")
    x, y, _ = tensors(problem)[:3]
    exact = replace(problem, dtype="float64")
    pairs = []
    for found, backend in ((problem, TRITON), (exact, REFERENCE)):
        dtype = getattr(torch, found.dtype)
        left, right = x.to(dtype), y.to(dtype)
        weights = backend.dot(replace(found, operation="dot"), left, right, None, 0.3, 0.5)
        mixed = backend.mix(replace(found, operation="mix"), weights, right)
        back = backend.mix_back(replace(found, operation="mix_back"), weights, left)
        pairs.append({"dot": weights, "mix": mixed, "mix_back": back})
    assert_near(*pairs, "float16")


@pytest.mark.xdist_group("large")
def test_walks_over_more_than_two_to_the_31_weights():
    size, kept = 65, 400
    problem = on_gpu(Problem((Axis(2**23 + 77, size),), 1, 4, 4, 16, 16, "float16"))
    x, y = (noise((1, *problem.lengths, 4, 16), torch.float16, seed) for seed in range(2))
    weights = TRITON.dot(replace(problem, operation="dot"), x, y, None, 0.3, 0.0)
    assert weights.numel() > 2**31
    mixed = TRITON.mix(replace(problem, operation="mix"), weights, y)
    back = TRITON.mix_back(replace(problem, operation="mix_back"), weights, x)
    # The windows of the last tokens are those of a problem of their own, but near its start.
    tail = replace(problem, axes=(Axis(kept, size),), dtype="float64")
    x, y, level = (tensor[:, -kept:].double() for tensor in (x, y, weights))
    exact = {
        "dot": REFERENCE.dot(replace(tail, operation="dot"), x, y, None, 0.3, 0.0),
        "mix": REFERENCE.mix(replace(tail, operation="mix"), level, y),
        "mix_back": REFERENCE.mix_back(replace(tail, operation="mix_back"), level, x),
    }
    found = {"dot": weights, "mix": mixed, "mix_back": back}
    inner = slice(2 * size - kept, None)
    assert_near(
        {name: tensor[:, inner] for name, tensor in found.items()},
        {name: tensor[:, inner] for name, tensor in exact.items()},
        "float16",
    )
