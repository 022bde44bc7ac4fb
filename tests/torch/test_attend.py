"""Every backend against the oracle: the catalog, and every option with every other."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vicinal.torch as na
from tests import budget, oracle
from tests.torch import problems
from vicinal import UnsupportedProblem, using
from vicinal.catalog import ODD, OPTIONS, SMALL, named
from vicinal.torch.backends import BACKENDS

DTYPES = ("float64", "float32", "float16", "bfloat16")
CPU = [backend for backend in BACKENDS if backend.refusal(named("whole").problem) is None]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_catalog(backend, case):
    problem = replace(case.problem, gradients=True)
    if backend.refusal(problem) is None:
        problems.check(problem, backend.name)
        return
    with pytest.raises(UnsupportedProblem, match=f"backend {backend.name} was asked for"):
        problems.call(problem, problems.operands(problem), backend=backend.name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case", [named("everything"), named("odd_3d"), named("grouped")], ids=lambda case: case.name
)
@pytest.mark.parametrize("backend", CPU, ids=lambda backend: backend.name)
def test_dtypes(backend, case, dtype):
    problem = replace(case.problem, dtype=dtype, gradients=True)
    if backend.refusal(problem) is None:
        problems.check(problem, backend.name)


@settings(max_examples=150, deadline=None)
@given(
    problem=problems.problems(), scale=st.sampled_from((None, 1.0, 0.3, 0.0, -0.5)), seed=st.integers(0, 99)
)
def test_every_combination(problem, scale, seed):
    """On whatever backend comes first, and on all that take the problem."""
    for backend in CPU:
        if backend.refusal(problem) is None:
            problems.check(problem, backend.name, seed, scale)


@settings(max_examples=60, deadline=None)
@given(problem=problems.problems())
def test_split_operations_are_the_fused_one(problem):
    tensors = problems.operands(problem, gradients=False)
    out, lse = problems.call(problem, tensors, return_lse=True)
    scores = split(problem, tensors)
    budget.check("lse", problems.array(scores.double().logsumexp(-1)), problems.array(lse), problem.dtype)
    options = problems.window(problem)
    mixed = na.av(
        scores.softmax(-1), tensors["value"], **options, additional_values=tensors.get("extra_value")
    )
    budget.check("out", problems.array(mixed), problems.array(out), problem.dtype)


def split(problem, tensors):
    return na.qk(
        tensors["query"],
        tensors["key"],
        **problems.window(problem),
        bias=tensors.get("bias"),
        additional_keys=tensors.get("extra_key"),
    )


@settings(max_examples=100, deadline=None)
@given(problem=problems.problems(), backend=st.sampled_from([b.name for b in CPU if b.name != "full"]))
def test_walks(problem, backend):
    """`qk`, `av` and their gradients are the oracle's walks; slots that hold no key are never read."""
    problem = replace(problem, extra=0)
    tensors = problems.operands(problem)
    win = oracle.window(problem.rank, **problems.window(problem))
    with using(backend=backend):
        scores = split(problem, tensors)
        grad = torch.randn_like(scores)
        score_grads = torch.autograd.grad(scores, [tensors["query"], tensors["key"]], grad)
        weights = torch.randn_like(scores).masked_fill(scores == -torch.inf, torch.nan).requires_grad_()
        value = tensors["value"]
        mixed = na.av(weights, value, **problems.window(problem))
        grad_mixed = torch.randn_like(mixed)
        weight_grads = torch.autograd.grad(mixed, [weights, value], grad_mixed)
    exact = problems.arrays(tensors)
    sampled = exact["query"][(slice(None), *(slice(None, None, step) for step in win.output_stride))]
    check = lambda name, x, y: budget.check(name, problems.array(x), y, problem.dtype)  # noqa: E731
    scale = problem.dim**-0.5
    check("qk", scores, oracle.dot(sampled, exact["key"], win, scale, exact.get("bias")))
    check("av", mixed, oracle.mix(problems.array(weights), exact["value"], win))
    rows = problems.array(score_grads[0])[
        (slice(None), *(slice(None, None, step) for step in win.output_stride))
    ]
    budget.check(
        "qk to query", rows, scale * oracle.mix(problems.array(grad), exact["key"], win), problem.dtype
    )
    back = lambda w, x: oracle.mix_back(problems.array(w), x, problem.lengths, problem.kv_heads, win)  # noqa: E731
    check("qk to key", score_grads[1], scale * back(grad, sampled))
    check(
        "av to weights",
        weight_grads[0],
        oracle.dot(problems.array(grad_mixed), exact["value"], win, fill=0.0),
    )
    check("av to value", weight_grads[1], back(weights, problems.array(grad_mixed)))


