"""What the strips of `blocked` choose by size is right either way."""

import random
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests import budget, oracle
from tests.torch.problems import array, problems, window
from tests.torch.test_blocked import BITWISE, FIELDS, check, equal, flat, make, run
from vicinal import Axis, Problem, catalog, tiling
from vicinal.torch.backends.blocked import BLOCKED
from vicinal.torch.strips import arena, forward, fresh, plan, ring, rows
from vicinal.torch.strips.residues import residues
from vicinal.torch.strips.scores import Additive

pytestmark = pytest.mark.usefixtures("tiled")


@pytest.fixture
def held(monkeypatch):
    """What was found of scores without a maximum taken off, chunk by chunk."""
    found, holds = [], forward._State.holds
    monkeypatch.setattr(forward._State, "holds", lambda state: found.append(holds(state)) or found[-1])
    return found


@pytest.fixture
def maxed(monkeypatch):
    """No scores do without their maximum."""
    monkeypatch.setattr(forward._State, "holds", lambda _: False)


@pytest.mark.parametrize("case", catalog.SMALL, ids=lambda case: case.name)
def test_maxima_match_the_oracle_on_every_small_case(maxed, case):
    check(case.problem, scale=0.1)


@given(problems())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_maxima_with_every_option(maxed, problem):
    check(problem, scale=0.1)


@pytest.mark.parametrize("kept", [1, 3])
def test_masks_that_fill_no_table_serve_neighbors(monkeypatch, kept):
    """One is made where a tile sees its box otherwise than those of which masks are kept."""
    problem, made = Problem((Axis(600, 33),), heads=3, kv_heads=3, dim=8, value_dim=8), []
    (part,) = plan.parts(problem)
    entries = Additive.entries
    monkeypatch.setattr(plan, "TABLE", kept * 4 * part.rows * part.rings[0].width)
    monkeypatch.setattr(
        Additive, "entries", lambda self, *chosen: made.append(chosen) or entries(self, *chosen)
    )
    assert part.classes > kept
    _, operands = make(problem)
    BLOCKED.attend(problem, operands, 0.1)
    held, expected = [], 0
    for batch, slab in part.passes():
        for kind in part.kinds(part.measure(batch, slab, 0), 1, ring.CPU).tolist():
            if kind not in held:
                expected += 1
                held = [*held[: kept - 1], kind]
    assert len(made) == expected < 3 * part.rings[0].tiles / 2
    check(problem)


@pytest.mark.parametrize(("factor", "bare"), [(0.3, True), (1.5, True), (30.0, False), (-30.0, False)])
def test_scores_of_any_size_match_the_oracle(held, factor, bare):
    """Of a size that needs no maximum, and others."""
    problem = Problem((Axis(40, 7), Axis(20, 5)), 1, 2, 2, 8, 8)
    query, operands = make(problem)
    operands = operands._replace(query=operands.query * factor)
    out, lse = BLOCKED.attend(problem, operands, 1.0)
    assert held
    assert all(held) == bare
    win = oracle.window(2, **window(problem))
    answer = oracle.attend(array(query) * factor, array(operands.key), array(operands.value), win, 1.0)
    budget.check("out", array(out), answer.out, "float32")
    budget.check("lse", array(lse), answer.lse, "float32")


@pytest.mark.parametrize("level", [-60.0, -20.0, 20.0, 40.0, 60.0])
def test_scores_far_from_zero_match_the_oracle(level):
    """All scores of a row are near `level`: sums of bare weights would be far too small or large."""
    problem = Problem((Axis(60, 9),), 1, 1, 1, 8, 8)
    query, operands = make(problem)
    query[..., 0], operands.key[..., 0] = level, 1.0
    out, lse = BLOCKED.attend(problem, operands, 1.0)
    win = oracle.window(1, 9)
    answer = oracle.attend(array(query), array(operands.key), array(operands.value), win, 1.0)
    budget.check("out", array(out), answer.out, "float32")
    budget.check("lse", array(lse), answer.lse, "float32")


@pytest.mark.parametrize("size", [1e-20, 1e15, 1e30, 1e37])
@pytest.mark.parametrize("level", [0.0, -20.0, 40.0])
def test_values_of_any_size_stay_finite(size, level):
    problem = Problem((Axis(60, 9),), 1, 1, 1, 8, 8)
    query, operands = make(problem)
    query[..., 0], operands.key[..., 0] = level, 1.0
    operands = operands._replace(value=operands.value * size)
    out, _ = BLOCKED.attend(problem, operands, 1.0)
    win = oracle.window(1, 9)
    answer = oracle.attend(array(query), array(operands.key), array(operands.value), win, 1.0)
    budget.check("out", array(out) / size, np.asarray(answer.out) / size, "float32")


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 200.0), ("bfloat16", 200.0), ("float64", 1600.0)])
def test_a_bias_of_any_size_leaves_gradients_finite(dtype, size, extra):
    """Also in tiles with rows that do not exist, whose scores are the bias alone."""
    problem = Problem((Axis(13, 3), Axis(11, 5)), 2, 2, 1, 4, 4, dtype=dtype, bias=True, extra=extra)
    query, operands = make(problem)
    operands = operands._replace(bias=operands.bias * size)
    *_, grads, grad_out, grad_lse = run(problem, operands)
    exact = oracle.attend(
        *(array(x) for x in (query, operands.key, operands.value)),
        oracle.window(2, **window(problem)),
        0.4,
        array(operands.bias),
        *(None if x is None else array(x) for x in operands[4:]),
        grad_out=array(grad_out),
        grad_lse=array(grad_lse),
    )
    for name, x in zip(FIELDS, grads, strict=True):
        want = getattr(exact, name)
        if x is None:
            assert want is None
            continue
        # Scores are rounded as many times coarser as they are larger.
        assert np.abs(array(x) - want).max() <= size * budget.allowed(want, dtype), name


