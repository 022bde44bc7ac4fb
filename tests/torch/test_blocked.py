"""The `blocked` backend against the oracle, through the backend protocol."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests import budget, oracle
from tests.torch.problems import array, problems, window
from vicinal import catalog
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.blocked import BLOCKED
from vicinal.torch.strips import plan

ALL = (True,) * 6
FIELDS = Operands._fields


def sampled(problem, x):
    """Rows of `x` at the output stride."""
    steps = (slice(None, None, axis.output_stride) for axis in problem.axes)
    return x[(slice(None), *steps)]


def make(problem, seed=0):
    """Random operands, and the query before it was sampled."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, problem.dtype)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    query = draw(problem.batch, *problem.lengths, problem.heads, problem.dim)
    key = draw(problem.batch, *problem.lengths, problem.kv_heads, problem.dim)
    value = draw(problem.batch, *problem.lengths, problem.kv_heads, problem.value_dim)
    bias = draw(problem.heads, *(2 * size - 1 for size in problem.window)) if problem.bias else None
    extra = [None, None]
    if problem.extra:
        extra = [
            draw(problem.batch, problem.extra, problem.kv_heads, width)
            for width in (problem.dim, problem.value_dim)
        ]
    return query, Operands(sampled(problem, query), key, value, bias, *extra)


def cotangents(out, lse, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (out, lse)]


def run(problem, operands, scale=0.4, needs=ALL, with_lse=True):
    out, lse = BLOCKED.attend(problem, operands, scale)
    grad_out, grad_lse = cotangents(out, lse)
    grads = BLOCKED.attend_back(
        problem, operands, out, lse, grad_out, grad_lse if with_lse else None, scale, needs
    )
    return out, lse, grads, grad_out, grad_lse


def check(problem, scale=0.4, seed=0):
    """Forward, log-sum-exp and all gradients."""
    query, operands = make(problem, seed)
    out, lse, grads, grad_out, grad_lse = run(problem, operands, scale)
    answer = oracle.attend(
        array(query),
        *(None if x is None else array(x) for x in operands[1:3]),
        win=oracle.window(problem.rank, **window(problem)),
        scale=scale,
        bias=None if operands.bias is None else array(operands.bias),
        extra_key=None if operands.extra_key is None else array(operands.extra_key),
        extra_value=None if operands.extra_value is None else array(operands.extra_value),
        grad_out=array(grad_out),
        grad_lse=array(grad_lse),
    )
    wide = "float64" if problem.dtype == "float64" else "float32"
    assert out.dtype == operands.query.dtype
    assert str(lse.dtype) == f"torch.{wide}"
    assert out.is_contiguous()
    assert lse.is_contiguous()
    budget.check("out", array(out), answer.out, problem.dtype)
    budget.check("lse", array(lse), answer.lse, wide)
    for name, operand, grad in zip(FIELDS, operands, grads, strict=True):
        if operand is None:
            assert grad is None, name
            continue
        expected = getattr(answer, name)
        if name == "query":
            expected = sampled(problem, expected)
        assert grad.dtype == operand.dtype, name
        budget.check(f"gradient of {name}", array(grad), expected, problem.dtype)


def check_walks(problem, fill=-np.inf, seed=0):
    """`dot`, `mix` and `mix_back`; slots without a key hold NaN when they are read."""
    win = oracle.window(problem.rank, **window(problem))
    _, operands = make(problem, seed)
    dotted = replace(problem, operation="dot", value_dim=problem.dim)
    bias = operands.bias
    weights = BLOCKED.dot(dotted, operands.query, operands.key, bias, 0.3, fill)
    expected = oracle.dot(
        array(operands.query), array(operands.key), win, 0.3, None if bias is None else array(bias), fill
    )
    budget.check("dot", array(weights), expected, problem.dtype)
    if np.isinf(fill):
        weights = torch.where(torch.isinf(weights), float("nan"), weights)
    kept = array(torch.nan_to_num(weights))
    mixed = replace(problem, operation="mix", dim=problem.value_dim)
    out = BLOCKED.mix(mixed, weights, operands.value)
    budget.check("mix", array(out), oracle.mix(kept, array(operands.value), win), problem.dtype)
    back = replace(problem, operation="mix_back", value_dim=problem.dim)
    out = BLOCKED.mix_back(back, weights, operands.query)
    expected = oracle.mix_back(kept, array(operands.query), problem.lengths, problem.kv_heads, win)
    budget.check("mix_back", array(out), expected, problem.dtype)


@pytest.mark.parametrize("case", catalog.SMALL, ids=lambda case: case.name)
def test_matches_the_oracle_on_every_small_case(case):
    check(case.problem)


@pytest.mark.parametrize("case", catalog.SMALL, ids=lambda case: case.name)
def test_walks_match_the_oracle_on_every_small_case(case):
    check_walks(case.problem)


@given(problems(dtypes=("float64", "float32", "bfloat16", "float16")))
@settings(max_examples=60, deadline=None)
def test_every_option_meets_every_other(problem):
    check(problem)


@given(problems())
@settings(max_examples=40, deadline=None)
def test_walks_with_every_option(problem):
    check_walks(problem)


@pytest.fixture(params=[(3000, 2000, 1 << 20), (20000, 2000, 4), (400, 300, 4)], ids=str)
def tight(request, monkeypatch):
    """Budgets so small that batches, slabs, pieces of boxes, chunks and tables all get split."""
    for name, size in zip(("PASS", "CHUNK", "TABLE"), request.param, strict=True):
        monkeypatch.setattr(plan, name, size)
    plan.parts.cache_clear()
    yield
    plan.parts.cache_clear()


@given(problems())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_small_budgets_change_nothing(tight, problem):
    check(problem)
    check_walks(problem)
