"""Documents of different shapes: where they lie, and which tiles each has."""

from array import array
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise, product
from math import ceil, prod
from typing import NamedTuple

from ..layout import VarlenLayout
from ..problem import Documents, Problem
from . import plan

Shape = tuple[int, ...]
# Integers of a row of a table, and where those of padding begin.
WIDTH = 16
AREA = 9
# Tokens of padding that a row fills.
MOST = 2048
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
    """What the rows of a table are.

    Args:
        boxes: extents of a tile; None for one row a document.
        inverse: whether tiles are of keys.
        steps: distances of the tokens, on each of three axes, that the kernel writes results for, if it fills
            padding as well.
    """

    boxes: Shape | None = None
    inverse: bool = False
    steps: Shape | None = None


EACH = Tiling()


def forward(problem: Problem) -> Tiling:
    """Rows for attention."""
    steps = tuple(axis.output_stride for axis in plan.three_axes(problem.axes))
    return Tiling(plan.forward(problem).rows, steps=steps if is_padded(problem) else None)


def query_gradient(problem: Problem) -> Tiling:
    """Rows for the gradient of the query."""
    return Tiling(plan.query_gradient(problem).rows, steps=(1, 1, 1) if is_padded(problem) else None)


def key_gradient(problem: Problem) -> Tiling:
    """Rows for the gradients of key and value."""
    return Tiling(plan.key_gradient(problem).rows, True, (1, 1, 1) if is_padded(problem) else None)


def bias_gradient(problem: Problem) -> Tiling:
    """Rows for the gradients of scores."""
    return Tiling(plan.bias_gradient(problem).rows)


def programs(problem: Problem, tiling: Tiling) -> int:
    """Rows of a table: programs of one head."""
    assert problem.documents is not None
    return len(rows(problem.documents, spacing(problem), tiling)) // WIDTH


def spacing(problem: Problem) -> Spacing:
    """What `rows` needs of the axes."""
    axes = plan.three_axes(problem.axes)
    return tuple((axis.dilation, axis.period, axis.output_stride) for axis in axes)


@lru_cache(64)
def rows(documents: Documents, apart: Spacing, tiling: Tiling) -> "array[int]":
    """A table: `WIDTH` integers of 32 bits for each row, which `tile.place_of` and `padding.fill` read.

    These are the document, the tile on each of three axes and its dilation group, the document's extents, and
    the tokens and the outputs before it. Rows of padding have document -1, no
    extents, and then the first token of a run, tokens of a run, runs, and tokens from one to the next.
    """
    shapes = documents.shapes
    steps = tuple(step for _, _, step in apart[3 - len(shapes[0]) :])
    found = array("i")
    for document, (shape, *before) in enumerate(zip(shapes, *_offsets(shapes, steps), strict=False)):
        row = array("i", (document, 0, 0, 0, *three(shape), *before))
        row.extend([0] * (WIDTH - len(row)))
        if tiling.boxes is None:
            found += row
            continue
        places = _places(three(shape), apart, tiling)
        mine = row * prod(map(len, places))
        for axis, numbers in enumerate(places):
            outer, inner = (prod(map(len, part)) for part in (places[:axis], places[axis + 1 :]))
            mine[1 + axis :: WIDTH] = array("i", [n for n in numbers for _ in range(inner)]) * outer
        found += mine
    if documents.frame is not None and tiling.steps is not None:
        return _dealt(found, _padding(documents, tiling.steps))
    return found


def is_padded(problem: Problem) -> bool:
    """Whether documents lie in entries of a batch."""
    return problem.documents is not None and problem.documents.frame is not None


@lru_cache(1024)
def _offsets(shapes: tuple[Shape, ...], steps: Shape) -> tuple[Shape, Shape]:
    """Tokens before each document and after the last, and outputs."""
    found = VarlenLayout(shapes, len(steps))
    return found.offsets, found.sampled(steps).offsets


def _places(shape: Shape, apart: Spacing, tiling: Tiling) -> list[list[int]]:
    """Tiles on each axis, times dilation groups, plus the group: each group has as many as the largest."""
    assert tiling.boxes is not None
    found = []
    for extent, (dilation, period, step), box in zip(shape, apart, tiling.boxes, strict=True):
        count, groups = (extent, dilation) if tiling.inverse else (ceil(extent / step), period)
        tiles = ceil(ceil(count / groups) / box)
        found.append([tile * groups + group for group in range(groups) for tile in range(tiles)])
    return found


def _padding(documents: Documents, steps: Shape) -> "list[array[int]]":
    """Rows of padding, in the order of memory but for runs of one pitch."""
    assert documents.frame is not None
    frame, found = _sampled(three(documents.frame), steps), []
    for document, shape in enumerate(documents.shapes):
        for first, count, runs, pitch in _areas(frame, _sampled(three(shape), steps)):
            most = max(1, MOST // count)
            for run, start in product(range(0, runs, most), range(0, count, MOST)):
                token = document * prod(frame) + first + run * pitch + start
                area = token, min(MOST, count - start), min(most, runs - run), pitch
                found.append(array("i", (-1, *[0] * (AREA - 1), *area, *[0] * (WIDTH - AREA - 4))))
    return found


def _areas(frame: Shape, shape: Shape) -> Iterator[tuple[int, int, int, int]]:
    """What of a frame lies outside of a document: first token and length of a run, runs, and their pitch."""
    (_, height, width), plane = frame, prod(frame[1:])
    found = [(shape[0] * plane, prod(frame) - shape[0] * plane, 1, 0)]
    found.append((shape[1] * width, (height - shape[1]) * width, shape[0], plane))
    found += [(place * plane + shape[2], width - shape[2], shape[1], width) for place in range(shape[0])]
    return (area for area in found if area[1])


def _dealt(tiles: "array[int]", padding: "list[array[int]]") -> "array[int]":
    """Rows of tiles with those of padding between them, evenly, and none last."""
    found, count, done = array("i"), len(tiles) // WIDTH, 0
    for place, row in enumerate(padding, 1):
        stop = place * count // len(padding)
        found += row + tiles[done * WIDTH : stop * WIDTH]
        done = stop
    return found or tiles


def _sampled(shape: Shape, steps: Shape) -> Shape:
    return tuple(ceil(extent / step) for extent, step in zip(shape, steps, strict=True))
