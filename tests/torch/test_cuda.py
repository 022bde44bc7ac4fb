"""The front end on an NVIDIA GPU: whatever backend comes first, and dense attention."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, seed, settings

import vicinal.torch as na
from tests import budget
from tests.torch import problems
from tests.torch.test_merge_and_dense import dense
from vicinal.catalog import SMALL, named
from vicinal.torch.backends import BACKENDS

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]

HALF = ("float16", "bfloat16")


def on_gpu(problem, dtype):
    return replace(problem, dtype=dtype, device="cuda", gradients=True)


@pytest.mark.parametrize("dtype", ["float32", *HALF])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_catalog(backend, case, dtype):
    problem = on_gpu(case.problem, dtype)
    if backend.refusal(problem) is None:
        problems.check(problem, backend.name, rounded_weights=dtype in HALF, device="cuda")


@pytest.mark.parametrize("share", range(12))
def test_every_combination(share):
    """In shares for the processes of a test run, as every problem compiles its own kernels."""

    @seed(share)
    @settings(max_examples=5, deadline=None, database=None)
    @given(problem=problems.problems(dtypes=("float32", *HALF)))
    def check(problem):
        problems.check(problem, rounded_weights=problem.dtype in HALF, device="cuda")

    check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(65, 65), (33, 70), (70, 33)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim"), [(4, 2, 64, 64), (2, 2, 20, 44), (2, 1, 136, 8)]
)
def test_attention(dtype, is_causal, queries, keys, heads, kv_heads, dim, value_dim):
    torch.manual_seed(0)
    shapes = (2, queries, heads, dim), (2, keys, kv_heads, dim), (2, keys, kv_heads, value_dim)
    operands = [torch.randn(shape, dtype=dtype, device="cuda").requires_grad_() for shape in shapes]
    wide = [x.detach().cpu().double().requires_grad_() for x in operands]
    got = na.attention(*operands, is_causal, return_lse=True)
    want = dense(*wide, is_causal, dim**-0.5)
    cotangents = [torch.randn(x.shape, dtype=y.dtype) for x, y in zip(want, got, strict=True)]
    grads = torch.autograd.grad(got, operands, [x.cuda() for x in cotangents])
    again = torch.autograd.grad(
        na.attention(*operands, is_causal, return_lse=True), operands, [x.cuda() for x in cotangents]
    )
    exact = torch.autograd.grad(want, wide, [x.double() for x in cotangents])
    name = str(dtype).removeprefix("torch.")
    budget.check("out", problems.array(got[0]), problems.array(want[0]), name, rounded_weights=True)
    budget.check(
        "lse", problems.array(got[1]), problems.array(want[1]), "float64" if name == "float64" else "float32"
    )
    for label, grad, true in zip(("query", "key", "value"), grads, exact, strict=True):
        budget.check(label, problems.array(grad), problems.array(true), name, rounded_weights=True)
    assert problems.same(grads, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_gradients_are_bitwise_repeatable_at_size(dtype):
    torch.manual_seed(0)
    operands = [torch.randn(2, 4096, 8, 64, dtype=dtype, device="cuda").requires_grad_() for _ in range(3)]
    grad = torch.randn_like(operands[0])
    runs = [torch.autograd.grad(na.attention(*operands), operands, grad) for _ in range(4)]
    assert all(problems.same(runs[0], other) for other in runs[1:])
    assert not torch.are_deterministic_algorithms_enabled()


def test_autocast():
    layer = na.NeighborhoodAttention2D(64, 2, 3, rel_pos_bias=True).cuda()
    x = torch.randn(2, 9, 8, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


def test_compiled_training():
    torch._dynamo.reset()
    layer = na.NeighborhoodAttention2D(64, 2, 5, dilation=2).cuda()
    x = torch.randn(2, 20, 16, 64, device="cuda")
    expected = layer(x)
    want = torch.autograd.grad(expected.square().sum(), tuple(layer.parameters()))
    got = torch.compile(layer, fullgraph=True)(x)
    grads = torch.autograd.grad(got.square().sum(), tuple(layer.parameters()))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(grads, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["whole", "odd_2d", "everything"])
def test_cuda_graph(name):
    """Forward and backward are captured, and replay on new inputs."""
    problem = on_gpu(replace(named(name).problem, bias=False, extra=0), "bfloat16")
    tensors = {n: x.detach().cuda().requires_grad_() for n, x in problems.operands(problem).items()}

    def step():
        out = problems.call(problem, tensors)
        return (out, *torch.autograd.grad(out.square().sum(), tuple(tensors.values())))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for x in tensors.values():
            x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    assert problems.same(captured, step())


def test_settings_reach_the_backward_thread():
    """Autograd runs CUDA backward passes in a thread of its own, which has none of the caller's settings."""
    problem = on_gpu(named("odd_2d").problem, "float32")
    tensors = {n: x.detach().cuda().requires_grad_() for n, x in problems.operands(problem).items()}
    with na.using(backend="reference"):
        out = problems.call(problem, tensors)
    pinned = torch.autograd.grad(out.sum(), tuple(tensors.values()))
    plain = torch.autograd.grad(
        problems.call(problem, tensors, backend="reference").sum(), tuple(tensors.values())
    )
    assert problems.same(pinned, plain)
