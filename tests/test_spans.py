"""Tables say what `Axis` says, and never decrease."""

import pytest

from tests.test_window import every_axis
from vicinal import spans


@pytest.mark.parametrize(("table", "rule"), [(spans.forward, "keys"), (spans.inverse, "queries")])
def test_spans_hold_every_interval_and_are_monotone(table, rule):
    for axis in every_axis(10, (1, 2, 3)):
        rows = set()
        for span in table(axis):
            rows.update(span.rows)
            assert list(span.starts) == sorted(span.starts)
            assert list(span.stops) == sorted(span.stops)
            for row, start, stop in zip(span.rows, span.starts, span.stops, strict=True):
                assert list(span.columns[start:stop]) == list(getattr(axis, rule)(row)), (axis, row)
        assert rows == set(range(axis.outputs if rule == "keys" else axis.length))


def test_windows_and_relative_positions():
    for axis in every_axis(10, (1, 2)):
        first, count = spans.windows(axis)
        for output, entry in enumerate(spans.relative(axis)):
            keys = axis.keys(output)
            assert (first[output], count[output]) == (keys[0], len(keys))
            for slot, key in enumerate(keys):
                assert entry + slot == (key - output * axis.output_stride) // axis.dilation + axis.size - 1
            assert entry >= 0
            assert entry + axis.size <= 2 * axis.size - 1
