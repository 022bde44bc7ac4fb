"""What the kernels cost does not grow."""

import json

import pytest

from tests.metal import checking, counting

pytestmark = pytest.mark.skipif(checking.HAS_METAL, reason="the checker counts on Linux")
BUDGETS = json.loads(counting.FILE.read_text())


NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if "2d_64" in name else name for name in counting.PROBLEMS
]


@pytest.mark.parametrize("name", NAMES)
def test_cost_stays_within_the_budget(name):
    counted = counting.count(counting.PROBLEMS[name])
    over = {
        (direction, counter): (count, BUDGETS[name][direction][counter])
        for direction, counts in counted.items()
        for counter, count in counts.items()
        if count > BUDGETS[name][direction][counter]
    }
    assert not over


def test_budgets_and_problems_have_the_same_names():
    assert BUDGETS.keys() == counting.PROBLEMS.keys()
