"""Which problems keep slopes on Hopper, and where these lie, without a GPU or Triton."""

from dataclasses import replace
from itertools import product
from math import inf, prod

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.triton.geometry import visits, walked
from tests.triton.keeping import planned
from vicinal import Axis, Problem
from vicinal import settings as vicinal_settings
from vicinal.triton import hopper_counts, hopper_kept_plan, hopper_plan
from vicinal.triton.hopper_spec import Spec

# What `benchmarks/hopper.py` calls these, and others like them.
LARGE = {
    "a1": Problem((Axis(32768, 2048),), heads=24, kv_heads=24, dim=128, value_dim=128),
    "a256": Problem((Axis(32768, 2048, 256),), heads=24, kv_heads=24, dim=128, value_dim=128),
    "b1": Problem((Axis(256, 80),) * 2, heads=24, kv_heads=24, dim=128, value_dim=128),
    "b16": Problem((Axis(256, 80, 16),) * 2, heads=24, kv_heads=24, dim=128, value_dim=128),
}
LARGE = {name: replace(case, dtype="bfloat16", gradients=True) for name, case in LARGE.items()}


@pytest.fixture
def workspace(monkeypatch):
    """Sets the variable as it would stand at the start of a process."""

    def set_to(value):
        monkeypatch.setenv("VICINAL_WORKSPACE", value)
        vicinal_settings.workspace.cache_clear()

    monkeypatch.delenv("VICINAL_WORKSPACE", raising=False)
    vicinal_settings.workspace.cache_clear()
    yield set_to
    monkeypatch.undo()
    vicinal_settings.workspace.cache_clear()


def memory(case, found):
    """Bytes of the slopes that are there at a time."""
    heads, group = case.batch * case.kv_heads, case.heads // case.kv_heads
    each = -(-heads // found.turns) * group * found.blocks * hopper_kept_plan.BLOCK
    return found.rooms * each


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *product(
            LARGE,
            (
                {},
                {"dtype": "float16"},
                {"batch": 3},
                {"dim": 96, "value_dim": 96},
                {"dim": 256, "value_dim": 256, "heads": 12, "kv_heads": 12},
            ),
        ),
        ("a1", {"kv_heads": 8}),
        ("a256", {"kv_heads": 12, "batch": 2}),
    ],
    ids=str,
)
def test_keeps_slopes_of_large_problems(workspace, name, options):
    case = replace(LARGE[name], **options)
    found = hopper_kept_plan.kept(case)
    # Memory is what operands, output and gradients take, once more.
    queries, keys = prod(case.outputs) * case.heads, prod(case.lengths) * case.kv_heads
    own = 2 * 2 * case.batch * (queries + keys) * (case.dim + case.value_dim)
    assert hopper_kept_plan._room(hopper_plan.three_axes(case)) == own
    assert 0 < memory(case, found) <= own
    # No more turns than memory asks for: with one fewer it would not suffice.
    if found.turns > 1:
        fewer = found._replace(turns=found.turns - 1)
        assert memory(case, fewer) > own


@pytest.mark.parametrize(("dim", "rooms"), [(128, None), (256, 1), (200, 1)])
def test_wide_heads_keep_slopes_of_a_volume_and_of_one_head(workspace, dim, rooms):
    axes = (Axis(30, 18), Axis(48, 24), Axis(80, 24))
    case = replace(LARGE["a1"], axes=axes, dim=dim, value_dim=256, heads=12, kv_heads=12)
    found = hopper_kept_plan.kept(case)
    assert (found and (found.rooms, found.turns)) == (rooms and (rooms, 12))


AXES = {
    "dilation": (Axis(32768, 2048, dilation=2),),
    "output stride": (Axis(32768, 2048, output_stride=2),),
    "a volume": (Axis(30, 18), Axis(48, 24), Axis(80, 24)),
}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_keeps_no_slopes_where_kernels_cannot(workspace, axes):
    assert planned(LARGE["a1"], 1)
    assert planned(replace(LARGE["a1"], axes=axes), 1) is None
    assert hopper_kept_plan.kept(replace(LARGE["a1"], axes=axes)) is None


def unbounded(_):
    """Bytes."""
    return 1 << 50


@pytest.mark.parametrize(
    ("options", "bound", "value"),
    [
        ({"dim": 64, "value_dim": 64}, "NARROWEST", 64),
        ({"dim": 88}, "NARROWEST", 88),
        ({"value_dim": 88}, "NARROWEST", 88),
        # Boxes on a grid are many more than those off it.
        ({"axes": (Axis(256, 40),) * 2}, "MOST", inf),
        ({"axes": (Axis(32768, 512),)}, "FEWEST", 0),
        ({"kv_heads": 12, "axes": (Axis(256, 80),) * 2}, "_room", unbounded),
        ({"axes": (Axis(65536, 65536, causal=True),)}, "_room", unbounded),
    ],
    ids=lambda x: x.__name__ if callable(x) else str(x),
)
def test_keeps_no_slopes_where_one_bound_says_so(workspace, monkeypatch, options, bound, value):
    case = replace(LARGE["a1"], **options)
    monkeypatch.setattr(hopper_kept_plan, "_kept", hopper_kept_plan._kept.__wrapped__)
    assert hopper_kept_plan.kept(case) is None
    monkeypatch.setattr(hopper_kept_plan, bound, value)
    assert hopper_kept_plan.kept(case) is not None


