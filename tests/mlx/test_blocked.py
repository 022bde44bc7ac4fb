"""Tiles and pieces: any tile gives the same numbers, boxes hold what rows see, and memory is linear."""

from dataclasses import replace
from itertools import pairwise, product
from math import prod
from struct import pack, unpack

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mlx import problems
from tests.strategies import axes
from vicinal import Axis, Problem
from vicinal.catalog import MODELS, named
from vicinal.mlx import blocks, boxes, gathers, neighborhood_attention, ops, tiles


@problems.examples(300)
@given(axis=axes(40), rows=st.integers(1, 12), relative=st.booleans())
def test_boxes_hold_what_rows_see(axis, rows, relative):
    """Every output has a row that sees exactly its keys, and every key is held where somebody sees it."""
    cut = boxes.cut(axis, rows, relative)
    keys = [cut.keys[tile * cut.columns : (tile + 1) * cut.columns] for tile in range(cut.tiles)]
    per_group = cut.tiles // cut.groups
    seen_at = {key: set() for key in range(axis.length)}
    for output in range(axis.outputs):
        group, member = output % cut.groups, output // cut.groups
        tile = group * per_group + member // rows
        first, last, entry = cut.kinds[cut.kind[tile]][member % rows]
        assert list(keys[tile][first:last]) == list(axis.keys(output))
        for column in range(first, last):
            seen_at[keys[tile][column]].add(tile * cut.columns + column)
        if relative:
            token = output * axis.output_stride
            assert entry == (keys[tile][first] - token) // axis.dilation + axis.size - 1
    bounds = sorted({0, cut.tiles // 3, cut.tiles // 2, cut.tiles})
    ranges = tuple(pairwise(bounds))
    for start, stop in (*ranges, (0, cut.tiles)):
        keys_of_part, holders = boxes.part(axis, rows, relative, start, stop)
        found = {key: set(held) - {boxes.FREE} for key, held in zip(keys_of_part, holders, strict=True)}
        low, high = start * cut.columns, stop * cut.columns
        for key, seen in seen_at.items():
            assert {at - low for at in seen if low <= at < high} <= found.get(key, set())
        assert all(cut.keys[low + at] == key for key, held in found.items() for at in held)
    everywhere = [key for start, stop in ranges for key in boxes.part(axis, rows, relative, start, stop)[0]]
    for key, held in enumerate(boxes.parts(axis, rows, relative, ranges)):
        assert {at for at in held if at != boxes.FREE} == {
            at for at, other in enumerate(everywhere) if other == key
        }


@problems.examples(60)
@given(both=st.tuples(axes(9), axes(7)), rows=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_hidden_scores(both, rows):
    cuts = [boxes.cut(axis, extent, False) for axis, extent in zip(both, rows, strict=True)]
    flat = boxes.hidden(cuts, pack("f", -1.0))
    found = np.array(unpack(f"{len(flat) // 4}f", flat)).reshape(
        *(len(cut.kinds) for cut in cuts), *rows, *(cut.columns for cut in cuts)
    )
    for kinds in product(*(range(len(cut.kinds)) for cut in cuts)):
        for members in product(*map(range, rows)):
            seen = [cut.kinds[k][m] for cut, k, m in zip(cuts, kinds, members, strict=True)]
            (first, last, _), (left, right, _) = seen
            want = np.full(found.shape[-2:], -1.0)
            want[first:last, left:right] = 0.0
            assert np.array_equal(found[(*kinds, *members)], want)


@problems.examples(100)
@given(
    problem=problems.problems(("float32",)),
    rows=st.tuples(*[st.integers(1, 7)] * 3),
    budget=st.sampled_from((1, 1 << 12, 1 << 15, 1 << 24)),
)
def test_any_tile_and_any_piece(problem, rows, budget):
    """Forward and gradients do not depend on how the work is cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "rows", lambda problem, gradients: rows[: problem.rank])
        patch.setattr(blocks, "BUDGET", budget)
        problems.check(problem, "blocked")


@problems.examples(25)
@given(problem=problems.problems(("float32",)))
def test_walks_in_parts(problem):
    """One gathered row at a time is all of them at once."""
    problem = replace(problem, extra=0, bias=False)
    generator = np.random.default_rng(0)
    head = (problem.batch, *problem.outputs, problem.heads)
    x = problems.random(generator, (*head, problem.dim))
    y = problems.random(generator, (problem.batch, *problem.lengths, problem.kv_heads, problem.dim))
    weights = problems.random(generator, (*head, prod(problem.window)))
    walks = (
        lambda step: gathers.dot(problem, x, y, -1.0, step),
        lambda step: gathers.mix(problem, weights, y, step),
        lambda step: gathers.mix_back(problem, weights, x, step),
    )
    for walk in walks:
        assert np.allclose(np.array(walk(1)), np.array(walk(None)), rtol=1e-5, atol=1e-5)


counts_memory = pytest.mark.skipif(ops.device() != "cpu", reason="what a GPU has queued stays allocated")


def peak(function, *arrays):
    """Bytes that a call holds at most, besides its inputs."""
    mx.eval(arrays)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(function(*arrays))
    return mx.get_peak_memory() - before


@counts_memory
@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [((16384,), (15, 127)), ((96, 96), (5, 15)), ((20, 20, 20), (3, 5))],
    ids=("1d", "2d", "3d"),
)
def test_memory_does_not_grow_with_the_window(lengths, sizes):
    """A few times the operands and pieces of work, whatever the window."""
    arrays = [mx.random.normal((1, *lengths, 2, 16)) for _ in range(4)]
    for size in sizes:
        attend = lambda q, k, v, size=size: neighborhood_attention(q, k, v, size, backend="blocked")  # noqa: E731
        assert peak(attend, *arrays[:3]) < 8 * arrays[0].nbytes + 6 * blocks.BUDGET
        gradients = lambda *x, attend=attend: mx.vjp(attend, list(x[:3]), [x[3]])[1]  # noqa: E731
        assert peak(gradients, *arrays) < 16 * arrays[0].nbytes + 6 * blocks.BUDGET


@counts_memory
def test_kept_memory_is_the_result():
    """After a gradient nothing of its graph stays alive."""
    q, k, v = (mx.random.normal((1, 32, 32, 2, 16)) for _ in range(3))
    loss = mx.grad(lambda *x: neighborhood_attention(*x, 7, backend="blocked").sum(), argnums=(0, 1, 2))
    mx.eval(loss(q, k, v))
    before = mx.get_active_memory()
    grads = loss(q, k, v)
    mx.eval(grads)
    assert mx.get_active_memory() - before <= 3 * q.nbytes + 65536


@pytest.mark.parametrize("case", [c for c in MODELS if prod(c.problem.lengths) < 20000], ids=lambda c: c.name)
@pytest.mark.parametrize("gradients", [False, True])
def test_tiles_of_published_models_are_within_bounds(case, gradients):
    """Tiles are chosen for them all, none larger than the limit unless it is a single row."""
    problem = replace(case.problem, device="cpu")
    rows = tiles.rows(problem, gradients)
    columns = prod(boxes.widest(axis, extent) for axis, extent in zip(problem.axes, rows, strict=True))
    scores = prod(rows) * columns * problem.heads // problem.kv_heads
    assert scores <= tiles.LARGEST or max(rows) == 1


def test_tiles_follow_the_machine(monkeypatch):
    """Fewest scores on a reference BLAS; matrices of some size where products are fast."""
    problem = Problem((Axis(128, 7), Axis(128, 7)), heads=4, kv_heads=4)
    slow = prod(tiles.rows(problem, False))
    fast = prod(tiles.rows(replace(problem, device="metal"), False))
    assert slow <= 8
    assert 16 <= fast <= 256


def test_large_scores_do_not_overflow():
    problem = named("odd_2d").problem
    operands = problems.operands(problem)
    operands["query"] = operands["query"] * 1e4
    out, lse = problems.call(problem, operands, backend="blocked", return_lse=True)
    exact = problems.exact(problem, operands)
    assert np.abs(problems.array(out) - exact.out).max() < 1e-2
    assert np.abs(problems.array(lse) / exact.lse - 1).max() < 1e-5


def test_keys_that_nobody_sees_get_zero():
    """Exactly, although boxes hold some of them."""
    q, k, v = (mx.random.normal((1, 40, 2, 8)) for _ in range(3))
    attend = lambda k, v: neighborhood_attention(q, k, v, 3, output_stride=7, backend="blocked").sum()  # noqa: E731
    axis = Axis(40, 3, output_stride=7)
    unseen = [key for key in range(40) if not axis.queries(key)]
    for grad in mx.grad(attend, argnums=(0, 1))(k, v):
        assert len(unseen) > 10
        assert not np.array(grad)[:, unseen].any()
        assert np.array(grad).any()


def test_a_bias_of_any_size_leaves_gradients_finite():
    """Also in tiles with rows that do not exist, whose scores are the bias alone."""
    axes = Axis(29, 5), Axis(31, 5)
    problem = Problem(axes, heads=2, kv_heads=2, dim=4, value_dim=4, bias=True, extra=3)
    given = problems.operands(problem)
    given["bias"] = given["bias"] * 200

    def gradients(backend):
        loss = lambda given: problems.call(problem, given, backend=backend).square().sum()  # noqa: E731
        return mx.grad(loss)(given)

    found, want = gradients("blocked"), gradients("reference")
    for name in given:
        assert mx.allclose(found[name], want[name], rtol=1e-3, atol=1e-3), name
