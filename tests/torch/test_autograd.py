"""Derivatives of every order and mode, on small float64 problems with every option."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import vicinal.torch as na
from tests.torch import problems
from vicinal import Axis, Problem, using
from vicinal.catalog import named
from vicinal.torch import sections

FUSED = {
    "everything": Problem(
        (Axis(3, 2, 2, 1, True), Axis(4, 2, 1, 2, False, 2)),
        heads=2,
        dim=2,
        value_dim=1,
        bias=True,
        extra=1,
        dtype="float64",
    ),
    "full": Problem((Axis(2, 2), Axis(2, 2)), heads=2, dim=2, value_dim=3, extra=1, dtype="float64"),
    "line": Problem((Axis(5, 3),), heads=1, dim=2, value_dim=2, dtype="float64"),
}


@pytest.fixture(autouse=True)
def single_heads(monkeypatch):
    """Weights of one head at a time: problems this small would be one section."""
    monkeypatch.setattr(sections, "WEIGHTS", {"cuda": 1})


fused_problem = pytest.mark.parametrize("problem", FUSED.values(), ids=FUSED)


def fused(problem, **options):
    """The function of positional tensors, and its arguments."""
    tensors = problems.operands(problem)
    names = tuple(tensors)

    def function(*args):
        return problems.call(problem, dict(zip(names, args, strict=True)), return_lse=True, **options)

    return function, tuple(tensors.values())


def split(problem):
    tensors = problems.operands(problem)
    names = tuple(tensors)
    options = problems.window(problem)

    def function(*args):
        given = dict(zip(names, args, strict=True))
        scores = na.qk(
            given["query"],
            given["key"],
            bias=given.get("bias"),
            additional_keys=given.get("extra_key"),
            **options,
        )
        return na.av(
            scores.softmax(-1), given["value"], additional_values=given.get("extra_value"), **options
        )

    return function, tuple(tensors.values())


@fused_problem
@pytest.mark.parametrize("backend", [None, "reference"])
def test_gradcheck(problem, backend):
    function, args = fused(problem, backend=backend)
    assert gradcheck(function, args, check_forward_ad=True, check_batched_grad=True)


@fused_problem
def test_gradgradcheck(problem):
    function, args = fused(problem)
    assert gradgradcheck(function, args, check_fwd_over_rev=True)
    assert gradgradcheck(lambda *args: function(*args)[0], args, check_fwd_over_rev=True)
    assert gradgradcheck(lambda *args: function(*args)[1], args, check_fwd_over_rev=True)


@fused_problem
def test_split_gradcheck(problem):
    function, args = split(problem)
    assert gradcheck(function, args, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, args, check_fwd_over_rev=True)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(3, 3), (2, 4), (4, 2)])
def test_dense_gradcheck(queries, keys, is_causal):
    make = lambda *shape: torch.randn(shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    args = make(1, queries, 2, 3), make(1, keys, 1, 3), make(1, keys, 1, 2)
    function = lambda *args: na.attention(*args, is_causal, return_lse=True)  # noqa: E731
    assert gradcheck(function, args, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, args, check_fwd_over_rev=True)


def test_third_derivative():
    """The derivative of a second derivative along a direction, against a central difference."""
    function, (start, *others) = fused(FUSED["line"])
    direction = torch.ones_like(start)

    def second(query):
        out = function(query, *others)[0].pow(2).sum()
        (first,) = torch.autograd.grad(out, query, create_graph=True)
        (again,) = torch.autograd.grad((first * direction).sum(), query, create_graph=True)
        return (again * direction).sum()

    (third,) = torch.autograd.grad(second(start), start)
    ahead, behind = ((start.detach() + step * direction).requires_grad_() for step in (1e-4, -1e-4))
    numeric = (second(ahead) - second(behind)) / 2e-4
    torch.testing.assert_close((third * direction).sum(), numeric, rtol=1e-5, atol=1e-7)


@fused_problem
def test_functional_transforms(problem):
    """`torch.func` agrees with autograd: grad, jvp, vmap, and what is made of them."""
    function, args = fused(problem)
    detached = tuple(x.detach() for x in args)
    loss = lambda *args: sum(x.square().sum() for x in function(*args))  # noqa: E731
    every = tuple(range(len(args)))
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
    rows = torch.func.jacrev(lambda q: function(q, *detached[1:])[0])(detached[0])
    columns = torch.func.jacfwd(lambda q: function(q, *detached[1:])[0])(detached[0])
    torch.testing.assert_close(rows, columns)
    hessian = torch.func.hessian(lambda q: loss(q, *detached[1:]))(detached[0])
    flat = hessian.reshape(detached[0].numel(), -1)
    torch.testing.assert_close(flat, flat.T)


def dense():
    args = tuple(torch.randn(1, 5, 2, width, dtype=torch.float64, requires_grad=True) for width in (3, 3, 2))
    return lambda *args: na.attention(*args, return_lse=True), args


def packed():
    args = tuple(torch.randn(8, 2, width, dtype=torch.float64, requires_grad=True) for width in (3, 3, 2))
    options = {"layout": na.VarlenLayout([3, 1, 4]), "kernel_size": 3, "fit": "clip", "return_lse": True}
    return lambda *args: na.neighborhood_attention_packed(*args, **options), args


NESTED = {name: partial(fused, problem) for name, problem in FUSED.items()}
NESTED |= {"split": partial(split, FUSED["everything"]), "dense": dense, "packed": packed}


@pytest.mark.parametrize("make", NESTED.values(), ids=NESTED)
def test_forward_mode_of_forward_mode(make):
    """In which PyTorch's own `autograd.Function` loses derivatives without a word."""
    function, args = make()

    def loss(*args):
        found = function(*args)
        return sum(x.sin().sum() for x in (found if isinstance(found, tuple) else (found,)))

    first, second = (tuple(map(torch.randn_like, args)) for _ in range(2))
    along = lambda *args: torch.func.jvp(loss, args, first)[1]  # noqa: E731
    _, got = torch.func.jvp(along, tuple(x.detach() for x in args), second)
    grads = torch.autograd.grad(loss(*args), args, create_graph=True)
    slope = sum((grad * move).sum() for grad, move in zip(grads, first, strict=True))
    curves = torch.autograd.grad(slope, args)
    torch.testing.assert_close(got, sum((x * move).sum() for x, move in zip(curves, second, strict=True)))