@pytest.mark.parametrize("dims", [(136, 96), (96, 136), (192, 192), (128, 256)])
def test_keeps_no_slopes_where_boxes_are_narrower_than_blocks(workspace, dims):
    assert planned(replace(LARGE["a1"], dim=dims[0], value_dim=dims[1]), 1) is None


@pytest.mark.parametrize("dims", [(256, 256), (200, 96), (256, 128)])
def test_only_keys_leave_slopes_where_values_have_a_kernel_of_their_own(workspace, dims):
    found = planned(replace(LARGE["a1"], dim=dims[0], value_dim=dims[1]), 1)
    assert found.keys.spec.keeps
    assert (found.keys.spec.wants_key, found.keys.spec.wants_value) == (True, False)
    # A sum takes all registers: each of two warpgroups adds to one box of queries.
    assert (found.queries.spec.together, found.queries.spec.each) == (2, 1)


def test_keeps_no_slopes_for_lack_of_one_more_byte(workspace, monkeypatch):
    case = LARGE["a1"]
    one = 2 * hopper_kept_plan.kept(case).blocks * hopper_kept_plan.BLOCK
    monkeypatch.setattr(hopper_kept_plan, "_kept", hopper_kept_plan._kept.__wrapped__)
    for room, turns in ((one, 24), (2 * one - 1, 24), (2 * one, 12), (24 * one, 1)):
        monkeypatch.setattr(hopper_kept_plan, "_room", lambda _, room=room: room)
        assert hopper_kept_plan.kept(case).turns == turns
    monkeypatch.setattr(hopper_kept_plan, "_room", lambda _: one - 1)
    assert hopper_kept_plan.kept(case) is None
    # Slopes of a wide head gain in half of that.
    case = replace(case, dim=256, value_dim=256)
    assert hopper_kept_plan.kept(case)[-2:] == (24, 1)
    monkeypatch.setattr(hopper_kept_plan, "_room", lambda _: one // 2 - 1)
    assert hopper_kept_plan.kept(case) is None


def test_keeps_no_slopes_in_a_process_without_workspace(workspace):
    workspace("0")
    assert hopper_kept_plan.kept(LARGE["a1"]) is None
    workspace("1")
    assert hopper_kept_plan.kept(LARGE["a1"]) is not None


def line(axis, rows, columns, boxes):
    """A kernel along one axis, with so many boxes of rows a tile."""
    return Spec(
        rules=(Axis(1, 1), Axis(1, 1), replace(axis, length=0)),
        rows=(1, 1, rows),
        columns=(1, 1, columns),
        tile=(1, 1, rows * boxes),
        split=2,
        masked=(False, False, True),
        dim=128,
        value_dim=128,
        stages=1,
        slots=(1, 1, 1),
    )


def small_axes(length):
    for size in range(1, length + 1):
        for stride, causal in product(range(1, size + 1), (False, True)):
            yield Axis(length, size, stride, 1, causal)


@pytest.mark.parametrize("length", [*range(1, 15), 23])
@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (8, 2), (2, 8), (1, 4)])
def test_boxes_of_queries_that_a_box_of_keys_visits_are_those_that_meet_it(kernels, length, queries, keys):
    for axis in small_axes(length):
        whole = (1, 1, length), (1, 1, length)
        tiles = -(-length // (2 * keys))
        left = [(at[2], start[2]) for _, start, at in visits(
            kernels, line(axis, keys, queries, 2), tiles, whole, True
        )]  # fmt: skip
        tiles = -(-length // (4 * queries))
        read = [(start[2], at[2]) for _, start, at in visits(
            kernels, line(axis, queries, keys, 4), tiles, whole, False
        ) if start[2] < length]  # fmt: skip
        # A box of queries meets all boxes of keys from the first key that it sees to the last.
        met = {}
        for first in range(0, length, queries):
            seen = [key for query in range(first, min(first + queries, length)) for key in axis.keys(query)]
            met[first] = range(min(seen) // keys * keys, max(seen) + 1, keys)
        wanted = [(first, key) for first, found in met.items() for key in found]
        assert sorted(left) == sorted(read) == wanted, axis
        counts = hopper_kept_plan._met(axis, queries, keys)
        assert counts == [len(found) for found in met.values()], axis
        # Places, in turn, of those that one box of queries meets differ.
        most = max(counts)
        for found in met.values():
            assert len({key // keys % most for key in found}) == len(found), axis


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("length", [*range(1, 13), 29])
def test_counts_on_a_grid_are_those_of_a_walk(kernels, length, inverse):
    window = kernels[0]
    seen_by = window.viewers if inverse else window.windows
    for axis, (rows, columns) in product(small_axes(length), ((4, 4), (2, 8), (8, 2))):
        spec = line(axis, rows, columns, 2)
        visited = full = 0
        for tile, start, at in visits(
            kernels, spec, -(-length // (2 * rows)), ((1, 1, length),) * 2, inverse
        ):
            if start[2] >= length:
                continue
            visited += 1
            seen = [seen_by(row, tile.lengths, spec) for row in _box_rows(start, rows, length)]
            full += all(first[2] <= at[2] and at[2] + columns <= stop[2] for first, stop in seen)
        found = hopper_counts.walked_counts(axis, 2 * rows, 2, columns, inverse, grid=True)
        assert found == (visited, full), axis


def _box_rows(start, rows, length):
    return [(0, 0, row) for row in range(start[2], min(start[2] + rows, length))]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_counts_of_long_axes_on_a_grid_are_exact(causal, inverse):
    shapes = ((8, 2, 4), (4, 1, 16), (2, 1, 8), (16, 4, 8))
    for length, size, stride in product((500, 777, 1021), (9, 30), (1, 4, 7)):
        axis = Axis(length, size, stride, 1, causal)
        for tile, parts, columns in shapes:
            found = hopper_counts.axis_counts(axis, tile, parts, columns, inverse, grid=True)
            assert found == hopper_counts.walked_counts(axis, tile, parts, columns, inverse, grid=True)


@st.composite
def keeping_problems(draw):
    """Along one or two axes, of which any may be flat."""
    rank = draw(st.integers(1, 3))
    flat = draw(st.integers(0, 2)) if rank == 3 else None
    axes = []
    for number in range(rank):
        length = 1 if number == flat else draw(st.integers(1, 150 if rank == 1 else 20))
        size = draw(st.integers(1, length))
        axes.append(Axis(length, size, draw(st.integers(1, size)), 1, draw(st.booleans())))
    return Problem(tuple(axes), dim=96, value_dim=128, dtype="float16", batch=draw(st.integers(1, 2)))


@settings(max_examples=40, deadline=None)
@given(case=keeping_problems())
@example(case=Problem((Axis(16, 5), Axis(1, 1), Axis(20, 9)), dim=128, dtype="float16", batch=2))
@example(case=Problem((Axis(20, 9, 3, 1, True), Axis(18, 11)), dim=128, dtype="float16", batch=2))
def test_kept_slopes_are_all_visible_pairs_and_read_from_where_they_were_left(kernels, case):
    hk = kernels[2]
    found = planned(case, 1)
    # Tiles of some batches fit on no first axis.
    assume(found is not None)
    spec, programs = found.keys
    axes = (Axis(1, 1),) * (3 - case.rank) + case.axes
    visible = sorted(
        (output, key)
        for output in product(*(range(axis.outputs) for axis in axes))
        for key in product(*(axis.keys(at) for axis, at in zip(axes, output, strict=True)))
    )
    one = replace(case, batch=1)
    of_one = found.keys._replace(programs=programs // case.batch)
    assert sorted(walked(kernels, one, of_one, True)) == visible
    whole = (tuple(axis.length for axis in axes),) * 2
    left = {
        (at, start): hk.block_of(at, 0, spec.columns, whole[0], spec) + hk.slot_of(start, spec.rows, spec)
        for _, start, at in visits(kernels, *of_one, whole, True)
    }
    # Keys past the end are hidden.
    ends = [[x + side for x, side in zip(start, spec.rows, strict=True)] for _, start in left]
    overhangs = any(x > extent for end in ends for x, extent in zip(end, whole[0], strict=True))
    assert spec.ragged or not overhangs
    sums, programs = found.queries
    assert (sums.rows, sums.columns) == (spec.columns, spec.rows)
    read = {
        (start, at): hk.block_of(start, 0, sums.rows, whole[0], sums) + hk.slot_of(at, sums.columns, sums)
        for _, start, at in visits(kernels, sums, programs // case.batch, whole, False)
        if all(x < extent for x, extent in zip(start, whole[0], strict=True))
    }
    assert left == read
    assert len({*left.values()}) == len(left)
    assert {*left.values()} <= {*range(found.blocks)}
    if case.batch > 1:
        # Behind the first axis lies the next batch entry.
        assert whole[0][0] % spec.tile[0] == 0 == whole[0][0] % sums.tile[0]