@pytest.mark.parametrize("backend", CPU, ids=lambda backend: backend.name)
def test_non_contiguous_inputs(backend):
    """Heads first in memory, channels interleaved, batch expanded: only the values count."""
    problem = replace(
        named("whole" if backend.name == "full" else "odd_2d").problem, batch=2, heads=2, kv_heads=2
    )
    tensors = problems.operands(problem, gradients=False)
    expected = problems.call(problem, tensors, backend=backend.name)
    heads_first = {n: x.transpose(1, -2).contiguous().transpose(1, -2) for n, x in tensors.items()}
    interleaved = {n: torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0] for n, x in tensors.items()}
    for strided in (heads_first, interleaved):
        assert not strided["query"].is_contiguous()
        budget.check(
            "out",
            problems.array(problems.call(problem, strided, backend=backend.name)),
            problems.array(expected),
            "float32",
        )
    expanded = {n: x[:1].expand_as(x) for n, x in tensors.items()}
    out = problems.call(problem, expanded, backend=backend.name)
    assert problems.same([out[0]], [out[1]])


@settings(max_examples=60, deadline=None)
@given(problem=problems.problems(), draw=st.randoms(), flow=st.sampled_from(("out", "lse", "both")))
def test_any_strides_and_any_gradients(problem, draw, flow):
    """Axes in any order in memory, some operands alone with gradients, of one result alone."""
    kept = problems.operands(problem, gradients=False)
    tensors = {name: shuffled(x, draw) for name, x in kept.items()}
    needs = draw.sample(sorted(tensors), draw.randint(1, len(tensors)))
    for name in needs:
        tensors[name].requires_grad_()
    for backend in CPU:
        if backend.refusal(problem) is not None:
            continue
        both = problems.call(problem, tensors, return_lse=True, backend=backend.name)
        found = {name: x for name, x in zip(("out", "lse"), both, strict=True) if flow in (name, "both")}
        flows = {f"grad_{name}": torch.ones_like(x) for name, x in found.items()}
        grads = torch.autograd.grad(
            tuple(found.values()), [tensors[name] for name in needs], tuple(flows.values()), allow_unused=True
        )
        answer = problems.exact(problem, kept, **{name: problems.array(x) for name, x in flows.items()})
        for name, grad in zip(needs, grads, strict=True):
            made = torch.zeros_like(kept[name]) if grad is None else grad
            budget.check(name, problems.array(made), getattr(answer, name), problem.dtype)


def shuffled(x, draw):
    """`x` with its axes in another order in memory."""
    order = draw.sample(range(x.ndim), x.ndim)
    return x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.ndim)])


@pytest.mark.parametrize("backend", CPU, ids=lambda backend: backend.name)
def test_deterministic(backend):
    problem = named("whole" if backend.name == "full" else "long").problem
    tensors = problems.operands(problem)
    results = []
    for _ in range(3):
        out = problems.call(problem, tensors, backend=backend.name)
        results.append((out, *torch.autograd.grad(out.square().sum(), tuple(tensors.values()))))
    assert all(problems.same(results[0], other) for other in results[1:])


