"""Slopes kept for gradients of queries, of problems that are too small to gain by it as well."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import pytest

from vicinal import Problem
from vicinal.triton import hopper_kept_plan, hopper_plan


def planned(problem: Problem, heads: int, rooms: int = 2) -> hopper_kept_plan.Kept | None:
    """What keeps slopes of `heads` heads of keys at a time, where there are kernels for it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("FEWEST", 0), ("MOST", inf), ("_room", lambda _: 1 << 50)):
            patch.setattr(hopper_kept_plan, name, value)
        found = hopper_kept_plan._kept.__wrapped__(hopper_plan.three_axes(problem))
    turns = -(-problem.batch * problem.kv_heads // heads)
    return found and found._replace(turns=turns, rooms=min(turns, rooms))


@contextmanager
def keeping(heads: int, rooms: int = 2) -> Iterator[None]:
    """Gradients of all operands keep slopes, of so many heads of keys in each room, whatever they gain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hopper_kept_plan, "kept", lambda problem: planned(problem, heads, rooms))
        yield
