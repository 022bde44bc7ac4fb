"""The `blocked` backend against the oracle, through the backend protocol."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests import budget, oracle
from tests.torch.problems import array, problems, window
from vicinal import Axis, Problem, catalog
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.blocked import BLOCKED
from vicinal.torch.strips import arena, costs, direct, narrow, passes, plan, sums

ALL = (True,) * 6
FIELDS = Operands._fields


def sampled(problem, x):
    """Rows of `x` at the output stride."""
    return x[(slice(None), *(slice(None, None, axis.output_stride) for axis in problem.axes))]


def make(problem, seed=0):
    """Random operands, and the query before it was sampled."""
    generator, dtype = torch.Generator().manual_seed(seed), getattr(torch, problem.dtype)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    query = draw(problem.batch, *problem.lengths, problem.heads, problem.dim)
    key = draw(problem.batch, *problem.lengths, problem.kv_heads, problem.dim)
    value = draw(problem.batch, *problem.lengths, problem.kv_heads, problem.value_dim)
    bias = draw(problem.heads, *(2 * size - 1 for size in problem.window)) if problem.bias else None
    extra = [None, None]
    if problem.extra:
        rows = (problem.batch, problem.extra, problem.kv_heads)
        extra = [draw(*rows, width) for width in (problem.dim, problem.value_dim)]
    return query, Operands(sampled(problem, query), key, value, bias, *extra)


def cotangents(out, lse, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (out, lse)]


def run(problem, operands, scale=0.4, needs=ALL, with_lse=True):
    problem = replace(problem, gradients=True)
    out, lse = BLOCKED.attend(problem, operands, scale)
    grad_out, grad_lse = cotangents(out, lse)
    grads = BLOCKED.attend_back(
        problem, operands, out, lse, grad_out, grad_lse if with_lse else None, scale, needs
    )
    return out, lse, grads, grad_out, grad_lse


def check(problem, scale=0.4, seed=0, with_lse=True):
    """Forward, log-sum-exp and all gradients."""
    query, operands = make(problem, seed)
    out, lse, grads, grad_out, grad_lse = run(problem, operands, scale, with_lse=with_lse)
    answer = oracle.attend(
        array(query),
        *(None if x is None else array(x) for x in operands[1:3]),
        win=oracle.window(problem.rank, **window(problem)),
        scale=scale,
        bias=None if operands.bias is None else array(operands.bias),
        extra_key=None if operands.extra_key is None else array(operands.extra_key),
        extra_value=None if operands.extra_value is None else array(operands.extra_value),
        grad_out=array(grad_out),
        grad_lse=array(grad_lse) if with_lse else None,
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


def walk(problem, operands, fill=-np.inf):
    """`dot`, `mix` and `mix_back`; slots without a key hold NaN when they are read."""
    dotted = replace(problem, operation="dot", value_dim=problem.dim)
    weights = BLOCKED.dot(dotted, operands.query, operands.key, operands.bias, 0.3, fill)
    read = torch.where(torch.isinf(weights), float("nan"), weights)
    mixed = BLOCKED.mix(replace(problem, operation="mix", dim=problem.value_dim), read, operands.value)
    back = replace(problem, operation="mix_back", value_dim=problem.dim)
    return weights, mixed, BLOCKED.mix_back(back, read, operands.query)


def check_walks(problem, fill=-np.inf, seed=0):
    win = oracle.window(problem.rank, **window(problem))
    _, operands = make(problem, seed)
    weights, mixed, back = walk(problem, operands, fill)
    query, key, value, bias = (None if x is None else array(x) for x in operands[:4])
    budget.check("dot", array(weights), oracle.dot(query, key, win, 0.3, bias, fill), problem.dtype)
    kept = array(torch.where(torch.isinf(weights), 0, weights))
    budget.check("mix", array(mixed), oracle.mix(kept, value, win), problem.dtype)
    expected = oracle.mix_back(kept, query, problem.lengths, problem.kv_heads, win)
    budget.check("mix_back", array(back), expected, problem.dtype)


@pytest.mark.parametrize("case", catalog.SMALL, ids=lambda case: case.name)
def test_matches_the_oracle_on_every_small_case(case):
    check(case.problem)


@pytest.mark.parametrize("case", catalog.SMALL, ids=lambda case: case.name)
def test_walks_match_the_oracle_on_every_small_case(case):
    check_walks(case.problem)


def prefer(monkeypatch, path):
    """Forces tiles (None), or another path wherever it is possible."""
    tiles = float("inf") if path is direct else 0.0
    monkeypatch.setattr(direct, "estimate", lambda *_: tiles)
    direct.faster.cache_clear()


@given(problems(dtypes=("float64", "float32", "bfloat16", "float16")))
@settings(max_examples=60, deadline=None)
def test_every_option_meets_every_other(problem):
    check(problem)


@given(problems())
@settings(max_examples=40, deadline=None)
def test_walks_with_every_option(problem):
    check_walks(problem)


@pytest.fixture(params=[(3000, 2000, 1 << 20, 900), (20000, 2000, 4000, 3000), (400, 300, 4, 100)], ids=str)
def tight(request, monkeypatch, tiled):
    """Budgets so small that batches, slabs, pieces of boxes, chunks and tables all get split."""
    for name, size in zip(("PASS", "CHUNK", "TABLE"), request.param[:3], strict=True):
        monkeypatch.setattr(plan, name, size)
    monkeypatch.setattr(passes, "SUMS", request.param[3])
    monkeypatch.setattr(sums, "ROOM", 0)


@given(problems(dtypes=("float64", "float32", "bfloat16", "float16")))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_small_budgets_change_nothing(tight, problem):
    check(problem)
    check_walks(problem)


@pytest.fixture
def matrix_unit(monkeypatch):
    """A CPU that has one."""
    monkeypatch.setattr(costs, "has_matrix_unit", lambda: True)
    for cached in (plan.cheapest, plan.parts):
        cached.cache_clear()
    yield
    for cached in (plan.cheapest, plan.parts):
        cached.cache_clear()


@pytest.mark.parametrize("share", [1, 3])
def test_the_matrix_unit_path_matches_the_oracle(monkeypatch, matrix_unit, share):
    """The same kernel runs, slower, on CPUs without a matrix unit.

    It rounds weights to bfloat16, and its log-sum-exp is good to about 1e-4: it is for inference alone.
    """
    monkeypatch.setattr(costs, "BOX", float("-inf"))
    axes = (Axis(21, 5, 2), Axis(26, 4, dilation=3, causal=True))
    problem = Problem(axes, 2, 2 * share, 2, 32, 32, "bfloat16")
    assert all(narrow.faster(problem, part) for part in plan.parts(problem))
    query, operands = make(problem)
    out, lse = BLOCKED.attend(problem, operands, 0.2)
    win = oracle.window(2, **window(problem))
    answer = oracle.attend(array(query), array(operands.key), array(operands.value), win, 0.2)
    budget.check("out", array(out), answer.out, "bfloat16", rounded_weights=True)
    budget.check("lse", array(lse), answer.lse, "bfloat16")
    later = replace(problem, gradients=True)
    assert not any(narrow.faster(later, part) for part in plan.parts(later))


def test_the_matrix_unit_takes_large_boxes(matrix_unit):
    """What is faster on a CPU that has one, and the tiles that suit it."""
    line, plane, wide = (Axis(8192, 255),), (Axis(64, 7),) * 2, (Axis(128, 13),) * 2
    for axes, dim, wins, rows in ((line, 64, True, 32), (plane, 32, False, 8), (wide, 64, True, 32)):
        problem = Problem(axes, 1, 4, 4, dim, dim, "bfloat16")
        (part,) = plan.parts(problem)
        assert (narrow.faster(problem, part), part.rows) == (wins, rows)
    later = replace(problem, gradients=True)
    assert plan.parts(later)[0].rows == 16


def flat(out, lse, grads):
    return [x for x in (out, lse, *grads) if x is not None]


def equal(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


BITWISE = (
    Problem((Axis(300, 33),), heads=2, kv_heads=2, dim=8, value_dim=8, bias=True),
    Problem((Axis(40, 7), Axis(33, 5, dilation=2)), 2, 4, 2, 16, 16, bias=True, extra=3),
    Problem((Axis(12, 5), Axis(13, 3), Axis(14, 7)), 1, 2, 2, 8, 12, "bfloat16"),
    Problem((Axis(700, 601),), heads=1, kv_heads=1, dim=64, value_dim=64),
)


def test_results_are_not_scratch():
    problem = Problem((Axis(20, 5),), 1, 2, 2, 4, 4)
    first = flat(*run(problem, make(problem, 0)[1])[:3])
    kept = [x.clone() for x in first]
    run(problem, make(problem, 1)[1])
    assert equal(first, kept)
    assert all(x.is_contiguous() and not x.requires_grad for x in first)


def test_inference_mode_leaves_nothing_behind():
    arena.clear()
    problem = Problem((Axis(19, 5, dilation=2), Axis(11, 3)), 1, 2, 2, 4, 4)
    plan.parts.cache_clear()
    _, operands = make(problem)
    with torch.inference_mode():
        BLOCKED.attend(problem, operands, 0.4)
    check(problem)


@pytest.mark.parametrize("missing", range(6), ids=FIELDS)
@pytest.mark.parametrize("alone", [False, True], ids=["all but", "only"])
def test_gradients_that_are_not_needed_are_none(missing, alone):
    problem = Problem((Axis(13, 5), Axis(9, 4)), 2, 4, 2, 6, 5, bias=True, extra=3)
    _, operands = make(problem)
    needs = tuple((place == missing) == alone for place in range(6))
    every = run(problem, operands)[2]
    some = run(problem, operands, needs=needs)[2]
    for need, grad, whole in zip(needs, some, every, strict=True):
        assert grad is None if not need else torch.equal(grad, whole)


@pytest.mark.parametrize("lone", ["out", "lse"])
def test_one_cotangent_may_be_missing(lone):
    problem = Problem((Axis(13, 5),), 2, 2, 1, 6, 5, "float64", bias=True, extra=2)
    _, operands = make(problem)
    out, lse = BLOCKED.attend(problem, operands, 0.4)
    grads = cotangents(out, lse)
    keep = [grad if name == lone else None for name, grad in zip(("out", "lse"), grads, strict=True)]
    zero = [grad if name == lone else grad * 0 for name, grad in zip(("out", "lse"), grads, strict=True)]
    some = BLOCKED.attend_back(problem, operands, out, lse, *keep, 0.4, ALL)
    every = BLOCKED.attend_back(problem, operands, out, lse, *zero, 0.4, ALL)
    assert all(map(torch.allclose, some, every))


def restrided(x, layout):
    if x is None:
        return None
    if layout == "transposed":
        return x.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "sliced":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
        wide[..., ::2] = x
        return wide[..., ::2]
    return x[:1].expand(x.shape)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_any_strides(layout):
    problem = Problem((Axis(13, 5, dilation=2), Axis(9, 4)), 2, 4, 2, 6, 6)
    _, operands = make(problem)

    strided = Operands(*(restrided(x, layout) for x in operands))
    plain = Operands(*(None if x is None else x.contiguous() for x in strided))
    assert equal(flat(*run(problem, strided)[:3]), flat(*run(problem, plain)[:3]))


@pytest.mark.parametrize(("batch", "heads"), [(0, 2), (2, 0)])
def test_nothing_in_nothing_out(batch, heads):
    problem = Problem((Axis(9, 3), Axis(7, 5)), batch, heads, heads, 4, 6, bias=True, extra=2)
    _, operands = make(problem)
    out, lse, grads, *_ = run(problem, operands)
    assert (out.shape, lse.shape) == ((batch, 9, 7, heads, 6), (batch, 9, 7, heads))
    for grad, operand in zip(grads, operands, strict=True):
        assert grad.shape == operand.shape
        assert not grad.any()


def test_a_nan_reaches_no_further_than_the_tiles_that_read_it():
    problem = Problem((Axis(64, 3), Axis(64, 3)), 1, 1, 1, 4, 4)
    _, operands = make(problem)
    clean = BLOCKED.attend(problem, operands, 0.4)[0]
    operands.key[0, 20, 30] = float("nan")
    found = BLOCKED.attend(problem, operands, 0.4)[0]
    hit = found.isnan().any(-1)[0, :, :, 0]
    assert hit[19:22, 29:32].all()
    rows, columns = hit.nonzero().unbind(1)
    for at, first, size in zip((rows, columns), (19, 29), plan.parts(problem)[0].tile, strict=True):
        assert at.min() >= first - size
        assert at.max() <= first + 2 + size
    assert torch.equal(found[~found.isnan()], clean[~found.isnan()])


def test_large_scores_do_not_overflow():
    problem = Problem((Axis(40, 7),), 1, 1, 1, 8, 8)
    query, operands = make(problem)
    large = operands._replace(query=operands.query * 300, value=operands.value * 1e30)
    out, lse = BLOCKED.attend(problem, large, 1.0)
    win = oracle.window(1, 7)
    answer = oracle.attend(array(query) * 300, array(large.key), array(large.value), win, 1.0)
    budget.check("out", array(out), answer.out, "float32")
    budget.check("lse", array(lse), answer.lse, "float32")


MEGA = 1 << 20
BIG = (
    Problem((Axis(50_000, 33),), heads=4, kv_heads=4, dim=64, value_dim=64),
    Problem((Axis(256, 13), Axis(512, 13)), heads=2, kv_heads=2, dim=64, value_dim=64),
    Problem((Axis(8, 5), Axis(96, 7), Axis(96, 7)), heads=2, kv_heads=2, dim=64, value_dim=64),
    Problem((Axis(65536, 60001, stride=60001),), heads=1, kv_heads=1, dim=64, value_dim=64),
    Problem((Axis(512, 401, stride=401), Axis(256, 201, stride=201)), heads=1, kv_heads=1),
)


WORK = [(problem, operation) for problem in BIG for operation in ("attend", "attend_back")] + [
    (problem, operation) for problem in BIG[:3] for operation in ("dot", "mix", "mix_back")
]


@pytest.mark.parametrize(("problem", "operation"), WORK, ids=str)
def test_a_plan_takes_at_most_64_mib(problem, operation):
    """Counted from the sizes a pass asks for, without computing anything."""
    back = operation == "attend_back"
    problem = replace(problem, operation=operation.removesuffix("_back") if back else operation)
    for part in plan.parts(problem, back):
        per = passes.load(problem, back)
        work = part.measure(0, 0, 0)
        slots = work.strips * work.length * work.width * (per.slot + per.width)
        need = 4 * (slots + work.boxes * part.rows * per.row)
        scores = max(plan.CHUNK, 4 * part.rows * work.keys) * per.scores
        assert need + scores + plan.TABLE <= 48 * MEGA


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scratch_stays_bounded(dtype):
    arena.clear()
    problem = Problem((Axis(6, 3), Axis(40, 7), Axis(48, 7)), 1, 2, 2, 64, 64, dtype)
    run(problem, make(problem)[1])
    assert 0 < arena.held() <= 48 * MEGA
    arena.clear()
    assert arena.held() == 0
