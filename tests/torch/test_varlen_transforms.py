"""Documents of different shapes under derivatives of every order, torch.func, compilation, and in layers."""

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import gradcheck, gradgradcheck

import vicinal.torch as na
from tests.documents import case
from tests.torch.documents import Drawn, Packed, Padded, call, operands
from vicinal.torch.compat import natten_mps

ops = torch.ops.vicinal
FORMS = {"packed": Packed, "padded": Padded}
form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
CASES = {
    "everything": case(
        (3, 0, 2, 3), 3, 2, is_causal=True, output_stride=2, fit="clip", bias=True, extra=1, dim=2
    ),
    "plane": case(
        ((2, 4), (3, 2), (2, 4)), (2, 1), 1, (1, 2), (False, True), (1, 2), heads=1, dim=2, value_dim=1
    ),
    "empty": case((0, 0), 2, heads=1, dim=1, value_dim=1, bias=True, extra=1),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def of_tensors(form, case):
    """Outputs and the log-sum-exps of documents, as a function of the tensors, and the tensors.

    Padding is finite here: differences of infinities are no numbers, and neither are steps from NaN.
    """
    tokens, rest = operands(form, Drawn(case))
    tokens = {name: x.detach().nan_to_num(1.0).requires_grad_() for name, x in tokens.items()}

    def function(*args):
        given = dict(zip((*tokens, *rest), args, strict=True))
        mine = {name: given.pop(name) for name in tokens}
        out, lse = call(form, case, mine, given)
        return out, torch.cat([x.flatten() for x in form.results(lse, -torch.inf)])

    return function, (*tokens.values(), *rest.values())


class Corners(Padded):
    """Padded documents, whose padding is not looked at."""

    def results(self, x, blank=0.0):
        return [entry[tuple(map(slice, shape))] for entry, shape in zip(x, self.outputs, strict=True)]


either = pytest.mark.parametrize("form", [Packed, Corners], ids=FORMS)


@either
@each_case
def test_gradcheck(form, case):
    function, args = of_tensors(form(case), case)
    assert gradcheck(function, args, check_forward_ad=True, check_batched_grad=True)


@either
@each_case
def test_gradgradcheck(form, case):
    function, args = of_tensors(form(case), case)
    assert gradgradcheck(function, args, check_fwd_over_rev=True, fast_mode=True)
    for place in range(2):
        one = lambda *args, place=place: function(*args)[place]  # noqa: E731
        assert gradgradcheck(one, args, check_fwd_over_rev=True, fast_mode=True)


@either
@each_case
def test_functional_transforms(form, case):
    """`torch.func` agrees with autograd: grad, jvp, vmap, and what is made of them."""
    function, args = of_tensors(form(case), case)
    detached, every = tuple(x.detach() for x in args), tuple(range(len(args)))
    loss = lambda *args: sum(x.square().sum() for x in function(*args))  # noqa: E731
    expected = torch.autograd.grad(loss(*args), args)
    for got, want in zip(torch.func.grad(loss, every)(*detached), expected, strict=True):
        torch.testing.assert_close(got, want)
    tangents = tuple(torch.randn_like(x) for x in args)
    _, moved = torch.func.jvp(loss, detached, tangents)
    torch.testing.assert_close(moved, sum((g * t).sum() for g, t in zip(expected, tangents, strict=True)))
    stacked = tuple(torch.stack([x, 2 * x, -x]) for x in detached)
    for got, place in zip(torch.func.vmap(loss)(*stacked), range(3), strict=True):
        torch.testing.assert_close(got, loss(*(x[place] for x in stacked)))
    per_sample = torch.func.vmap(torch.func.grad(loss, every))(*stacked)
    for place in range(3):
        single = torch.func.grad(loss, every)(*(x[place] for x in stacked))
        for got, want in zip(per_sample, single, strict=True):
            torch.testing.assert_close(got[place], want)
    hessian = torch.func.hessian(lambda q: loss(q, *detached[1:]))(detached[0])
    flat = hessian.reshape((detached[0].numel(),) * 2)
    torch.testing.assert_close(flat, flat.T)


def test_sizes_are_not_mapped_over():
    x, sizes = torch.randn(3, 2, 6, 1, 4), torch.tensor([[6, 5], [3, 4], [5, 5]])
    attend = torch.func.vmap(lambda x, sizes: na.na1d_varlen(x, x, x, sizes, 3))
    with pytest.raises(ValueError, match="sizes are mapped over by vmap; map over operands alone"):
        attend(x, sizes)


def test_half_precision_second_derivatives():
    query = torch.randn(9, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    out = na.neighborhood_attention_packed(query, query, query, na.VarlenLayout([4, 5]), 3)
    (grad,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    grad.square().sum().backward()
    assert query.grad.dtype == torch.bfloat16
    assert query.grad.isfinite().all()


def counting():
    """A compiler that runs graphs as they are, and the graphs it has been given."""
    graphs = []

    def compiler(graph, _):
        graphs.append(graph)
        return graph

    return aot_autograd(fw_compiler=_boxed(compiler), bw_compiler=_boxed(compiler)), graphs


def _boxed(compiler):
    def boxed(graph, inputs):
        run = compiler(graph, inputs)
        call = lambda args: run(*args)  # noqa: E731
        call._boxed_call = True
        return call

    return boxed


BATCHES = ([(3, 5), (4, 4), (2, 1)], [(7, 3), (2, 2), (9, 1), (0, 3)], [(5, 5)] * 5, [(8, 8), (3, 3)])


def trained(function, *args):
    """Results and the gradient of the first argument, a new leaf."""
    query = args[0].detach().requires_grad_()
    out, lse = function(query, *args[1:])
    return out, lse, *torch.autograd.grad(out.square().sum(), query)


@pytest.mark.parametrize("dynamic", [True, None])
def test_one_graph_serves_every_layout(dynamic):
    torch._dynamo.reset()
    backend, graphs = counting()

    def function(query, layout):
        return na.neighborhood_attention_packed(query, query, query, layout, 3, fit="clip", return_lse=True)

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)
    for place, shapes in enumerate((*BATCHES, *BATCHES[::-1])):
        layout = na.VarlenLayout(shapes)
        query = torch.randn(layout.total_tokens, 7, 4, dtype=torch.float64)
        for got, want in zip(trained(compiled, query, layout), trained(function, query, layout), strict=True):
            torch.testing.assert_close(got, want)
        if place == 1:
            # Where not told before, an extent is found to change once.
            settled = len(graphs)
    assert len(graphs) == settled
    assert dynamic is None or settled == 2


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_one_graph_serves_all_sizes(dtype):
    torch._dynamo.reset()
    backend, graphs = counting()

    def function(query, sizes):
        return na.na2d_varlen(query, query, query, sizes, 3, fit="clip", output_stride=2, return_lse=True)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for shapes in BATCHES:
        sizes = torch.tensor(shapes, dtype=dtype)
        query = torch.randn(len(shapes), *(sizes.amax(0) + 1).tolist(), 7, 4, dtype=torch.float64)
        for got, want in zip(trained(compiled, query, sizes), trained(function, query, sizes), strict=True):
            torch.testing.assert_close(got, want)
    assert len(graphs) == 2
    assert (
        sum(
            n.target in (ops.attend_varlen.default, ops.attend_varlen_back.default)
            for g in graphs
            for n in g.graph.nodes
        )
        == 2
    )


def layer(**options):
    return na.NeighborhoodAttention2D(14, 7, 3, rel_pos_bias=True, **options).double()


PADDED = {
    "layer": (lambda: layer(output_stride=2), (14,), True),
    # Weights that are dropped are computed beside the graphs.
    "layer that drops weights": (lambda: layer(attn_drop=1e-12), (14,), False),
    "natten-mps": (lambda: lambda x, sizes: natten_mps.na2d_varlen(x, x, x, sizes, 3), (7, 4), True),
    "layer of natten-mps": (lambda: natten_mps.NeighborhoodAttention2D(14, 7, 3).double(), (14,), True),
}


@pytest.mark.parametrize(("make", "width", "whole"), PADDED.values(), ids=PADDED)
def test_graphs_of_layers_and_older_names_serve_all_sizes(make, width, whole):
    torch._dynamo.reset()
    backend, graphs = counting()
    function, settled = make(), 0
    compiled = torch.compile(function, fullgraph=whole, dynamic=True, backend=backend)
    for place, shapes in enumerate(BATCHES):
        sizes = torch.tensor(shapes).clamp(min=3)
        x = torch.randn(len(shapes), *(sizes.amax(0) + 1).tolist(), *width, dtype=torch.float64)
        results = []
        for run in (compiled, function):
            leaf = x.clone().requires_grad_()
            out = run(leaf, sizes)
            results.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)
        if place == 1:
            # What comes back from beside a graph is found to change once.
            settled = len(graphs)
    assert len(graphs) == settled
    assert settled == 2 or not whole


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_packed_outputs_of_a_size_that_tensors_tell():
    """With an output stride the number of outputs follows from the numbers in a layout."""
    torch._dynamo.reset()
    backend, graphs = counting()

    def function(query, layout):
        return na.neighborhood_attention_packed(
            query, query, query, layout, 3, fit="clip", output_stride=2, return_lse=True
        )

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for shapes in BATCHES:
        layout = na.VarlenLayout(shapes)
        query = torch.randn(layout.total_tokens, 7, 4, dtype=torch.float64)
        for got, want in zip(trained(compiled, query, layout), trained(function, query, layout), strict=True):
            torch.testing.assert_close(got, want)
    assert len(graphs) == 2


@pytest.mark.parametrize("is_padded", [False, True])
def test_opcheck(is_padded):
    draw = lambda *shape: torch.randn(shape, requires_grad=True)  # noqa: E731
    lead = (3, 6) if is_padded else (13,)
    operands = (
        draw(*lead, 2, 4),
        draw(*lead, 1, 4),
        draw(*lead, 1, 3),
        draw(2, 5),
        draw(3, 2, 1, 4),
        draw(3, 2, 1, 3),
    )
    window = ([3], [2], [1], [True], [2 if is_padded else 1])
    rest = (torch.tensor([[6], [2], [5]]), *window, True, 0.3)
    results = [x.detach() for x in ops.attend_varlen(*operands, *rest, True, None, None)]
    needs = (True,) * 6
    samples = {
        "attend_varlen": (*operands, *rest, True, None, None),
        "attend_varlen_back": (*(x.detach() for x in operands), *results, *results, *rest, needs, None, None),
    }
    from vicinal.torch.packed import SCHEMAS

    assert samples.keys() == SCHEMAS.keys()
    for name, sample in samples.items():
        report = torch.library.opcheck(getattr(ops, name).default, sample)
        assert set(report.values()) == {"SUCCESS"}, name


LAYERS = {1: na.NeighborhoodAttention1D, 2: na.NeighborhoodAttention2D, 3: na.NeighborhoodAttention3D}
EXTENTS = {1: ((9,), (4,), (9,)), 2: ((5, 4), (3, 6), (5, 4)), 3: ((3, 4, 3), (4, 3, 3), (3, 3, 3))}


@pytest.mark.parametrize("rank", LAYERS)
@pytest.mark.parametrize(
    "options",
    [
        {"rel_pos_bias": True, "attn_drop": 1e-12},
        {"num_kv_heads": 2, "output_stride": 2, "is_causal": True, "stride": 2},
        {"attn_drop": 1e-12, "output_stride": 2},
    ],
)
def test_layers_see_documents_alone(rank, options):
    """Also in training, with a dropout that drops nothing, and with NaN in the padding."""
    torch.manual_seed(0)
    layer = LAYERS[rank](24, 4, 3, **options).double()
    shapes = EXTENTS[rank]
    x = torch.full((3, *(max(extents) + 1 for extents in zip(*shapes, strict=True)), 24), torch.nan).double()
    for entry, shape in zip(x, shapes, strict=True):
        entry[tuple(map(slice, shape))] = torch.randn(*shape, 24)
    out = layer(x, sizes=shapes)
    rest = out.detach().clone()
    total = 0.0
    for place, shape in enumerate(shapes):
        alone = layer(x[place : place + 1][(slice(None), *map(slice, shape))])
        part = (place, *map(slice, alone.shape[1:-1]))
        torch.testing.assert_close(out[part], alone[0])
        rest[part] = 0
        total = total + alone.square().sum()
    assert not rest.any()
    parameters = tuple(layer.parameters())
    want = torch.autograd.grad(total, parameters)
    for got, expected in zip(torch.autograd.grad(out.square().sum(), parameters), want, strict=True):
        torch.testing.assert_close(got, expected)


def test_layers_clip_windows_and_drop_weights():
    layer = na.NeighborhoodAttention1D(8, 2, 5, attn_drop=0.5)
    x = torch.randn(2, 6, 8)
    with pytest.raises(
        ValueError, match=r"kernel_size 5 is over the extent on axis 0 of documents 1 \(2 tokens\)"
    ):
        layer(x, [6, 2])
    first, second = (layer(x, [6, 2], fit="clip") for _ in range(2))
    assert not torch.equal(first[1, :2], second[1, :2])
    layer.eval()
    want = na.NeighborhoodAttention1D(8, 2, 2)
    want.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x, [6, 2], fit="clip")[1:, :2], want(x[1:, :2]))
