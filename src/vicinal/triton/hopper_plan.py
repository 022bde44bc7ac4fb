"""The boxes a problem gets in the Hopper kernels, and what these are compiled for."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import permutations, product
from math import prod
from typing import NamedTuple

from .. import tiling
from ..problem import Problem
from ..window import Axis
from .hopper_counts import Triple, axes_counts, counts
from .hopper_spec import BYTES, Cuts, Spec

# Rows of a warpgroup: the M of wgmma.
ROWS = 64
# What a Hopper program can have, less room for barriers.
SHARED = 232448 - 1024
# Multiprocessors, each of which runs one program at a time.
RESIDENT = 132
# Largest head dimension at which the warpgroups of the forward multiply when they like, and may be three; so
# may those of the gradient of queries.
FREE = 64
# Time of a box that one of two warpgroups leaves to the other, over that of one both compute; and of three.
ALONE = {2: 0.6, 3: 0.7}
# Columns that a tile walks over from which on a third warpgroup gains: measured with 15 boxes of 128 and more
# forward, and lost with 8 and fewer.
WALK = 12 * 128
# What a box takes beside its columns, in columns: with two warpgroups gradients of queries took as much time,
# or 4 % more, with boxes of 64 than with boxes of 128, which hold 4 to 9 % more columns.
BESIDE = 16
# Widest rows that are multiplied from registers, where these hold one sum: wider ones leave it no room.
HELD = 192
# The same of the forward, where wider ones are not tried.
FORWARD_HELD = 128
# Widest sums of keys and values beside which registers hold weights and slopes of a box until the next.
LAGGING = 64
# Boxes of a tile from which on that gains: measured with 16 and more, and lost 1 or 2 % with 8 and fewer.
STARTING = 12
# Boxes of a tile up to which the gradients of keys and values gain more by early rows than by a fourth box in
# flight: measured with 34 and 100, and the other way round with 162.
SHORT = 128


def padded(dim: int) -> int:
    """Head dimension of a box in shared memory; TMA fills what a head does not have with zeros."""
    return max(1 << (dim - 1).bit_length(), 32)


def _cuts(dim: int) -> Cuts:
    """Starts and widths, powers of two, of what makes up a padded head dimension, or three quarters of it."""
    whole = padded(dim)
    half, quarter = whole // 2, whole // 4
    return ((0, half), (half, quarter)) if whole > 64 and dim <= half + quarter else ((0, whole),)


def multiplied(cuts: Cuts) -> int:
    """Head dimension that all parts make up."""
    return sum(width for _, width in cuts)


def key_bytes(problem: Problem) -> int:
    """Size of an element of queries and keys."""
    return BYTES if problem.key_dtype is None else 1


class Plan(NamedTuple):
    """What a kernel is compiled for, and how many programs run it."""

    spec: Spec
    programs: int


def forward(problem: Problem) -> Plan:
    """Boxes of the forward."""
    return _forward(three_axes(problem))


def query_gradient(problem: Problem, wants_query: bool, has_grad_lse: bool) -> Plan:
    """Boxes of the gradient of queries."""
    spec, programs = _query_gradient(three_axes(problem))
    return Plan(replace(spec, wants_query=wants_query, has_grad_lse=has_grad_lse), programs)


def key_gradients(problem: Problem, wants_key: bool, wants_value: bool, kept: bool = False) -> list[Plan]:
    """Gradients of keys and values: a kernel for both, or one each where registers hold only one sum.

    The first, of keys, leaves slopes where they are `kept`.
    """
    both = wants_key and wants_value
    if both and padded(problem.dim) + padded(problem.value_dim) > 256:
        wanted = ((True, False), (False, True))
    else:
        wanted = ((wants_key, wants_value),)
    return [key_boxes(three_axes(problem), *flags, kept and flags[0]) for flags in wanted]


def _held(spec: Spec) -> tuple[bool, bool]:
    """Whether the gradients of keys and values multiply keys, and values, from registers."""
    widest = max(multiplied(spec.cuts), multiplied(spec.value_cuts))
    alone = spec.dim + spec.value_dim > 256
    # In others ptxas of CUDA 12.8 gives registers of rows to weights, and the next round reads those.
    if spec.dim != spec.value_dim or not (alone or (spec.wants_key and spec.wants_value)):
        return False, False
    if alone:
        # Slopes need the rows of both, weights those of keys.
        return widest <= HELD or not spec.wants_key, False
    return widest <= 96, widest <= 64


@lru_cache(1024)
def three_axes(problem: Problem) -> Problem:
    """The problem with three axes, as kernels see it."""
    return replace(problem, axes=(Axis(1, 1),) * (3 - problem.rank) + problem.axes)


class Kernel(NamedTuple):
    """What bounds the boxes of a kernel.

    Args:
        width: columns of a box.
        fixed, stage: bytes of shared memory for rows, and for a box of columns.
        stages: boxes in flight, at most.
        held: widest rows that are multiplied from registers.
        masked: what a mask adds to the time of a box that both compute.
        mask: bytes for each masked axis.
        warpgroups: that share a tile.
        grid: whether boxes of columns start at multiples of their sides.
    """

    width: int
    fixed: int
    stage: int
    stages: int
    held: int = HELD
    masked: float = 0.35
    mask: int = 0
    warpgroups: int = 2
    grid: bool = False


def _shared(shared_by: Callable[[int, Problem], tuple[float, Plan]], problem: Problem) -> Plan:
    """Boxes for two warpgroups, or for three."""
    cost, plan = shared_by(2, problem)
    if max(plan.spec.dim, plan.spec.value_dim) <= FREE:
        # Exponentials of narrow heads take as long as products: a third warpgroup fills what two leave open.
        other_cost, other = shared_by(3, problem)
        counts = tiling.counts(problem, other.spec.tile, other.spec.columns)
        if counts.visited * other.spec.width >= WALK * counts.tiles and other_cost < cost:
            return other
    return plan


@lru_cache(1024)
def _forward(problem: Problem) -> Plan:
    return _shared(_forward_by, problem)


def _forward_by(warpgroups: int, problem: Problem) -> tuple[float, Plan]:
    """Boxes of the forward for so many warpgroups, and their cost."""
    dim, value_dim = padded(problem.dim), padded(problem.value_dim)
    width = 128 if max(dim, value_dim) <= 128 else 64
    row, out = dim * key_bytes(problem), value_dim * BYTES
    stage = width * (row + out)
    # Outputs take the place of queries where they fit.
    outputs = 0 if row == out and dim == value_dim else warpgroups * ROWS * out
    single = warpgroups * ROWS * row
    # The queries of the next tile are copied early where two boxes of keys and values fit beside them.
    persistent = not _described(problem)
    depth = 2 if persistent and SHARED - outputs - 2 * single >= 2 * stage else 1
    fixed = outputs + depth * single
    held = FORWARD_HELD if warpgroups == 2 else 0
    kernel = Kernel(width, fixed, stage, 4, held, masked=0.06, warpgroups=warpgroups)
    spec, programs = _best(problem, kernel, problem.heads)
    cost = _cost(problem, kernel, spec.tile, spec.split, spec.columns, False)
    more = SHARED - fixed - spec.stages * stage >= width * row
    spec = replace(
        spec,
        stages=spec.stages + more,
        value_stages=spec.stages,
        depth=depth,
        turns=dim > FREE,
    )
    return cost, Plan(spec, programs)


def order(problem: Problem, tile: Triple, inverse: bool) -> Triple:
    """Axes, fastest first, along which tiles that run at a time read the fewest columns: caches hold few."""
    extents = problem.lengths if inverse else problem.outputs
    counts = [-(-extent // side) for extent, side in zip(extents, tile, strict=True)]

    def read(axes: Triple) -> float:
        left, columns = float(RESIDENT), 1.0
        for number in axes:
            axis = problem.axes[number]
            rows = min(left, counts[number]) * tile[number] * (1 if inverse else axis.output_stride)
            columns *= min(rows + axis.size - 1, axis.length)
            left = max(left / counts[number], 1.0)
        return columns

    return min(permutations((2, 1, 0)), key=read)


@lru_cache(1024)
def _query_gradient(problem: Problem) -> Plan:
    return _shared(_query_gradient_by, problem)


def _query_gradient_by(warpgroups: int, problem: Problem) -> tuple[float, Plan]:
    """Boxes of the gradient of queries for so many warpgroups, and their cost."""
    dim, value_dim = padded(problem.dim), padded(problem.value_dim)
    wide = multiplied(_cuts(problem.dim)) > HELD
    # Registers of three warpgroups hold scores and slopes of fewer columns.
    narrow = max(dim, value_dim) <= 64 and warpgroups == 2
    width = 128 if narrow else 64 if wide or max(dim, value_dim) <= 128 else 32
    # Queries in registers leave their room to those of the next tile. Then gradients take the place of those
    # of outputs, beside which the next are copied.
    persistent = not _described(problem)
    depth = 2 if persistent and dim == value_dim <= HELD else 1
    fixed = warpgroups * ROWS * (dim + depth * value_dim) * BYTES
    kernel = Kernel(width, fixed, width * (dim + value_dim) * BYTES, 4, warpgroups=warpgroups)
    spec, programs = _best(problem, kernel, problem.heads)
    cost = _cost(problem, kernel, spec.tile, spec.split, spec.columns, False)
    # Sums of three quarters leave registers for the rows of both products.
    both = 64 < max(multiplied(spec.cuts), multiplied(spec.value_cuts)) <= 96
    spec = _apart(spec, kernel) if wide else replace(spec, value_stages=spec.stages)
    return cost * (width + BESIDE), Plan(replace(spec, depth=depth, value_held=both), programs)


@lru_cache(1024)
def key_boxes(problem: Problem, wants_key: bool, wants_value: bool, kept: bool = False) -> Plan:
    """Boxes of a kernel, of a problem with three axes, that leaves slopes where they are `kept`."""
    dim, value_dim = padded(problem.dim), padded(problem.value_dim)
    wide = wants_key and multiplied(_cuts(problem.dim)) > HELD
    width = 64 if wide or max(dim, value_dim) <= 128 else 32
    fixed = 2 * ROWS * (dim + value_dim) * BYTES
    # Two floats of each query come with it.
    stage = width * (dim + value_dim) * BYTES + 8 * width
    # Two numbers for each key; beside a wide sum they are computed anew.
    kernel = Kernel(width, fixed, stage, 4, mask=0 if wide else 2 * ROWS * 8, grid=kept)
    spec, programs = _best(problem, kernel, problem.kv_heads, inverse=True)
    counts = tiling.counts(problem, spec.tile, spec.columns, inverse=True)
    # The first box of a walk adds what no box has left.
    long = counts.visited >= STARTING * counts.tiles
    lags = wants_key and wants_value and max(dim, value_dim) <= LAGGING and long
    spec = replace(spec, wants_key=wants_key, wants_value=wants_value, lags=lags)
    held, value_held = _held(spec)
    spec = replace(spec, held=held, value_held=value_held)
    if wide:
        return Plan(_apart(spec, kernel), programs)
    # Keys and values of the next tile are copied early where boxes of queries still fit beside them.
    stages = min((SHARED - 2 * fixed - kernel.mask * spec.mask_count) // stage, kernel.stages)
    boxes = counts.visited / counts.tiles * (problem.heads // problem.kv_heads)
    if spec.persistent and stages >= (3 if boxes <= SHORT else 4):
        spec = replace(spec, depth=2, stages=stages)
    return Plan(spec, programs)


def _apart(spec: Spec, kernel: Kernel) -> Spec:
    """With one more stage of keys, or queries, than of what the same boxes of a gradient hold beside them."""
    more = SHARED - kernel.fixed - spec.stages * kernel.stage >= spec.width * spec.dim * BYTES
    return replace(spec, stages=spec.stages + more, value_stages=spec.stages + more - 1)


def _best(problem: Problem, kernel: Kernel, heads: int, inverse: bool = False) -> Plan:
    """The cheapest boxes, with as many stages as shared memory holds."""
    extents = (problem.outputs, problem.lengths)
    rows, columns = extents[::-1] if inverse else extents
    tiles = _tiles(problem, kernel.warpgroups, rows)
    candidates = list(product(tiles, tiling.boxes(kernel.width, 3, columns)))
    if len(candidates) > 1:
        candidates.sort(key=lambda found: _cost(problem, kernel, *found[0], found[1], inverse))
    (tile, split), box = candidates[0]
    per_axis = axes_counts(problem, tile, split, box, inverse, kernel.warpgroups, kernel.grid)
    masked = tuple(full < visited for visited, full in per_axis)
    cuts, value_cuts = _cuts(problem.dim), _cuts(problem.value_dim)
    spec = Spec(
        rules=tuple(replace(axis, length=int(axis.length == 1)) for axis in problem.axes),
        rows=tuple(side // kernel.warpgroups if axis == split else side for axis, side in enumerate(tile)),
        columns=box,
        tile=tile,
        split=split,
        masked=masked,
        order=order(problem, tile, inverse),
        dim=padded(problem.dim),
        value_dim=padded(problem.value_dim),
        cuts=cuts,
        value_cuts=value_cuts,
        stages=min((SHARED - kernel.fixed - kernel.mask * sum(masked)) // kernel.stage, kernel.stages),
        key_bytes=key_bytes(problem),
        warpgroups=kernel.warpgroups,
        persistent=not _described(problem),
        ragged=kernel.grid and any(x % side for x, side in zip(problem.lengths, tile, strict=True)),
        held=max(map(multiplied, (cuts, value_cuts))) <= kernel.held and key_bytes(problem) == BYTES,
    )
    groups = [-(-extent // axis.dilation) for extent, axis in zip(rows, problem.axes, strict=True)]
    tiles = prod(-(-extent // count) for extent, count in zip(groups, tile, strict=True))
    programs = problem.batch * heads * prod(spec.dilation) * tiles
    return Plan(spec, programs)


def _cost(problem: Problem, kernel: Kernel, tile: Triple, split: int, box: Triple, inverse: bool) -> float:
    """Time of a head, in boxes that two warpgroups compute."""
    visited, full = counts(problem, tile, split, box, inverse, kernel.warpgroups, kernel.grid)
    loaded, _ = counts(problem, tile, split, box, inverse, 1, kernel.grid)
    return computed(visited, loaded, ALONE[kernel.warpgroups]) + kernel.masked / 2 * (visited - full)


def computed(visited: float, loaded: float, alone: float) -> float:
    """The same without masks: a box takes some for being loaded, and some for each visit."""
    return (1 - alone) * visited + (2 * alone - 1) * loaded


def _tiles(problem: Problem, warpgroups: int, extents: tuple[int, ...]) -> list[tuple[Triple, int]]:
    """Tiles with the axis along which warpgroups share them; under twice their extents where some are."""
    found = []
    for box, split in product(tiling.boxes(ROWS, 3), range(3)):
        tile = tuple(side * warpgroups if axis == split else side for axis, side in enumerate(box))
        # Behind the first axis lies the next batch entry, unless dilation groups have places of their own.
        dilated = any(axis.dilation > 1 for axis in problem.axes)
        if problem.batch == 1 or extents[0] % tile[0] == 0 or dilated:
            found.append((tile, split))
    fits = lambda tile: all(side < 2 * extent for side, extent in zip(tile, extents, strict=True))  # noqa: E731
    return sorted(one for one in found if fits(one[0])) or sorted(found)


def _described(problem: Problem) -> bool:
    """Whether programs describe dilation groups: one tensor map holds them where all are equally long."""
    return any(axis.length % axis.dilation > 0 for axis in problem.axes)
