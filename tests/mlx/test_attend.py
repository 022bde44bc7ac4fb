"""Every backend against the oracle: the catalog, and every option with every other."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vicinal.mlx as na
from tests import budget
from tests.mlx import problems
from vicinal import UnsupportedProblem, using
from vicinal.catalog import ODD, OPTIONS, SMALL, named
from vicinal.mlx.backends import BACKENDS

DTYPES = ("float32", "float16", "bfloat16")
HERE = [case for case in SMALL if case.problem.dtype in DTYPES]
HERE_RUN = [b for b in BACKENDS if problems.takes(b, named("whole").problem)]
WALKING = [backend.name for backend in HERE_RUN if not backend.transparent]
on_this_device = pytest.mark.parametrize("backend", HERE_RUN, ids=lambda backend: backend.name)
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)


@pytest.mark.parametrize("case", HERE, ids=lambda case: case.name)
@each_backend
def test_catalog(backend, case):
    if problems.takes(backend, case.problem):
        problems.check(case.problem, backend.name)
        return
    with pytest.raises(UnsupportedProblem, match=f"backend {backend.name} was asked for"):
        problems.call(case.problem, problems.operands(case.problem), backend=backend.name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["everything", "odd_3d", "grouped", "whole"])
@each_backend
def test_dtypes(backend, name, dtype):
    problem = replace(named(name).problem, dtype=dtype)
    if problems.takes(backend, problem):
        problems.check(problem, backend.name)


@problems.examples(100)
@given(
    problem=problems.problems(("float32",)),
    scale=st.sampled_from((None, 1.0, 0.3, 0.0, -0.5)),
    seed=st.integers(0, 99),
)
def test_every_combination(problem, scale, seed):
    """On all backends that take the problem."""
    for backend in BACKENDS:
        if problems.takes(backend, problem):
            problems.check(problem, backend.name, seed, scale)


@problems.examples(50)
@given(problem=problems.problems(("float32",)))
def test_split_operations_are_the_fused_one(problem):
    operands = problems.operands(problem)
    out, lse = problems.call(problem, operands, return_lse=True)
    scores = problems.split(problem, operands)
    budget.check("lse", problems.array(mx.logsumexp(scores, -1)), problems.array(lse), "float32")
    mixed = na.av(
        mx.softmax(scores, -1),
        operands["value"],
        **problems.window(problem),
        additional_values=operands.get("extra_value"),
    )
    budget.check("out", problems.array(mixed), problems.array(out), "float32")


@problems.examples(80)
@given(problem=problems.problems(("float32",)), backend=st.sampled_from(WALKING))
def test_walks(problem, backend):
    problems.check_walks(replace(problem, extra=0), backend)


@on_this_device
def test_inputs_of_any_strides(backend):
    """Heads first in memory, channels interleaved with something else, batch expanded: only values count, of
    operands and of what flows back."""
    problem = replace(named("whole" if backend.name == "full" else "odd_2d").problem, batch=2)
    operands = problems.operands(problem)
    flow = problems.random(np.random.default_rng(1), problems.call(problem, operands).shape)

    def everything(operands, flow):
        attend = lambda *x: problems.call(  # noqa: E731
            problem, dict(zip(operands, x, strict=True)), backend=backend.name
        )
        (out,), grads = mx.vjp(attend, list(operands.values()), [flow])
        return out, *grads

    heads_first = lambda x: mx.contiguous(x.swapaxes(1, -2)).swapaxes(1, -2)  # noqa: E731
    interleaved = lambda x: mx.stack([x, mx.full(x.shape, float("nan"))], -1)[..., 0]  # noqa: E731
    wanted = everything(operands, flow)
    for strided in (heads_first, interleaved):
        given = {name: strided(x) for name, x in operands.items()}
        mx.eval(given)
        for got, want in zip(everything(given, strided(flow)), wanted, strict=True):
            budget.check("strided", problems.array(got), problems.array(want), "float32")
    expanded = {n: mx.broadcast_to(x[:1], x.shape) for n, x in operands.items()}
    for got in everything(expanded, mx.broadcast_to(flow[:1], flow.shape)):
        assert problems.same([got[0]], [got[1]])


@on_this_device
def test_deterministic(backend):
    problem = named("whole" if backend.name == "full" else "long").problem
    operands = problems.operands(problem)

    def loss(*tensors):
        named = dict(zip(operands, tensors, strict=True))
        return problems.call(problem, named, backend=backend.name).square().sum()

    run = mx.value_and_grad(loss, argnums=(0, 1, 2))
    results = []
    for _ in range(3):
        value, grads = run(*operands.values())
        results.append((value, *grads))
    assert all(problems.same(results[0], other) for other in results[1:])


@pytest.mark.parametrize(("batch", "heads"), [(0, 2), (2, 0)])
@pytest.mark.parametrize("backend", [None, "blocked", "reference"])
def test_nothing_to_do(batch, heads, backend):
    """Empty batches and no heads give empty results, and a zero gradient where something is left."""
    problem = replace(named("bias").problem, batch=batch, heads=heads, kv_heads=heads, extra=2)
    operands = problems.operands(problem)
    out, lse = problems.call(problem, operands, return_lse=True, backend=backend)
    assert out.shape == (batch, 9, 8, heads, 8)
    assert lse.shape == (batch, 9, 8, heads)

    def loss(*tensors):
        named = dict(zip(operands, tensors, strict=True))
        return problems.call(problem, named, backend=backend).sum()

    grads = mx.grad(loss, argnums=tuple(range(len(operands))))(*operands.values())
    for x, grad in zip(operands.values(), grads, strict=True):
        assert grad.shape == x.shape
        assert not np.array(grad).any()
    scores = problems.split(problem, operands)
    assert scores.shape == (batch, 9, 8, heads, 17)
    mixed = na.av(
        scores, operands["value"], additional_values=operands["extra_value"], **problems.window(problem)
    )
    assert mixed.shape == out.shape


@on_this_device
def test_no_additional_tokens_change_nothing(backend):
    """And have gradients of no tokens."""
    query = mx.random.normal((1, 5, 2, 3))

    def loss(query, extra):
        tokens = {"additional_keys": extra, "additional_values": extra}
        return na.na1d(query, query, query, 5, **tokens, backend=backend.name).square().sum()

    none = mx.zeros((1, 0, 2, 3))
    found, grads = mx.value_and_grad(loss, (0, 1))(query, none)
    wanted = na.na1d(query, query, query, 5, backend=backend.name).square().sum()
    assert mx.allclose(found, wanted)
    assert [x.shape for x in grads] == [query.shape, none.shape]


@pytest.mark.parametrize("poison", ["key", "value"])
def test_reference_keeps_a_non_finite_token_to_who_sees_it(poison):
    problem = named("dilation").problem
    operands = problems.operands(problem)
    operands[poison][0, 4, 5] = float("nan")
    out = problems.array(problems.call(problem, operands, backend="reference"))
    touched = np.isnan(out).any((-1, -2))[0]
    first, second = problem.axes
    for row in range(first.outputs):
        for column in range(second.outputs):
            assert touched[row, column] == (4 in first.keys(row) and 5 in second.keys(column))


@pytest.mark.parametrize("backend", [None, "blocked"])
def test_float32_bias_with_half_queries(backend):
    problem = replace(named("bias").problem, dtype="float16")
    operands = problems.operands(problem)
    operands["bias"] = operands["bias"].astype(mx.float32) * 1.01
    out = problems.call(problem, operands, backend=backend)
    budget.check("out", problems.array(out), problems.exact(problem, operands).out, "float16")
    loss = lambda bias: problems.call(problem, {**operands, "bias": bias}, backend=backend).sum()  # noqa: E731
    assert mx.grad(loss)(operands["bias"]).dtype == mx.float32


def test_backends_take_what_they_are_for():
    """Covered windows go to `full`, others to a GPU if there is one, on a CPU small ones to `gathered`, the
    rest to `blocked`."""
    full, _, metal, metal_plain, gathered, blocked, reference = BACKENDS
    names = ["full", "cuda", "metal", "metal-plain", "gathered", "blocked", "reference"]
    assert [b.name for b in BACKENDS] == names
    assert {case.name for case in ODD + OPTIONS if full.refusal(case.problem) is None} == {
        "one_token",
        "whole",
    }
    large = replace(named("hdit_256_l0").problem, device="cpu")
    assert "are over" in gathered.refusal(large)
    assert gathered.refusal(named("bias").problem) is None
    assert gathered.refusal(named("extra").problem) == "it knows no additional tokens"
    for case in SMALL:
        assert blocked.refusal(case.problem) is None
        assert reference.refusal(case.problem) is None
        for backend in (metal, metal_plain):
            assert backend.refusal(case.problem) == "runs on metal, not cpu"
            assert (backend.refusal(replace(case.problem, device="metal")) is None) == (case in HERE)


def test_refusals_name_every_backend():
    found = na.refusals(named("whole").problem)
    assert list(found) == [backend.name for backend in BACKENDS]
    assert found["full"] is None


def test_settings_choose_the_backend():
    problem = named("odd_1d").problem
    operands = problems.operands(problem)
    with (
        using(backend="full"),
        pytest.raises(UnsupportedProblem, match="the window does not cover every axis"),
    ):
        problems.call(problem, operands)
    with pytest.raises(ValueError, match="backend 'fast' is unknown; pass None or one of full"):
        problems.call(problem, operands, backend="fast")


def test_backward_keeps_the_backend_of_the_forward(monkeypatch):
    """The settings of the call rule its backward, wherever that runs."""
    from vicinal.mlx.backends import reference

    ran = []
    original = reference.Reference.attend_back
    monkeypatch.setattr(
        reference.Reference, "attend_back", lambda *args: ran.append("reference") or original(*args)
    )
    problem = named("odd_1d").problem
    operands = problems.operands(problem)

    def loss(query):
        with using(backend="reference"):
            return problems.call(problem, {**operands, "query": query}).sum()

    mx.eval(mx.grad(loss)(operands["query"]))
    assert ran == ["reference"]
