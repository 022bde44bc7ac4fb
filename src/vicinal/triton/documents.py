"""Documents of different shapes: where they lie, which tiles each has, and where there is padding."""

from array import array
from functools import lru_cache
from itertools import pairwise
from math import ceil, prod
from typing import NamedTuple

from ..layout import VarlenLayout
from ..problem import Documents, Problem
from . import plan

Shape = tuple[int, ...]
TOKENS = (1, 1, 1)
# Of each of three axes: dilation, period and output stride.
Spacing = tuple[tuple[int, int, int], ...]


def three(shape: Shape) -> Shape:
    """`shape` behind axes of one token."""
    return (*(1,) * (3 - len(shape)), *shape)


def extents(problem: Problem) -> tuple[Shape, Shape]:
    """Leading extents of tensors over tokens, and of those over outputs: batch and axes, or all packed."""
    documents = problem.documents
    if documents is None:
        return (problem.batch, *problem.lengths), (problem.batch, *problem.outputs)
    steps = tuple(axis.output_stride for axis in problem.axes)
    if documents.frame is None:
        tokens, outputs = _offsets(documents.shapes, steps)
        return tokens[-1:], outputs[-1:]
    outputs = (ceil(extent / step) for extent, step in zip(documents.frame, steps, strict=True))
    return (problem.batch, *documents.frame), (problem.batch, *outputs)


def most_outputs(problem: Problem) -> int:
    """Outputs of the largest entry of a batch, or document."""
    if problem.documents is None:
        return prod(problem.outputs)
    _, outputs = _offsets(problem.documents.shapes, tuple(axis.output_stride for axis in problem.axes))
    return max(stop - start for start, stop in pairwise(outputs))


class Tiling(NamedTuple):
    """What the programs of a launch are.

    Args:
        boxes: extents of a tile; None for one program a document.
        inverse: whether tiles are of keys.
        steps: distances of the tokens that the launch writes for; None if it leaves padding alone.
    """

    boxes: Shape | None = None
    inverse: bool = False
    steps: Shape | None = None


def forward(problem: Problem) -> Tiling:
    """Programs of attention."""
    steps = tuple(axis.output_stride for axis in plan.three_axes(problem.axes))
    return Tiling(plan.forward(problem).rows, steps=steps)


def query_gradient(problem: Problem) -> Tiling:
    """Programs of the gradient of the query."""
    return Tiling(plan.query_gradient(problem).rows, steps=TOKENS)


def key_gradient(problem: Problem) -> Tiling:
    """Programs of the gradients of key and value."""
    return Tiling(plan.key_gradient(problem).rows, inverse=True, steps=TOKENS)


def bias_gradient(problem: Problem) -> Tiling:
    """Programs of the gradients of scores."""
    return Tiling(plan.bias_gradient(problem).rows)


def programs(problem: Problem, tiling: Tiling) -> int:
    """Rows of the table of a launch."""
    assert problem.documents is not None
    counts = _counts(problem.documents, spacing(problem), tiling)
    return sum(tiles + stop - start for tiles, start, stop in counts)


def spacing(problem: Problem) -> Spacing:
    """What `rows` needs of the axes."""
    axes = plan.three_axes(problem.axes)
    return tuple((axis.dilation, axis.period, axis.output_stride) for axis in axes)


def rows(documents: Documents, apart: Spacing, tiling: Tiling) -> "array[int]":
    """Eight integers of 32 bits for each program of a head: tiles, then blocks of padding to fill.

    `tile.place_of` reads them, and `tile.blank_of` those of padding, whose second number is negative.
    """
    shapes = documents.shapes
    steps = tuple(step for _, _, step in apart[3 - len(shapes[0]) :])
    counts = _counts(documents, apart, tiling)
    found, padding = array("i"), array("i")
    for document, before in enumerate(zip(*_offsets(shapes, steps), counts, strict=False)):
        *first, (tiles, start, stop) = before
        row = array("i", (document, 0, *three(shapes[document]), *first, 0))
        mine = row * tiles
        mine[1::8] = array("i", range(tiles))
        found += mine
        mine = row * (stop - start)
        mine[1::8] = array("i", range(-1 - start, -1 - stop, -1))
        padding += mine
    return found + padding


@lru_cache(1024)
def _offsets(shapes: tuple[Shape, ...], steps: Shape) -> tuple[Shape, Shape]:
    """Tokens before each document and after the last, and outputs."""
    found = VarlenLayout(shapes, len(steps))
    return found.offsets, found.sampled(steps).offsets


@lru_cache(1024)
def _counts(documents: Documents, apart: Spacing, tiling: Tiling) -> tuple[tuple[int, int, int], ...]:
    """Of every document its tiles, and the first and last of the blocks that hold its padding.

    Each dilation group has as many tiles as the largest.
    """
    found = []
    for shape in map(three, documents.shapes):
        if tiling.boxes is None:
            found.append((1, 0, 0))
            continue
        tiles = 1
        for extent, (dilation, period, step), box in zip(shape, apart, tiling.boxes, strict=True):
            count, groups = (extent, dilation) if tiling.inverse else (ceil(extent / step), period)
            tiles *= groups * ceil(ceil(count / groups) / box)
        found.append((tiles, *_padding(shape, documents.frame, tiling)))
    return tuple(found)


def _padding(shape: Shape, frame: Shape | None, tiling: Tiling) -> tuple[int, int]:
    """First and last block, of as many rows as a tile has, that may hold rows outside of a document."""
    if frame is None or tiling.steps is None or tiling.boxes is None:
        return 0, 0
    whole, mine = (
        tuple(ceil(extent / step) for extent, step in zip(extents, tiling.steps, strict=True))
        for extents in (three(frame), shape)
    )
    if whole == mine:
        return 0, 0
    block = prod(tiling.boxes)
    # In row-major order the first row outside is the one after the last axis that is cut short.
    cut = max(axis for axis in range(3) if mine[axis] < whole[axis])
    first = 0 if 0 in mine else mine[cut] * prod(whole[cut + 1 :])
    return first // block, ceil(prod(whole) / block)
