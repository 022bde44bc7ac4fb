"""Boxes and compiler options of each kernel, from exact counts and a cost model; nothing is timed.

A kernel works on tiles of `M` rows against boxes of `N` columns. `Shape` says how those lie over the axes.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import ceil, prod
from typing import NamedTuple

from .. import spans, tiling
from ..problem import Problem
from ..window import Axis


class Shape(NamedTuple):
    """Boxes of `row_count` rows and `column_count` columns over three axes, and what the compiler is told.

    `single` says that one box of columns holds all that a tile sees. `tiles` are the programs of one head of
    one batch entry, those of ragged dilation groups that turn out empty included. `heads_first` makes
    neighboring programs work on neighboring heads, which share cache lines, as those of documents always do;
    otherwise they work on neighboring tiles, which share columns.
    """

    rows: tiling.Boxes
    columns: tiling.Boxes
    row_count: int
    column_count: int
    warps: int
    stages: int
    single: bool
    heads_first: bool
    tiles: int


class Size(NamedTuple):
    """Elements of a tile and its boxes, and what runs them."""

    rows: int
    columns: int
    warps: int
    stages: int


# Boxes of at most this many columns go through one softmax without a running maximum.
SINGLE_COLUMNS = 256
FEW_BOXES = 4
SHORT_COST = 1.4
# Most elements of such a box of keys; it and its values take 64 KiB of shared memory.
SINGLE_ELEMENTS = 256 * 64
SMALL_ROWS = (Size(16, 0, 1, 2), Size(32, 0, 2, 2), Size(64, 0, 4, 2))
# Most heads that one program works on in turn.
TURNS = 4


def padded(dim: int) -> int:
    """Head dimension as a block: a power of two that matrix instructions take."""
    return max(16, 1 << (dim - 1).bit_length())


def three_axes(axes: tuple[Axis, ...]) -> tuple[Axis, Axis, Axis]:
    """`axes` behind axes of one token."""
    t, h, w = (Axis(1, 1),) * (3 - len(axes)) + axes
    return t, h, w


@lru_cache(4096)
def forward(problem: Problem) -> Shape:
    """Tiles of queries against boxes of keys, for attention."""
    width = max(padded(problem.dim), padded(problem.value_dim))
    # The exact products of float32 keep too much in registers for boxes of this size, and additional
    # tokens are further boxes.
    small = problem.dtype != "float32" and not problem.extra and problem.documents is None
    single = list(_single(problem, width)) if small else []
    if single:
        return min(single)[1]
    return _loop(problem.axes, _sizes(problem, width, FORWARD), inverse=False)


@lru_cache(4096)
def query_gradient(problem: Problem) -> Shape:
    """Tiles of queries against boxes of keys, for the gradient of the query."""
    return _loop(problem.axes, _sizes(problem, _backward_width(problem), BACKWARD), inverse=False)


@lru_cache(4096)
def key_gradient(problem: Problem) -> Shape:
    """Tiles of keys against boxes of queries, for the gradients of key and value."""
    return _loop(problem.axes, _sizes(problem, _backward_width(problem), BACKWARD_KEY), inverse=True)


@lru_cache(4096)
def bias_gradient(problem: Problem) -> Shape:
    """Tiles of queries against boxes of keys, for the gradient of the bias: it sums every score."""
    return _loop(problem.axes, _sizes(problem, _backward_width(problem), BIAS), inverse=False)


@lru_cache(4096)
def extra_gradient(problem: Problem) -> Size:
    """Rows of additional tokens and columns of queries, for the gradients of additional keys and values."""
    return _sizes(problem, max(padded(problem.dim), padded(problem.value_dim)), EXTRA)[0]


@lru_cache(4096)
def walk(problem: Problem) -> Shape:
    """Boxes of the walk `problem.operation`."""
    width = max(padded(problem.dim), padded(problem.value_dim))
    return _loop(problem.axes, _sizes(problem, width, BACKWARD), problem.operation == "mix_back")


def turns(problem: Problem) -> int:
    """Heads that a program of the small-window kernel works on in turn.

    While one is computed the next is loaded. Where a tile is neither short nor its box wide, many programs
    on a multiprocessor hide the loads better.
    """
    shape = forward(problem)
    if shape.row_count > 16 and shape.column_count < SINGLE_COLUMNS:
        return 1
    return max(count for count in range(1, TURNS + 1) if problem.heads % count == 0)


def most_tiles(problem: Problem) -> int:
    """Programs of one head in the largest launch of `problem`."""
    if problem.operation != "attend":
        return walk(problem).tiles
    shapes = [forward(problem)]
    if problem.gradients:
        shapes += [query_gradient(problem), key_gradient(problem)]
    return max(shape.tiles for shape in shapes)


# Sizes by the padded head dimension up to which they fit in registers and 99 KiB of shared memory. The exact
# products of float32 run outside the matrix units and hold both operands in registers.
FORWARD = {
    "short": {
        64: (Size(128, 64, 4, 2), Size(64, 64, 4, 2), Size(16, 64, 1, 2)),
        128: (Size(128, 64, 8, 2), Size(64, 64, 4, 2), Size(16, 64, 1, 1)),
        256: (Size(64, 32, 4, 2),),
    },
    "float32": {
        64: (Size(64, 32, 4, 2), Size(32, 32, 4, 1)),
        128: (Size(32, 16, 4, 1),),
        256: (Size(16, 16, 4, 1),),
    },
}
BACKWARD = {
    "short": {
        32: (Size(64, 64, 4, 2), Size(64, 32, 4, 2), Size(16, 128, 1, 1), Size(16, 64, 1, 1)),
        64: (Size(64, 64, 4, 2), Size(16, 128, 1, 1), Size(16, 64, 1, 1)),
        128: (Size(64, 64, 4, 2), Size(16, 64, 1, 1)),
        256: (Size(32, 32, 4, 1),),
    },
    "float32": {
        64: (Size(32, 32, 4, 1), Size(16, 16, 2, 1)),
        128: (Size(32, 16, 4, 1),),
        256: (Size(16, 16, 4, 1),),
    },
}
BACKWARD_KEY = {
    "short": {
        32: (Size(64, 64, 4, 2), Size(64, 32, 4, 2), Size(16, 64, 1, 1)),
        64: (Size(64, 64, 4, 2), Size(16, 64, 1, 1)),
        128: (Size(64, 32, 4, 2), Size(16, 32, 1, 1)),
        256: (Size(32, 32, 8, 1),),
    },
    "float32": BACKWARD["float32"],
}
# One sum as large as the tile, on top of what a key gradient holds while it multiplies. Triton 3.4 cannot
# overlap these loops for Blackwell.
BIAS = {
    "short": {
        64: (Size(64, 64, 4, 1), Size(16, 64, 1, 1)),
        128: (Size(64, 32, 8, 1), Size(16, 32, 1, 1)),
        256: (Size(32, 32, 8, 1),),
    },
    "float32": BACKWARD["float32"],
}
EXTRA = {
    "short": {128: (Size(16, 64, 4, 2),), 256: (Size(16, 32, 4, 1),)},
    "float32": {64: (Size(16, 32, 4, 1),), 128: (Size(16, 16, 4, 1),), 256: (Size(16, 16, 4, 1),)},
}


def _sizes(problem: Problem, width: int, table: dict[str, dict[int, tuple[Size, ...]]]) -> tuple[Size, ...]:
    by_width = table["float32" if problem.dtype == "float32" else "short"]
    return next(sizes for limit, sizes in by_width.items() if width <= limit)


def _backward_width(problem: Problem) -> int:
    """Padded head dimension whose sizes a gradient takes; a bias costs registers like a wider head."""
    width = max(padded(problem.dim), padded(problem.value_dim))
    return min(2 * width, 256) if problem.bias else width


def _cost(tiles: int, visited: float, rows: int, columns: int) -> float:
    """Work in scores: a visited box costs its scores and loading its columns, a tile its rows and a start."""
    return visited * (rows * columns + 24 * columns) + tiles * (16 * rows + 256)


def _single(problem: Problem, width: int) -> Iterator[tuple[float, Shape]]:
    """Candidates in which one box of columns holds all that a tile sees, with their costs."""
    axes = three_axes(problem.axes)
    # Gathering a bias takes registers too.
    share = 2 if problem.bias else 1
    most, registers = SINGLE_COLUMNS // share, SINGLE_ELEMENTS // 2 // share
    for size in SMALL_ROWS:
        for rows in tiling.boxes(size.rows, 3, [axis.outputs for axis in axes]):
            columns = tuple(map(reach, axes, rows))
            count = max(16, 1 << (prod(columns) - 1).bit_length())
            if count > most or count * width > min(size.warps * registers, SINGLE_ELEMENTS):
                continue
            even = tuple(1 << (extent - 1).bit_length() for extent in columns)
            # Coordinates in a box of uneven sides cost divisions.
            uneven = prod(even) > count
            tiles = _programs(axes, rows, inverse=False)
            shape = Shape(
                rows,
                columns if uneven else even,
                size.rows,
                count,
                size.warps,
                size.stages,
                True,
                True,
                tiles,
            )
            yield _cost(tiles, tiles, size.rows, count) * (1.25 if uneven else 1.0), shape


@lru_cache(4096)
def _loop(axes: tuple[Axis, ...], sizes: tuple[Size, ...], inverse: bool) -> Shape:
    """The cheapest boxes of a kernel that visits box after box."""
    axes = three_axes(axes)
    best = None
    for size in sizes:
        extents = [axis.outputs for axis in axes], [axis.length for axis in axes]
        if inverse:
            extents = extents[::-1]
        for rows, columns in product(
            tiling.boxes(size.rows, 3, extents[0]), tiling.boxes(size.columns, 3, extents[1])
        ):
            per_axis = [
                tiling.axis_counts(*numbers, inverse) for numbers in zip(axes, rows, columns, strict=True)
            ]
            visited, full = (prod(getattr(c, name) for c in per_axis) for name in ("visited", "full"))
            tiles = _programs(axes, rows, inverse)
            cost = _cost(tiles, visited + 0.35 * (visited - full), size.rows, size.columns)
            # Sixteen rows feed no Hopper matrix instruction; tiles of keys, with two sums, gain by size.
            cost *= SHORT_COST if size.rows == 16 and not inverse else 1.0
            if best is None or cost < best[0]:
                best = cost, Shape(rows, columns, *size, False, visited <= FEW_BOXES * tiles, tiles)
    assert best is not None
    return best[1]


def _programs(axes: tuple[Axis, ...], rows: tuple[int, ...], inverse: bool) -> int:
    """Programs of one head: every dilation group has as many tiles as the largest."""
    total = 1
    for axis, box in zip(axes, rows, strict=True):
        extent, groups = (axis.length, axis.dilation) if inverse else (axis.outputs, axis.period)
        total *= groups * ceil(ceil(extent / groups) / box)
    return total


@lru_cache(65536)
def reach(axis: Axis, rows: int) -> int:
    """Columns of the widest union of windows of `rows` neighboring outputs of a dilation group."""
    axis = tiling.shortened(axis, rows)[1]
    return max(
        span.stops[min(first + rows, len(span.rows)) - 1] - span.starts[first]
        for span in spans.forward(axis)
        for first in range(0, len(span.rows), rows)
    )
