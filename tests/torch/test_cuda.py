"""The front end on an NVIDIA GPU: whatever backend comes first, and dense attention."""

from dataclasses import replace

import pytest
import torch
from functorch.compile import make_boxed_func
from hypothesis import Phase, assume, given, seed, settings
from torch._dynamo.backends.common import aot_autograd

import vicinal.torch as na
from tests import budget
from tests.torch import problems
from tests.torch.test_merge_and_dense import dense
from vicinal import Axis, Problem
from vicinal.catalog import SMALL, named
from vicinal.torch.backends import BACKENDS
from vicinal.triton import support

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]

HALF = ("float16", "bfloat16")


def on_gpu(problem, dtype):
    return replace(problem, dtype=dtype, device="cuda", gradients=True)


# Every problem compiles its own kernels, so that 16-bit dtypes take turns.
CATALOG = [(case, dtype) for place, case in enumerate(SMALL) for dtype in ("float32", HALF[place % 2])]


@pytest.mark.usefixtures("blank_is_nan")
@pytest.mark.parametrize(("case", "dtype"), CATALOG, ids=lambda x: getattr(x, "name", x))
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_catalog(backend, case, dtype):
    problem = on_gpu(case.problem, dtype)
    if backend.refusal(problem) is None:
        problems.check(problem, backend.name, rounded_weights=dtype in HALF, device="cuda")


@pytest.mark.usefixtures("blank_is_nan")
@pytest.mark.parametrize("share", range(20))
def test_every_combination(share):
    """In shares for the processes of a test run, as every problem compiles its own kernels."""

    @seed(share)
    @settings(max_examples=2, deadline=None, database=None, phases=[Phase.generate])
    @given(problem=problems.problems(dtypes=("float32", *HALF)))
    def check(problem):
        # Whatever the seed, the smallest problem comes first.
        assume(problem.pairs > 8)
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


def attention_of(problem):
    return lambda **tensors: problems.call(problem, tensors, return_lse=True)


def split_of(problem):
    """Scores and their mixture, as programs written for older packages call them."""

    def attend(query, key, value, bias):
        scores = na.qk(query, key, **problems.window(problem), bias=bias)
        return (na.av(scores.softmax(-1), value, **problems.window(problem)),)

    return attend


SHAPES = na.VarlenLayout([(14, 9), (5, 8), (14, 9), (20, 13)])


def packed_of(_):
    """Documents of different shapes, one after another on the only axis of the problem."""

    def attend(query, key, value):
        rows = (x.squeeze(0) for x in (query, key, value))
        return na.neighborhood_attention_packed(*rows, SHAPES, (5, 3), return_lse=True)

    return attend


def padded_of(_):
    """The same documents, in the corners of the entries of a batch."""

    def attend(query, key, value):
        return (na.neighborhood_attention_varlen(query, key, value, SHAPES.shapes, (5, 3)),)

    return attend


LARGE = Problem((Axis(40, 20), Axis(36, 18, 2)), heads=4, kv_heads=2, dim=128, value_dim=128)
SMALL_WINDOW = Problem((Axis(20, 7), Axis(17, 5, 1, 2)), batch=2, heads=4, kv_heads=4)
PATHS = {
    "full": (attention_of, named("whole").problem),
    "hopper": (attention_of, LARGE),
    "hopper, dilation": (attention_of, replace(LARGE, axes=(Axis(80, 20, 1, 2), Axis(36, 18)))),
    "triton, a small window": (attention_of, named("odd_2d").problem),
    "triton, a small window, rings": (attention_of, SMALL_WINDOW),
    "triton, every option": (attention_of, named("everything").problem),
    "triton, float32": (attention_of, replace(LARGE, dtype="float32")),
    "documents": (packed_of, Problem((Axis(SHAPES.total_tokens, 1),), heads=4, kv_heads=2)),
    "documents, padded": (padded_of, Problem((Axis(20, 1), Axis(13, 1)), len(SHAPES), 4, 2)),
    "split": (split_of, replace(LARGE, bias=True)),
    "split, rings": (split_of, replace(SMALL_WINDOW, bias=True)),
}