@pytest.mark.parametrize("field", ["query", "key", "value"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_with_its_readers(field, poison):
    problem = Problem((Axis(300, 5),), 1, 1, 1, 4, 4)
    _, operands = make(problem)
    clean = BLOCKED.attend(problem, operands, 0.4)[0]
    getattr(operands, field)[0, 150] = poison
    found = BLOCKED.attend(problem, operands, 0.4)[0]
    side = plan.parts(problem)[0].tile[0] + 5
    away = torch.cat([torch.arange(150 - side), torch.arange(150 + side, 300)])
    assert not found[0, 150].isfinite().any()
    torch.testing.assert_close(found[0, away], clean[0, away])
    assert poison == float("inf") or torch.equal(found[0, away], clean[0, away])


@pytest.mark.parametrize("field", [0, 1, 2], ids=["query", "key", "value"])
def test_a_nan_of_one_batch_entry_reaches_no_other(field):
    """Boxes between two strips read of both."""
    problem = Problem((Axis(20, 7), Axis(22, 7)), 2, 2, 2, 16, 16)
    assert any(part.measure(0, 0, 0).runs == 1 for part in plan.parts(problem, True))
    _, operands = make(problem)
    clean = flat(*run(problem, operands)[:3])
    operands[field][1] = float("nan")
    for got, want in zip(flat(*run(problem, operands)[:3]), clean, strict=True):
        assert torch.equal(got[0], want[0])


@pytest.mark.parametrize("problem", BITWISE[1:3], ids=str)
def test_runs_change_no_bit(monkeypatch, problem):
    """Strips computed apart, or all together with boxes that belong to no tile. Over those gradients of
    additional tokens are summed."""
    problem = replace(problem, extra=0)
    _, operands = make(problem)
    tiles = {back: plan.cheapest(problem, back) for back in (False, True)}
    monkeypatch.setattr(plan, "cheapest", lambda _, back: tiles[back])
    found = []
    for call, apart in ((-1, True), (1 << 40, False)):
        monkeypatch.setattr(plan, "CALL", call)
        plan.parts.cache_clear()
        work = [part.measure(0, 0, 0) for part in plan.parts(problem)]
        assert all((one.runs == one.strips) == apart for one in work if one.strips > 1)
        found.append(flat(*run(problem, operands)[:3]))
    assert equal(*found)


@pytest.mark.parametrize("problem", BITWISE, ids=str)
def test_rows_added_up_again_are_the_rows_kept(monkeypatch, problem):
    _, operands = make(problem)
    kept = flat(*run(problem, operands)[:3])
    monkeypatch.setattr(rows, "KEPT", 0)
    plan.parts.cache_clear()
    assert equal(kept, flat(*run(problem, operands)[:3]))


def test_a_shift_is_the_smallest_with_which_every_tile_finds_its_columns():
    draw = random.Random(0)
    for _ in range(300):
        length = draw.randint(1, 60)
        dilation = draw.randint(1, min(3, length))
        size = draw.randint(1, length // dilation)
        axis = Axis(length, size, draw.randint(1, size), dilation, draw.random() < 0.5, draw.randint(1, 3))
        for one, residue in zip(ring.rings(axis, draw.choice((1, 2, 4, 8))), residues(axis), strict=True):
            if one.tiles == 1:
                continue
            starts, stops = axis.seen(residue.rows)
            spans = [
                (starts[first], stops[min(first + one.tile, one.rows) - 1])
                for first in range(0, one.rows, one.tile)
            ]
            reach = ring._Reach(*map(list, zip(*spans, strict=True)), one.step)
            for width in range(max(stop - start for start, stop in spans), one.columns + 1):
                least = max(
                    t * one.step - a - width * (a >= one.columns - width) for t, (a, _) in enumerate(spans)
                )
                most = min(t * one.step + width - b + width * (b <= width) for t, (_, b) in enumerate(spans))
                assert ring._shift(reach, one.columns, width) == (least if least <= most else None)


def test_long_axes_have_the_rings_and_classes_that_their_own_tiles_tell(monkeypatch):
    """They are worked out on a shorter axis."""
    draw, long = random.Random(0), 0
    for _ in range(60):
        dilation, size = draw.choice((1, 1, 2, 3)), draw.randint(1, draw.choice((4, 12, 40)))
        stride = draw.randint(1, size) if draw.random() < 0.5 else 1
        length = size * dilation + draw.randint(0, draw.choice((60, 1200)))
        axis = Axis(length, size, stride, dilation, draw.random() < 0.5, draw.choice((1, 1, 2, 3)))
        for tile, units in product((1, 4, 7, 16, 32), (ring.WHOLES, ring.SINGLE)):
            found = []
            for short in (ring.SHORT, (1 << 30, 0)):
                with monkeypatch.context() as patch:
                    patch.setattr(ring, "SHORT", short)
                    ring.rings.cache_clear()
                    rings = ring.rings(axis, tile, units)
                    pairs = zip(residues(axis), rings, strict=True)
                    tables = [ring.table(*pair, size, ring.CPU) for pair in pairs]
                found.append((rings, [[x.tolist() for x in table[:-1]] for table in tables]))
            assert found[0] == found[1], (axis, tile, units)
            long += tiling.shortened(axis, tile, *ring.SHORT)[2] > 0
    ring.rings.cache_clear()
    assert long > 100


@pytest.mark.parametrize(
    "axis",
    [Axis(79, 79, causal=True), Axis(97, 96), Axis(123, 3, output_stride=2), Axis(293, 96, dilation=3)],
    ids=str,
)
def test_boxes_as_wide_as_their_axis(axis):
    """Their last one holds slots that are past the axis once more than there are columns."""
    check(Problem((axis,), batch=2, heads=4, kv_heads=2, dim=2, value_dim=3, bias=True, dtype="float64"))


@given(problems(longest=(130, 16, 6)))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_axes_of_several_tiles_with_every_option(problem):
    check(problem)


@pytest.mark.parametrize("length", [96, 97])
def test_gradients_that_are_written_once_are_whole(length):
    """Every key is seen or none is left unwritten: with an output stride some keys are seen by no query."""
    for axis in (Axis(length, 9), Axis(length, 9, causal=True), Axis(length, 3, output_stride=7)):
        problem = Problem((axis, replace(axis, length=40)), 1, 2, 1, 4, 4)
        torch.full((1 << 18,), float("nan"))
        check(problem)


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")


@LINUX
def test_large_results_ask_for_huge_pages():
    """Memory that is mapped anew in every call is advised to come in huge pages, unless it is not to."""
    for flagged in (True, False):
        # So large that no memory freed before has room for it, which may have been advised on.
        x = fresh.empty((4 * fresh.LARGE,), torch.float32, torch.device("cpu"), huge=flagged)
        middle, flags = x.data_ptr() + x.nbytes // 2, None
        for line in Path("/proc/self/smaps").read_text().splitlines():
            head = line.split(" ", 1)[0]
            if "-" in head:
                start, stop = (int(number, 16) for number in head.split("-"))
            elif head == "VmFlags:" and start <= middle < stop:
                flags = line.split()[1:]
        assert flags is not None
        assert ("hg" in flags) == flagged


def test_large_zeros_are_zero():
    """Whatever their pages held."""
    size = fresh.LARGE // 4 + 1001
    for _ in range(3):
        x = fresh.zeros((size,), torch.float32, torch.device("cpu"))
        assert not x.any()
        x.fill_(1)
        assert not fresh.drop(x) or not x.any()


def test_small_tensors_that_are_large_together_come_as_zeros():
    size = fresh.LARGE // 12 + 1001
    for _ in range(3):
        x = fresh.empty((size,), torch.float32, torch.device("cpu")).fill_(5)
        assert not fresh.drop(x)
        assert fresh.drop(x, 3) != bool(x.any())


@pytest.mark.parametrize("dim", [5, 16])
@pytest.mark.parametrize(
    "problem", [Problem((Axis(1100, 9),), 2, 3, 3), Problem((Axis(1500, 21, 1, 2),), 1, 4, 2)], ids=str
)
def test_keys_that_are_copied_chunk_by_chunk_change_no_bit(monkeypatch, problem, dim):
    """Of chunks of unequal sizes, in the first call and the next."""
    problem = replace(problem, dim=dim, value_dim=dim)
    _, operands = make(problem)
    (part, *_) = plan.parts(problem)
    monkeypatch.setattr(plan, "CHUNK", 2 * 4 * part.rows * part.rings[0].width)
    legs, leg = [], plan.Part.leg
    monkeypatch.setattr(plan.Part, "leg", lambda *given: legs.append(leg(*given)) or legs[-1])
    arena.clear()
    found = [BLOCKED.attend(problem, operands, 0.4) for _ in range(2)]
    assert len({one.boxes for one in legs}) > 1
    assert dim == 16 or any(one.before for one in legs)
    monkeypatch.setattr(forward, "_is_near", lambda *_: False)
    arena.clear()
    assert all(equal(one, BLOCKED.attend(problem, operands, 0.4)) for one in found)
