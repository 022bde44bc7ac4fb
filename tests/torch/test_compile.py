"""The operators under torch.compile, export, opcheck, fake tensors, autocast and the FLOP counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vicinal.torch as na
from tests.torch import problems
from tests.torch.test_autograd import FUSED, fused, fused_problem
from vicinal.catalog import named

ops = torch.ops.vicinal


@fused_problem
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_trains_as_eager_does(problem, dynamic):
    torch._dynamo.reset()
    function, args = fused(problem)
    loss = lambda *args: sum(x.square().sum() for x in function(*args))  # noqa: E731
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), loss(*args))
    for got, want in zip(
        torch.autograd.grad(compiled(*args), args), torch.autograd.grad(loss(*args), args), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.slow
def test_inductor():
    torch._dynamo.reset()
    layer = na.NeighborhoodAttention2D(16, 2, 3, rel_pos_bias=True)
    x = torch.randn(2, 7, 6, 16)
    expected = layer(x)
    expected.sum().backward()
    want = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    got = torch.compile(layer, fullgraph=True)(x)
    got.sum().backward()
    torch.testing.assert_close(got, expected)
    for parameter, grad in zip(layer.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_one_graph_serves_other_sizes():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda q: na.na1d(q, q, q, 3), fullgraph=True, dynamic=True, backend=backend)
    for length in (5, 9, 17):
        q = torch.randn(2, length, 2, 4)
        torch.testing.assert_close(compiled(q), na.na1d(q, q, q, 3))
    assert len(graphs) == 1
    assert [n.target for n in graphs[0].graph.nodes if "vicinal" in str(n.target)] == [ops.attend]


def test_export():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = na.NeighborhoodAttention2D(8, 2, 3, dilation=(1, 2), is_causal=(True, False))

        def forward(self, x):
            return self.attention(x)

    x = torch.randn(1, 5, 7, 8)
    model = Model()
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))
    sizes = {1: torch.export.Dim("height", min=3, max=64)}
    exported = torch.export.export(model, (x,), dynamic_shapes=(sizes,))
    taller = torch.randn(1, 9, 7, 8)
    torch.testing.assert_close(exported.module()(taller), model(taller))


def test_opcheck():
    problem = FUSED["everything"]
    x = problems.operands(problem)
    window = [list(entry) for entry in problems.window(problem).values()]
    query = x["query"].detach()[:, :, ::2].clone().requires_grad_()
    operands = (query, x["key"], x["value"], x["bias"], x["extra_key"], x["extra_value"])
    run = (None, None)
    lengths = list(problem.lengths)
    out, lse = (y.detach() for y in ops.attend(*operands, *window, 0.3, True, *run))
    detached = tuple(y.detach() for y in operands)
    weights = ops.dot(query, x["key"], None, *window, 1.0, 0.0, *run).detach().requires_grad_()
    needs = [True, True, False, True, True, True]
    rows = tuple(y.detach().flatten(1, 2).requires_grad_() for y in (x["key"], x["key"], x["value"]))
    dense = tuple(y.detach() for y in ops.dense(*rows, False, 0.3))
    samples = {
        "attend": (*operands, *window, 0.3, True, *run),
        "attend_back": (*detached, out, lse, out, None, *window, 0.3, needs, *run),
        "dot": (query, x["key"], x["bias"], *window, 0.3, 0.0, *run),
        "mix": (weights, x["value"], *window, *run),
        "mix_back": (weights, query, lengths, 1, *window, *run),
        "spread": (x["bias"], lengths, *window),
        "tally": (weights, lengths, *window),
        "dense": (*rows, False, 0.3),
        "dense_back": (*(y.detach() for y in rows), *dense, *dense, False, 0.3),
    }
    from vicinal.torch.ops import SCHEMAS

    assert samples.keys() == SCHEMAS.keys()
    for name, sample in samples.items():
        report = torch.library.opcheck(getattr(ops, name).default, sample)
        assert set(report.values()) == {"SUCCESS"}, name


def test_meta_tensors_have_the_shapes_of_results():
    problem = named("everything").problem
    real = problems.operands(problem)
    fake = {name: x.detach().to("meta").requires_grad_() for name, x in real.items()}
    wanted = problems.call(problem, real, return_lse=True)
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            results = problems.call(problem, fake, return_lse=True)
        for got, want in zip(results, wanted, strict=True):
            assert (got.shape, got.dtype, got.device.type) == (want.shape, want.dtype, "meta")
    grads = torch.autograd.grad(problems.call(problem, fake).sum(), tuple(fake.values()))
    assert [g.shape for g in grads] == [x.shape for x in real.values()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer = na.NeighborhoodAttention2D(16, 2, 3, rel_pos_bias=True)
    x = torch.randn(1, 6, 7, 16)
    q = torch.randn(1, 6, 7, 2, 8, requires_grad=True)
    with torch.autocast("cpu", dtype):
        assert layer(x).dtype == dtype
        out = na.na2d(q, q.to(dtype), q, 3)
        scores = na.na2d_qk(q, q, 3)
        mixed = na.na2d_av(scores.softmax(-1), q, 3)
    assert {out.dtype, scores.dtype, mixed.dtype} == {dtype}
    out.sum().backward()
    assert q.grad.dtype == torch.float32
    double = q.detach().double()
    with torch.autocast("cpu", dtype):
        assert na.na2d(double, double, double, 3).dtype == torch.float64


def test_flops_are_the_useful_ones():
    problem = named("everything").problem
    tensors = problems.operands(problem)
    with FlopCounterMode(display=False) as forward:
        out = problems.call(problem, tensors)
    assert forward.get_total_flops() == problem.flops
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    pairs = 2 * problem.batch * problem.heads * problem.pairs
    assert backward.get_total_flops() == pairs * (3 * problem.dim + 2 * problem.value_dim)
    window = problems.window(named("grouped").problem)
    small = problems.operands(named("grouped").problem, gradients=False)
    with FlopCounterMode(display=False) as walks:
        scores = na.qk(small["query"], small["key"], **window)
        na.av(scores, small["value"], **window)
    assert walks.get_total_flops() == named("grouped").problem.flops


def test_dense_flops():
    x = torch.randn(2, 5, 3, 4)
    with FlopCounterMode(display=False) as counter:
        na.attention(x, x, x)
    assert counter.get_total_flops() == 2 * 2 * 3 * 25 * 8
    with FlopCounterMode(display=False) as counter:
        na.attention(x, x, x, True)
    assert counter.get_total_flops() == 2 * 2 * 3 * 15 * 8