def test_vmap_over_some_operands():
    problem = named("bias").problem
    tensors = problems.operands(problem, gradients=False)
    biases = torch.stack([tensors["bias"], 2 * tensors["bias"]])
    got = torch.func.vmap(lambda bias: problems.call(problem, {**tensors, "bias": bias}))(biases)
    for place in range(2):
        want = problems.call(problem, {**tensors, "bias": biases[place]})
        torch.testing.assert_close(got[place], want)
    queries = torch.stack([tensors["query"], -tensors["query"]], 2)
    got = torch.func.vmap(
        lambda query: problems.call(problem, {**tensors, "query": query}), in_dims=2, out_dims=1
    )(queries)
    torch.testing.assert_close(got[:, 1], problems.call(problem, {**tensors, "query": -tensors["query"]}))


@pytest.mark.parametrize(("backend", "size"), [("blocked", 3), ("reference", 3), ("full", 5)])
def test_no_additional_tokens_have_gradients_of_no_tokens(backend, size):
    args = [torch.randn(1, n, 2, 3, requires_grad=True) for n in (5, 5, 5, 0, 0)]
    tokens = {"additional_keys": args[3], "additional_values": args[4]}
    out = na.na1d(*args[:3], size, **tokens, backend=backend)
    for create_graph in (False, True):
        grads = torch.autograd.grad(out.sum(), args, retain_graph=True, create_graph=create_graph)
        assert [x.shape for x in grads] == [x.shape for x in args]
    packed = {"layout": na.VarlenLayout([2, 3]), "kernel_size": 2}
    tokens = {name: x.expand(2, 0, 2, 3) for name, x in tokens.items()}
    out = na.neighborhood_attention_packed(*(x[0] for x in args[:3]), **tokens, **packed)
    assert [x.shape for x in torch.autograd.grad(out.sum(), args)] == [x.shape for x in args]


@pytest.mark.parametrize("make", NESTED.values(), ids=NESTED)
def test_vmap_over_nothing(make):
    function, args = make()

    def every(*args):
        found = function(*args)
        return found if isinstance(found, tuple) else (found,)

    def loss(*args):
        found = torch.func.vmap(every, in_dims=(0, *(None for _ in args[1:])))(*args)
        return sum(x.sum() for x in found)

    given = tuple(x.detach() for x in args)
    none = tuple(x.expand(0, *x.shape) for x in given)
    assert [x.shape for x in torch.func.vmap(every)(*none)] == [(0, *x.shape) for x in every(*given)]
    grads = torch.func.grad(loss, tuple(range(len(args))))(none[0], *given[1:])
    assert grads[0].shape == none[0].shape
    assert not any(x.any() for x in grads[1:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("weights", [1, 800, 4000])
def test_sections_of_a_problem_are_the_whole(monkeypatch, dtype, weights):
    """Batch entries and heads one by one, and several at a time; one bias serves the batch."""
    problem = Problem(
        (Axis(5, 3), Axis(4, 2, causal=True)), 4, 6, 3, 2, 3, bias=True, extra=2, dtype="float64"
    )
    args = [x.detach().to(dtype).requires_grad_() for x in problems.operands(problem).values()]
    function, _ = fused(problem)
    found, made, room = [], [], sections.Section.room
    monkeypatch.setattr(sections.Section, "room", lambda *given: made.append(given) or room(*given))
    for limit in (1 << 20, weights):
        monkeypatch.setattr(sections, "WEIGHTS", {"cuda": limit})
        torch.manual_seed(0)
        outputs = function(*args)
        flow = [torch.randn_like(x).requires_grad_() for x in outputs]
        grads = torch.autograd.grad(outputs, args, flow, create_graph=True)
        again = torch.autograd.grad(grads, (*args, *flow), [torch.randn_like(x) for x in grads])
        moves = tuple(torch.randn_like(x) for x in args)
        along = torch.func.jvp(function, tuple(x.detach() for x in args), moves)[1]
        found.append((*again, *along))
        assert bool(made) == (limit < 1 << 20)
    for whole, parts in zip(*found, strict=True):
        assert whole.dtype == parts.dtype
        torch.testing.assert_close(parts, whole)


def test_half_precision_second_derivatives():
    """They run in float32 inside and come back in the operands' dtype."""
    problem = Problem((Axis(6, 3),), heads=2, kv_heads=2, dim=4, value_dim=4, dtype="bfloat16")
    tensors = problems.operands(problem)
    out = problems.call(problem, tensors)
    grads = torch.autograd.grad(out.square().sum(), tuple(tensors.values()), create_graph=True)
    sum(g.square().sum() for g in grads).backward()
    assert all(x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() for x in tensors.values())


def test_explicit_backend_holds_for_second_derivatives():
    problem = FUSED["line"]
    function, args = fused(problem, backend="reference")
    (first,) = torch.autograd.grad(function(*args)[0].square().sum(), args[0], create_graph=True)
    with using(backend="full"):  # rules calls made here, not the graph of the one above
        (second,) = torch.autograd.grad(first.sum(), args[0])
    assert second.isfinite().all()
