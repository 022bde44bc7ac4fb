"""The tables that kernels read say what `Axis.keys` and `Axis.queries` say."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies
from vicinal import Axis, Problem
from vicinal.catalog import named
from vicinal.metal.geometry import TILE_ROWS, layout, whole


def entries(found):
    return [found.table[place : place + 4] for place in range(0, len(found.table), 4)]


def touched(axis, inverse, row):
    return axis.queries(row) if inverse else axis.keys(row)


@settings(max_examples=300, deadline=None)
@given(axis=strategies.axes(80), inverse=st.booleans())
def test_rows(axis, inverse):
    found = layout(Problem((axis,)), inverse)
    numbers, table = found.geometry, entries(found)
    for row in range(numbers.rows[0]):
        first, count, _, relative = table[numbers.row_table[0] + row]
        columns = touched(axis, inverse, row)
        assert count == len(columns)
        step = numbers.column_step[0]
        assert list(columns) == [first + place * step for place in range(count)]
        for place, column in enumerate(columns):
            key, output = (row, column) if inverse else (column, row)
            distance = (key - output * axis.output_stride) // axis.dilation + axis.size - 1
            assert relative + place * numbers.relative_step[0] == distance
            slot = distance - table[numbers.output_table[0] + output][3]
            assert axis.keys(output)[slot] == key


@settings(max_examples=300, deadline=None)
@given(axis=strategies.axes(80), inverse=st.booleans())
def test_tiles_hold_every_row_once_and_all_that_it_touches(axis, inverse):
    found = layout(Problem((axis,)), inverse)
    numbers, table = found.geometry, entries(found)
    seen = []
    for first, column, place, count in table[numbers.tile_table[0] :][: numbers.tiles[0]]:
        rows = range(first, numbers.rows[0], numbers.row_step[0])[: 1 << numbers.tile_bits[0]]
        box = range(column, column + count * numbers.column_step[0], numbers.column_step[0])
        seen += rows
        for row in rows:
            columns = touched(axis, inverse, row)
            assert not columns or (columns[0] in box and columns[-1] in box)
            _, many, start, _ = table[numbers.row_table[0] + row]
            assert not many or box.index(columns[0]) == start - place
    assert sorted(seen) == list(range(numbers.rows[0]))


def test_a_tile_has_the_rows_of_its_simdgroups():
    for axes in ((Axis(100, 7),), (Axis(9, 3), Axis(50, 5)), (Axis(4, 3), Axis(4, 3), Axis(4, 3))):
        sides = layout(Problem(axes)).geometry.tile_bits
        assert 1 << sum(sides) == TILE_ROWS


def test_strides_are_row_major():
    numbers = layout(named("causal_3d").problem).geometry
    assert (numbers.slot_stride, numbers.slot_count) == ((12, 4, 1), 24)
    assert (numbers.relative_stride, numbers.relative_count) == ((35, 7, 1), 105)


def test_additional_tokens_see_all_outputs():
    problem = named("extra").problem
    found = whole(problem)
    assert found.geometry.row_count == problem.extra
    assert entries(found) == [(0, 72, 0, 0)] * 5 + [(0, 0, 0, 72)]
