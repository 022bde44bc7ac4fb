"""Windows as arrays, built once per axis. They hold values, not graphs, so any trace may read them."""

from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx

from .. import spans
from ..problem import Problem
from ..window import Axis

Shape = tuple[int, ...]


@lru_cache(256)
def keys(axis: Axis) -> mx.array:
    """`[outputs, size]` key of every slot; a slot without a key repeats the last one."""
    first, count = spans.windows(axis)
    rows = [
        [start + axis.dilation * min(slot, held - 1) for slot in range(axis.size)]
        for start, held in zip(first, count, strict=True)
    ]
    return mx.array(rows, dtype=mx.uint32)


@lru_cache(256)
def holds(axis: Axis) -> mx.array:
    """`[outputs, size]` whether the slot holds a key."""
    return mx.array([[slot < held for slot in range(axis.size)] for held in spans.windows(axis)[1]])


@lru_cache(256)
def relative(axis: Axis) -> mx.array:
    """`[outputs, size]` entry of the relative position table that every slot uses."""
    return mx.array(
        [[entry + slot for slot in range(axis.size)] for entry in spans.relative(axis)], dtype=mx.uint32
    )


def integers(values: Sequence[int]) -> mx.array:
    """Indices."""
    return mx.array(list(values), dtype=mx.uint32)


def floats(data: bytes) -> mx.array:
    """Numbers of a packed table."""
    buffer: Any = memoryview(data).cast("f")
    return mx.array(buffer)


def packed(numbers: "array[int]") -> mx.array:
    """int32 numbers."""
    buffer: Any = memoryview(numbers)
    return mx.array(buffer)


@lru_cache(256)
def inside(shapes: tuple[Shape, ...], frame: Shape, output_stride: Shape) -> mx.array:
    """`[batch, *outputs]` whether an output of a padded batch is one of a document of `shapes`."""
    rank, mask = len(frame), mx.array(True)
    for axis, (room, step) in enumerate(zip(frame, output_stride, strict=True)):
        along = mx.arange(0, room, step) < mx.array([shape[axis] for shape in shapes], mx.int32)[:, None]
        mask = mask & along.reshape(len(shapes), *(-1 if other == axis else 1 for other in range(rank)))
    return constant(mask)


def blank_outside(problem: Problem, lse: mx.array) -> mx.array:
    """A log-sum-exp that is `-inf` outside of the documents of a padded batch."""
    found = problem.documents
    if found is None or found.frame is None:
        return lse
    mask = inside(found.shapes, found.frame, tuple(axis.output_stride for axis in problem.axes))
    return mx.where(mask[..., None], lse, -float("inf"))


def constant(x: mx.array) -> mx.array:
    """`x`, which depends on no input, as a value: a graph would belong to the trace that built it."""
    mx.eval(x)
    return x


class Inverse:
    """For every key, `[length, seen]`: an output that sees it, the slot it fills there, whether it counts.

    Entries that do not count repeat the first one that does.
    """

    def __init__(self, axis: Axis) -> None:
        first = spans.windows(axis)[0]
        rows = [axis.queries(key) for key in range(axis.length)]
        widest = max(1, *map(len, rows))
        outputs, slots, valid = [], [], []
        for key, seen in enumerate(rows):
            stand_in = seen[0] if seen else 0
            padded = [*seen, *[stand_in] * (widest - len(seen))]
            outputs.append(padded)
            slots.append([(key - first[output]) // axis.dilation if seen else 0 for output in padded])
            valid.append([place < len(seen) for place in range(widest)])
        self.outputs = mx.array(outputs, dtype=mx.uint32)
        self.slots = mx.array(slots, dtype=mx.uint32)
        self.valid = mx.array(valid)


@lru_cache(256)
def inverse(axis: Axis) -> Inverse:
    """The inverse window of an axis."""
    return Inverse(axis)


def spread(per_axis: list[mx.array], place: int) -> mx.array:
    """Table `[rows, columns]` of one axis among those of all: rows first, then columns."""
    rank = len(per_axis)
    table = per_axis[place]
    shape = [1] * 2 * rank
    shape[place], shape[rank + place] = table.shape
    return table.reshape(shape)


def combined(per_axis: list[mx.array], extents: list[int] | tuple[int, ...]) -> mx.array:
    """`[prod(rows), prod(columns)]` row-major index into `extents` from an index per axis."""
    total = spread(per_axis, 0)
    for place in range(1, len(per_axis)):
        total = total * extents[place] + spread(per_axis, place)
    return _flat(total, len(per_axis))


def every(per_axis: list[mx.array]) -> mx.array:
    """`[prod(rows), prod(columns)]` whether a claim holds on every axis."""
    total = spread(per_axis, 0)
    for place in range(1, len(per_axis)):
        total = total & spread(per_axis, place)
    return _flat(total, len(per_axis))


def visible_slots(axes: tuple[Axis, ...]) -> mx.array | None:
    """`[prod(outputs), prod(size)]` whether each slot of each window holds a key; None if all do."""
    if not any(axis.causal for axis in axes):
        return None
    return every([holds(axis) for axis in axes])


def _flat(table: mx.array, rank: int) -> mx.array:
    return table.flatten(rank).flatten(0, rank - 1)