@pytest.mark.parametrize(("batch", "heads"), [(0, 2), (2, 0)])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_nothing_to_do(batch, heads, backend):
    """Empty batches and no heads give empty results and gradients, and zeros where something is left."""
    problem = replace(named("bias").problem, batch=batch, heads=heads, kv_heads=heads, extra=2)
    tensors = problems.operands(problem)
    out, lse = problems.call(problem, tensors, return_lse=True, backend=backend)
    assert out.shape == (batch, 9, 8, heads, 8)
    assert lse.shape == (batch, 9, 8, heads)
    grads = torch.autograd.grad(out.sum() + lse.sum(), tuple(tensors.values()))
    for x, grad in zip(tensors.values(), grads, strict=True):
        assert grad.shape == x.shape
        assert not grad.any()
    scores = split(problem, tensors)
    assert scores.shape == (batch, 9, 8, heads, 17)
    options = problems.window(problem)
    mixed = na.av(scores, tensors["value"], additional_values=tensors["extra_value"], **options)
    assert mixed.shape == out.shape
    (grad,) = torch.autograd.grad(mixed.sum(), tensors["value"])
    assert grad.shape == tensors["value"].shape


@pytest.mark.parametrize("poison", ["key", "value"])
def test_reference_keeps_a_non_finite_token_to_who_sees_it(poison):
    problem = named("dilation").problem
    tensors = problems.operands(problem, gradients=False)
    tensors[poison][0, 4, 5] = torch.nan
    out = problems.call(problem, tensors, backend="reference")
    touched = out.isnan().flatten(3).any(-1)[0]
    first, second = problem.axes
    for row in range(first.outputs):
        for column in range(second.outputs):
            assert touched[row, column] == (4 in first.keys(row) and 5 in second.keys(column))


def test_gradients_only_where_asked():
    problem = named("everything").problem
    tensors = problems.operands(problem, gradients=False)
    for wanted in tensors:
        chosen = {name: x.clone().requires_grad_(name == wanted) for name, x in tensors.items()}
        full = {name: x.clone().requires_grad_() for name, x in tensors.items()}
        problems.call(problem, chosen).square().sum().backward()
        problems.call(problem, full).square().sum().backward()
        assert all((x.grad is not None) == (name == wanted) for name, x in chosen.items())
        budget.check(
            wanted, problems.array(chosen[wanted].grad), problems.array(full[wanted].grad), "float32"
        )


def test_float32_bias_with_half_queries():
    problem = replace(named("bias").problem, dtype="float16")
    tensors = problems.operands(problem)
    tensors["bias"] = tensors["bias"].detach().float().mul(1.01).requires_grad_()
    out = problems.call(problem, tensors)
    budget.check("out", problems.array(out), problems.exact(problem, tensors).out, "float16")
    out.sum().backward()
    assert tensors["bias"].grad.dtype == torch.float32


def test_full_takes_covered_windows_and_no_others():
    names = {case.name for case in ODD + OPTIONS if BACKENDS[0].refusal(case.problem) is None}
    assert BACKENDS[0].name == "full"
    assert names == {"one_token", "whole"}


def test_settings_choose_the_backend():
    problem = named("odd_1d").problem
    tensors = problems.operands(problem)
    with (
        using(backend="full"),
        pytest.raises(UnsupportedProblem, match="the window does not cover every axis"),
    ):
        problems.call(problem, tensors)
    with (
        using(backend="nothing"),
        pytest.raises(ValueError, match="backend 'nothing' is unknown; pass None or one of full"),
    ):
        problems.call(problem, tensors)
    with pytest.raises(ValueError, match="backend 'fast' is unknown"):
        problems.call(problem, tensors, backend="fast")


def test_backward_keeps_the_backend_of_the_forward(monkeypatch):
    """The settings of the call rule its backward, wherever that runs."""
    from vicinal.torch.backends import reference

    ran = []
    original = reference.Reference.attend_back
    monkeypatch.setattr(
        reference.Reference, "attend_back", lambda *args: ran.append("reference") or original(*args)
    )
    problem = named("odd_1d").problem
    tensors = problems.operands(problem)
    with using(backend="reference"):
        out = problems.call(problem, tensors)
    out.sum().backward()
    assert ran == ["reference"]
