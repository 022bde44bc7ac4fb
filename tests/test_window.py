"""The window rule against worked examples and against a rule written from the definition."""

from itertools import product

import pytest

from tests import oracle
from vicinal import Axis

# length, size, stride, dilation, causal: keys of every query
EXAMPLES = {
    (10, 4, 1, 1, False): [range(0, 4)] * 3
    + [range(1, 5), range(2, 6), range(3, 7), range(4, 8), range(5, 9)]
    + [range(6, 10)] * 2,
    (12, 5, 2, 1, False): [range(0, 5)] * 2
    + [range(1, 6)] * 2
    + [range(3, 8)] * 2
    + [range(5, 10)] * 2
    + [range(7, 12)] * 4,
    (11, 5, 3, 1, False): [range(0, 5)] * 3 + [range(2, 7)] * 3 + [range(5, 10)] * 3 + [range(6, 11)] * 2,
    (10, 4, 4, 1, False): [range(0, 4)] * 4 + [range(4, 8)] * 4 + [range(6, 10)] * 2,
    (11, 3, 1, 3, False): [
        *((0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8)),
        *((3, 6, 9), (4, 7, 10), (2, 5, 8), (3, 6, 9), (4, 7, 10)),
    ],
    (13, 4, 2, 2, False): [
        *((0, 2, 4, 6), (1, 3, 5, 7), (0, 2, 4, 6), (1, 3, 5, 7), (2, 4, 6, 8), (3, 5, 7, 9), (2, 4, 6, 8)),
        *((3, 5, 7, 9), (6, 8, 10, 12), (5, 7, 9, 11), (6, 8, 10, 12), (5, 7, 9, 11), (6, 8, 10, 12)),
    ],
    (8, 4, 1, 1, True): [(0,), (0, 1), (0, 1, 2), *(range(first, first + 4) for first in range(5))],
    (12, 5, 3, 1, True): [
        *((0,), (0, 1), (0, 1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5), (4, 5, 6), (4, 5, 6, 7)),
        *((4, 5, 6, 7, 8), (7, 8, 9), (7, 8, 9, 10), (7, 8, 9, 10, 11)),
    ],
    (10, 4, 4, 1, True): [
        *(
            (0,),
            (0, 1),
            (0, 1, 2),
            (0, 1, 2, 3),
            (4,),
            (4, 5),
            (4, 5, 6),
            (4, 5, 6, 7),
            (6, 7, 8),
            (6, 7, 8, 9),
        ),
    ],
    (13, 4, 2, 2, True): [
        *((0,), (1,), (0, 2), (1, 3), (0, 2, 4), (1, 3, 5), (0, 2, 4, 6), (1, 3, 5, 7)),
        *((4, 6, 8), (5, 7, 9), (4, 6, 8, 10), (5, 7, 9, 11), (6, 8, 10, 12)),
    ],
}


def every_axis(longest, output_strides=(1,)):
    for length in range(1, longest + 1):
        for dilation in range(1, length + 1):
            for size in range(1, length // dilation + 1):
                for stride, causal, step in product(range(1, size + 1), (False, True), output_strides):
                    yield Axis(length, size, stride, dilation, causal, step)


@pytest.mark.parametrize("numbers", EXAMPLES, ids=str)
def test_worked_example(numbers):
    axis = Axis(*numbers)
    assert [list(axis.keys(query)) for query in range(axis.outputs)] == [
        list(keys) for keys in EXAMPLES[numbers]
    ]


def test_keys_match_the_definition_for_every_short_axis():
    count = 0
    for axis in every_axis(16, (1, 2, 3)):
        rule = (axis.length, axis.size, axis.stride, axis.dilation, axis.causal)
        for output in range(axis.outputs):
            assert list(axis.keys(output)) == oracle.visible(*rule, output * axis.output_stride), (
                axis,
                output,
            )
        count += 1
    assert count > 7_000


def test_queries_are_the_inverse_of_keys_for_every_short_axis():
    for axis in every_axis(16, (1, 2, 3)):
        rule = (axis.length, axis.size, axis.stride, axis.dilation, axis.causal)
        seen = [oracle.visible(*rule, output * axis.output_stride) for output in range(axis.outputs)]
        for key in range(axis.length):
            expected = [output for output in range(axis.outputs) if key in seen[output]]
            assert list(axis.queries(key)) == expected, (axis, key)
            assert len(expected) < 2 or axis.queries(key).step == axis.period


def test_reach_holds_what_outputs_see_and_no_less():
    for axis in every_axis(9, (1, 2)):
        for start, stop, step in product(range(axis.outputs), range(axis.outputs + 1), (1, 2, axis.period)):
            outputs = range(start, stop, step)
            seen = sorted({key for output in outputs for key in axis.keys(output)})
            reach = axis.reach(outputs)
            assert set(seen) <= set(reach), (axis, outputs)
            assert [*reach[:1], *reach[-1:]] == [*seen[:1], *seen[-1:]], (axis, outputs)


def test_every_output_sees_itself_or_its_leader_window():
    for axis in every_axis(12):
        if axis.causal:
            assert all(axis.keys(query)[-1] == query for query in range(axis.length))
        else:
            assert all(len(axis.keys(query)) == axis.size for query in range(axis.length))


def test_covers_means_all_pairs():
    for axis in every_axis(8, (1, 2)):
        everything = all(len(axis.keys(output)) == axis.length for output in range(axis.outputs))
        assert axis.covers <= everything
        if axis.stride == 1 and not axis.causal:
            assert axis.covers == everything
