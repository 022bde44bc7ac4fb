"""What the kernels cost does not grow."""

import json
import re
from pathlib import Path

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


def test_the_documentation_shows_the_budgets():
    text = (Path(__file__).parents[2] / "docs" / "metal.md").read_text(encoding="utf-8")
    row = re.compile(
        r"^\| [123]-D .*? \| (float\d+) \| (\w+) \| ([\d.]+) : .*? \| ([\d.]+) : .*? \| ([\d.]+) : ", re.M
    )
    shown = [(dtype, direction, *map(float, numbers)) for dtype, direction, *numbers in row.findall(text)]
    millions = lambda count: float(f"{count / 1e6:.{1 if count >= 1e6 else 2}f}")  # noqa: E731
    assert shown == [
        (name.rsplit("_", 1)[1], direction, *(millions(counts[counter]) for counter in counting.SHOWN))
        for name, directions in BUDGETS.items()
        for direction, counts in directions.items()
    ]