def of_path(path):
    """A function, and a problem that the backend with the path's name is the first to take."""
    make, problem = PATHS[path]
    problem = on_gpu(problem, "float32" if "float32" in path else "bfloat16")
    name = path.partition(",")[0]
    if make is attention_of:
        first = next(backend.name for backend in BACKENDS if backend.refusal(problem) is None)
        if name == "hopper" and torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("no Hopper GPU")
        assert first == name
    if "rings" in path and support.installed() == support.GLUON:
        from vicinal.triton import ring_plan

        plans = ring_plan.forward, ring_plan.query_gradient, ring_plan.key_gradient
        if make is attention_of:
            assert all(plan(problem) is not None for plan in plans)
        else:
            walks = (
                replace(problem, operation=kind, bias=kind == "dot") for kind in ("dot", "mix", "mix_back")
            )
            assert all(map(ring_plan.walk, walks))
    return make, problem


@pytest.mark.parametrize("path", PATHS)
def test_cuda_graph(path):
    """Forward and backward are captured, and replay on new inputs."""
    make, problem = of_path(path)
    tensors = {n: x.detach().cuda().requires_grad_() for n, x in problems.operands(problem).items()}
    attend = make(problem)

    def step():
        results = attend(**tensors)
        loss = sum(x.float().square().sum() for x in results)
        return (*results, *torch.autograd.grad(loss, tuple(tensors.values())))

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


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
@pytest.mark.parametrize("path", PATHS)
def test_tensors_of_another_device_than_the_current(path):
    make, problem = of_path(path)
    attend, found = make(problem), []
    for device in ("cuda:1", "cuda:0"):
        tensors = {n: x.detach().to(device).requires_grad_() for n, x in problems.operands(problem).items()}
        # The second time on a geometry seen before.
        for _ in range(2):
            results = attend(**tensors)
            loss = sum(x.float().square().sum() for x in results)
            found.append([x.cpu() for x in (*results, *torch.autograd.grad(loss, tuple(tensors.values())))])
    assert torch.cuda.current_device() == 0
    assert all(problems.same(one, found[0]) for one in found[1:])


OPERATORS = {
    "documents": (["attend_varlen"], ["attend_varlen_back"]),
    # Scores and values, each with two gradients, and that of the bias.
    "split": (["dot", "mix"], ["dot", "mix", "mix_back", "mix_back", "tally"]),
}


@pytest.mark.parametrize("path", PATHS)
def test_a_compiled_graph_holds_one_operator_each_way(path):
    torch._dynamo.reset()
    make, problem = of_path(path)
    tensors = {n: x.detach().cuda().requires_grad_() for n, x in problems.operands(problem).items()}
    attend, graphs = make(problem), []

    def keep(graph, _):
        graphs.append([n.target for n in graph.graph.nodes if n.op == "call_function"])
        return make_boxed_func(graph.forward)

    compiled = torch.compile(attend, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    results, expected = compiled(**tensors), attend(**tensors)
    cotangents = [torch.randn_like(x) for x in results]
    grads, wanted = (
        torch.autograd.grad(found, tuple(tensors.values()), cotangents) for found in (results, expected)
    )
    assert problems.same((*results, *grads), (*expected, *wanted))
    ours = [[str(x).split(".")[1] for x in graph if "vicinal" in str(x)] for graph in graphs]
    assert tuple(map(sorted, ours)) == OPERATORS.get(path.partition(",")[0], (["attend"], ["attend_back"]))


@pytest.fixture
def tf32_matrices():
    """PyTorch's own switch, which is about its matrix products alone."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("tf32_matrices")
@pytest.mark.parametrize("size", [7, 30])
def test_float32_products_are_exact_unless_tf32_is_asked_for(size):
    torch.manual_seed(0)
    operands = [torch.randn(1, 48, 40, 2, 64, device="cuda", requires_grad=True) for _ in range(3)]
    wide = [x.detach().cpu().double().requires_grad_() for x in operands]

    def step(operands, **options):
        out = na.na2d(*operands, size, **options)
        return (out, *torch.autograd.grad(out.square().sum(), operands))

    exact = [x.cuda() for x in step(wide)]

    def error(found):
        return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, exact, strict=True))

    plain = error(step(operands))
    with na.using(tf32=True):
        rounded = error(step(operands))
    assert plain < 1e-5
    assert 3e-5 < rounded < 1e-2


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
