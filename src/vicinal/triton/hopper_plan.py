"""What the Hopper kernels are compiled for, and the boxes a problem gets."""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from .. import tiling
from ..problem import Problem
from ..window import Axis

Triple = tuple[int, int, int]

# Rows of a warpgroup: the M of wgmma. A tile is two of them.
ROWS = 64
BYTES = 2
# What a Hopper program can have, less room for barriers.
SHARED = 232448 - 1024


@dataclass(frozen=True, slots=True)
class Spec:
    """The constants of one kernel; lengths, heads and strides are run-time numbers.

    Args:
        rules: window rule per axis; its length is 0 and has no meaning.
        rows, columns: box of one warpgroup's rows, and of the columns that are visited together.
        tile: box of a program's rows: twice `rows`.
        offset: where in the tile the second warpgroup's rows start.
        masked: axes on which a box may hold columns that a row does not see.
        dim, value_dim: head dimensions, padded to a power of two.
        stages: boxes of columns in flight.
        takes_turns: whether the warpgroups of the forward alternate between products and softmax.
        wants_key, wants_value: which sums the gradient of keys and values keeps.
    """

    rules: tuple[Axis, Axis, Axis]
    rows: Triple
    columns: Triple
    tile: Triple
    offset: Triple
    masked: tuple[bool, bool, bool]
    dim: int
    value_dim: int
    stages: int
    takes_turns: bool = True
    wants_key: bool = True
    wants_value: bool = True

    @property
    def width(self) -> int:
        """Columns of a box."""
        return prod(self.columns)

    @property
    def flat(self) -> tuple[bool, bool, bool]:
        """Axes of one token."""
        return tuple(not mask and rule.size == 1 for mask, rule in zip(self.masked, self.rules, strict=True))

    @property
    def sizes(self) -> Triple:
        """Keys in every window of an axis, 0 where windows differ."""
        return tuple(0 if rule.causal else rule.size for rule in self.rules)

    @property
    def dilation(self) -> Triple:
        return tuple(rule.dilation for rule in self.rules)

    @property
    def dilated(self) -> bool:
        return any(rule.dilation > 1 for rule in self.rules)


def padded(dim: int) -> int:
    """Head dimension of a box in shared memory; TMA fills what a head does not have with zeros."""
    return max(1 << (dim - 1).bit_length(), 32)


class Plan(NamedTuple):
    """What a kernel is compiled for, and how many programs run it."""

    spec: Spec
    programs: int


def forward(problem: Problem) -> Plan:
    """Boxes of the forward."""
    return _forward(_geometry(problem))


def waste(problem: Problem) -> float:
    """Pairs that the forward's boxes compute over pairs that are visible."""
    spec = forward(problem).spec
    return tiling.waste(_geometry(problem), spec.tile, spec.columns)


def query_gradient(problem: Problem) -> Plan:
    """Boxes of the gradient of queries."""
    return _query_gradient(_geometry(problem))


def key_gradients(problem: Problem, wants_key: bool, wants_value: bool) -> list[tuple[Spec, int]]:
    """Specs and programs of the gradients of keys and values: one each where both sums do not fit into registers."""
    spec, programs = _key_gradient(_geometry(problem))
    both = wants_key and wants_value
    if both and spec.dim + spec.value_dim > 256:
        wanted = ((True, False), (False, True))
    else:
        wanted = ((wants_key, wants_value),)
    return [(replace(spec, wants_key=key, wants_value=value), programs) for key, value in wanted]


@lru_cache(1024)
def _geometry(problem: Problem) -> Problem:
    """The problem with three axes, as kernels see it."""
    return replace(problem, axes=(Axis(1, 1),) * (3 - problem.rank) + problem.axes)


@lru_cache(1024)
def _forward(problem: Problem) -> Plan:
    dim, value_dim = padded(problem.dim), padded(problem.value_dim)
    width = 128 if max(dim, value_dim) <= 128 else 64
    fixed = 2 * ROWS * dim * BYTES + (2 * ROWS * value_dim * BYTES if dim != value_dim else 0)
    return _best(problem, width, fixed, width * (dim + value_dim) * BYTES, problem.heads, most=3)


@lru_cache(1024)
def _query_gradient(problem: Problem) -> Plan:
    dim, value_dim = padded(problem.dim), padded(problem.value_dim)
    wide = max(dim, value_dim)
    width = 128 if wide <= 64 else 64 if wide <= 128 else 32
    fixed = 2 * ROWS * (dim + value_dim) * BYTES
    return _best(problem, width, fixed, width * (dim + value_dim) * BYTES, problem.heads, most=4)


@lru_cache(1024)
def _key_gradient(problem: Problem) -> Plan:
    dim, value_dim = padded(problem.dim), padded(problem.value_dim)
    width = 64 if max(dim, value_dim) <= 128 else 32
    fixed = 2 * ROWS * (dim + value_dim) * BYTES
    # Two floats of each query come with it.
    stage = width * (dim + value_dim) * BYTES + 8 * width
    return _best(problem, width, fixed, stage, problem.kv_heads, most=4, inverse=True)


def _best(
    problem: Problem, width: int, fixed: int, stage: int, heads: int, most: int, inverse: bool = False
) -> Plan:
    """The cheapest boxes, with as many stages as shared memory holds beside `fixed` bytes, at most `most`."""
    extents = (problem.outputs, problem.lengths)
    rows, columns = extents[::-1] if inverse else extents
    stays = lambda tile: _stays(problem, tile[0], rows[0])  # noqa: E731
    tiles = list(filter(stays, tiling.boxes(2 * ROWS, 3, rows))) or filter(stays, tiling.boxes(2 * ROWS, 3))
    pairs = list(product(tiles, tiling.boxes(width, 3, columns)))
    found = pairs[0] if len(pairs) == 1 else tiling.best(problem, pairs, inverse=inverse)[:2]
    tile, box = found
    side = max(range(3), key=lambda axis: tile[axis])
    offset = tuple(tile[axis] // 2 if axis == side else 0 for axis in range(3))
    spec = Spec(
        rules=tuple(replace(axis, length=0) for axis in problem.axes),
        rows=tuple(extent - step or extent for extent, step in zip(tile, offset, strict=True)),
        columns=box,
        tile=tile,
        offset=offset,
        masked=tuple(
            not _covered(axis, count, extent)
            for axis, count, extent in zip(problem.axes, box, columns, strict=True)
        ),
        dim=padded(problem.dim),
        value_dim=padded(problem.value_dim),
        stages=min((SHARED - fixed) // stage, most),
    )
    groups = [-(-extent // axis.dilation) for extent, axis in zip(rows, problem.axes, strict=True)]
    tiles = prod(-(-extent // count) for extent, count in zip(groups, tile, strict=True))
    programs = problem.batch * heads * prod(spec.dilation) * tiles
    return Plan(spec, programs)


def _stays(problem: Problem, side: int, extent: int) -> bool:
    """Whether no tile runs over the first axis, behind which the next batch entry lies."""
    return problem.batch == 1 or extent % side == 0 or any(axis.dilation > 1 for axis in problem.axes)


def _covered(axis: Axis, side: int, extent: int) -> bool:
    """Whether every box of columns lies inside every window of the axis."""
    groups = {-(-(extent - residue) // axis.dilation) for residue in range(axis.dilation)}
    return axis.size * axis.dilation == axis.length and not axis.causal and all(n % side == 0 for n in groups)
