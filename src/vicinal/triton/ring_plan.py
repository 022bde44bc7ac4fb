"""Boxes of the sweeps over small windows, from exact counts and a cost model; nothing is timed."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise, product
from math import ceil, prod
from typing import NamedTuple

from .. import spans, tiling
from ..problem import Problem
from ..window import Axis
from .plan import three_axes
from .window import Rule, rule


class Spec(NamedTuple):
    """What a sweep is compiled for. Axes are in the kernel's order: it moves along the first.

    Args:
        rules: the windows.
        rows: sides of a tile, of 16 rows for each warp.
        shifts: rows before the first of an axis that the first tile holds; none on the axis of the sweep.
        columns: sides of a chunk of columns.
        width: columns of a chunk, a power of two; those past the product of its sides hold nothing.
        block: chunks that are read at once; forward, all that a tile sees.
        slots: chunks that are held at once.
        steps: tiles of a program.
        dim, value_dim: head dimensions.
        inverse: whether rows are keys, and columns the queries that see them.
        lanes: columns of a chunk beside weights: half, if no row sees two that are half a chunk apart.
        group: chunks whose weights move together.
    """

    rules: tuple[Rule, Rule, Rule]
    rows: tuple[int, int, int]
    shifts: tuple[int, ...]
    columns: tuple[int, int, int]
    width: int
    block: int
    slots: int
    steps: int
    dim: int
    value_dim: int
    inverse: bool
    lanes: int
    group: int


class Sweep(NamedTuple):
    """A sweep, the order of its axes among three, and its programs for one head of one batch entry."""

    spec: Spec
    order: tuple[int, int, int]
    programs: int


Side = tuple[Axis, int]
ROWS = 16
DEPTHS = (1, 2, 4, 8, 16)
ORDERS: tuple[tuple[int, int, int], ...] = ((0, 1, 2), (1, 0, 2), (2, 0, 1))
# Keys of the largest window; larger ones keep larger tiles busy.
WINDOW = 128
# Head dimensions whose lines are copied and multiplied whole.
DIMS = (16, 32, 64)
# Columns whose scores fit in the registers of a warp, and those that gradients of queries, and of keys, read
# at once.
COLUMNS = 176
BLOCK = (128, 80)
# Bytes of rings, so that several programs share a multiprocessor.
RING_BYTES = 48 << 10
# A large device: its multiprocessors, their shared memory in bytes, and programs that their registers hold.
MULTIPROCESSORS = 132
SHARED = 227 << 10
PLACES = 12
# What a tile costs besides its columns, in columns; copying one; reading some chunks at once, in chunks; a
# program besides its tiles, in tiles; the share of a program for which others wait at the end.
TILE_COST = 24
COPY_COST = 0.7
READ_COST = 0.75
START_COST, QUERY_START_COST = 2.5, 0.5
TAIL, FOLDED_TAIL = 0.4, 0.6
# Tiles of an axis from which on programs share it even where all would run at once.
LONG = 64
# Keys of the largest window whose scores alone are faster here than in tiles.
DOT_WINDOW = 64


@lru_cache(4096)
def forward(problem: Problem) -> Sweep | None:
    """The sweep over queries, for the output; None where no sweep fits."""
    return _attend(problem, False, True)


@lru_cache(4096)
def query_gradient(problem: Problem) -> Sweep | None:
    """The sweep over queries, for their gradient."""
    return _attend(problem, False, False)


@lru_cache(4096)
def key_gradient(problem: Problem) -> Sweep | None:
    """The sweep over keys, for their gradients and those of the values."""
    return _attend(problem, True, False)


@lru_cache(4096)
def walk(problem: Problem) -> Sweep | None:
    """The sweep of the walk `problem.operation`, whose rings hold one operand."""
    if problem.operation == "dot" and prod(problem.window) > DOT_WINDOW:
        return None
    dim = problem.dim if problem.operation == "dot" else problem.value_dim
    if not _computes(replace(problem, dim=dim, value_dim=dim, bias=False)):
        return None
    return _best(replace(problem, dim=dim, value_dim=0), problem.operation == "mix_back", False)


def _attend(problem: Problem, inverse: bool, whole: bool) -> Sweep | None:
    return _best(problem, inverse, whole) if _computes(problem) else None


def _best(problem: Problem, inverse: bool, whole: bool) -> Sweep | None:
    if inverse and problem.heads != problem.kv_heads:
        return None
    found = list(_sweeps(problem, inverse, whole))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _computes(problem: Problem) -> bool:
    """Whether sweeps compute what the problem asks for."""
    has_options = problem.bias or problem.extra > 0 or problem.documents is not None
    if has_options or prod(problem.window) > WINDOW:
        return False
    dims = problem.dim in DIMS and problem.value_dim in DIMS
    return problem.dtype in ("float16", "bfloat16") and dims


def _sweeps(problem: Problem, inverse: bool, whole: bool) -> Iterator[tuple[float, Sweep]]:
    """Every sweep that fits, with its cost."""
    axes = three_axes(problem.axes)
    extents = [axis.length if inverse else axis.outputs for axis in axes]
    for along, rows, depth in product(range(3), tiling.boxes(ROWS, 3, extents), DEPTHS):
        if axes[along].length > 1 or prod(problem.lengths) == 1:
            order = ORDERS[along]
            x, y, z = ((axes[axis], rows[axis]) for axis in order)
            cost, spec, programs = _sweep(problem, x, (y, z), depth, inverse, whole)
            held = _ring_bytes(problem, spec.slots * spec.width)
            if spec.width * spec.block <= COLUMNS and held <= RING_BYTES:
                yield cost, Sweep(spec, order, programs)


def _sweep(
    problem: Problem, moving: Side, still: tuple[Side, Side], depth: int, inverse: bool, whole: bool
) -> tuple[float, Spec, int]:
    """Cost, constants and programs of one head of a sweep along `moving`."""
    sides = (moving, *still)
    shifts = [_shift(*side, inverse) for side in still]
    y, z = (_most(_tiles(*side, 1, inverse, shift)) for side, shift in zip(still, shifts, strict=True))
    width = max(16, 1 << (depth * y * z - 1).bit_length())
    tiles = _tiles(*moving, depth, inverse)
    is_walk = problem.operation != "attend"
    # Lanes that no window fills cost more than they save.
    folds = is_walk and not inverse and depth * y == 1 and width * 3 // 8 < still[1][0].size <= width // 2
    lanes = width >> folds
    if is_walk:
        block, group = _walked(tiles, width, lanes, folds or (inverse and depth == 1), inverse)
    else:
        block, group = _most(tiles) if whole else _block(tiles, _any(width, inverse)), 1
    read = [(start, start + ceil((stop - start) / block) * block) for start, stop in tiles]
    # Half of the tiles find all their columns copied; a ring that serves every tile costs others their place.
    ahead = sorted(later[1] - earlier[0] for earlier, later in pairwise(read) if later[0] >= earlier[0])
    slots = max([stop - start for start, stop in read] + ahead[len(ahead) // 2 :][:1])
    counts = [_tile_count(*side, inverse, shift) for side, shift in zip(sides, (0, *shifts), strict=True)]
    strips = counts[1] * counts[2] * prod(_groups(axis, inverse) for axis, _ in sides)
    places = MULTIPROCESSORS * max(1, min(PLACES, SHARED // (_ring_bytes(problem, slots * width) + 4096)))
    steps = _steps(
        counts[0],
        strips * problem.batch * problem.heads,
        places,
        START_COST if whole or inverse else QUERY_START_COST,
        FOLDED_TAIL if folds else TAIL,
    )
    visited = sum(stop - start for start, stop in read) / len(read)
    copied = sum(max(later[1] - earlier[1], 0) for earlier, later in pairwise(tiles)) / len(tiles)
    columns = visited * (width + 3 * lanes) / 4 + COPY_COST * copied * width
    cost = strips * counts[0] * (columns + TILE_COST)
    spec = Spec(
        (rule(moving[0]), rule(still[0][0]), rule(still[1][0])),
        (moving[1], still[0][1], still[1][1]),
        (0, *shifts),
        (depth, y, z),
        width,
        block,
        slots,
        steps,
        problem.dim,
        problem.value_dim,
        inverse,
        lanes,
        group,
    )
    return cost, spec, strips * ceil(counts[0] / steps)


def _walked(
    tiles: list[tuple[int, int]], width: int, lanes: int, pairs: bool, inverse: bool
) -> tuple[int, int]:
    """Chunks that a walk reads at once, and those of them whose weights move together."""
    if pairs:
        # Weights of a row fill a warp; those of keys, its registers.
        most = max(1, BLOCK[1] // width if inverse else 32 // lanes)
        block = _block(tiles, [count for count in (1, 2, 4, most) if count <= most])
    else:
        block = _block(tiles, _any(width, inverse))
    group = next((count for count in (4, 2) if block % count == 0 and count * lanes <= 64), 1)
    # Several groups at once take more registers than they are worth.
    return (group if group > 1 else block), group


def _any(width: int, inverse: bool) -> range:
    """Any number of chunks that registers hold."""
    return range(1, max(1, BLOCK[inverse] // width) + 1)


def _block(tiles: list[tuple[int, int]], blocks: Iterable[int]) -> int:
    """Chunks to read at once, so that all tiles take the least time."""
    return min(
        blocks,
        key=lambda block: sum(ceil((stop - start) / block) for start, stop in tiles) * (block + READ_COST),
    )


def _steps(tiles: int, strips: int, places: int, start_cost: float, tail: float) -> int:
    """Tiles of a program, of the `tiles` of each strip, where `places` programs run at once.

    The last programs run beside empty places; a short program starts too often.
    """

    def time(steps: int) -> float:
        programs = strips * ceil(tiles / steps)
        work = programs * (tiles / ceil(tiles / steps) + start_cost)
        shared = work / places + tail * steps
        if tiles > LONG:
            return max(
                steps + START_COST, (work + programs * (START_COST - start_cost)) / places + tail * steps
            )
        return steps + start_cost if programs <= places else shared

    return min((ceil(tiles / parts) for parts in range(1, tiles + 1)), key=time)


def _ring_bytes(problem: Problem, columns: int) -> int:
    return columns * (problem.dim + problem.value_dim) * 2


def _groups(axis: Axis, inverse: bool) -> int:
    return axis.dilation if inverse else axis.period


def _tile_count(axis: Axis, rows: int, inverse: bool, shift: int) -> int:
    """Tiles of the largest dilation group."""
    extent = ceil((axis.length if inverse else axis.outputs) / _groups(axis, inverse))
    return ceil((extent + shift) / rows)


@lru_cache(65536)
def _shift(axis: Axis, rows: int, inverse: bool) -> int:
    """Rows of the first tile that lie before the axis, so that no tile sees many columns.

    Keys close to an end are seen from all the way to it: tiles that hold the last of them see most.
    """
    if not inverse:
        return 0
    return min(range(rows), key=lambda shift: (_most(_tiles(axis, rows, 1, inverse, shift)), shift))


def _most(tiles: list[tuple[int, int]]) -> int:
    return max(stop - start for start, stop in tiles)


@lru_cache(65536)
def _tiles(axis: Axis, rows: int, depth: int, inverse: bool, shift: int = 0) -> list[tuple[int, int]]:
    """First and stop chunk of tiles in their order, at least one of every kind."""
    axis = tiling.shortened(axis, rows * depth)[1]
    return [
        (span.starts[max(first, 0)] // depth, -(-span.stops[min(first + rows, len(span.rows)) - 1] // depth))
        for span in (spans.inverse if inverse else spans.forward)(axis)
        for first in range(-shift, len(span.rows), rows)
    ]
