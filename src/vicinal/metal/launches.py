"""What each operation launches, whichever framework launches it: kernel, template arguments, grid, tables.

`most_waste` is how many pairs tiles may compute for each that counts; beyond it, a thread takes a row.
"""

from math import prod
from typing import NamedTuple

from ..problem import Problem
from .documents import layout, outputs, whole
from .geometry import Layout
from .source import TYPES

PLAIN_THREADS = 64
TILE_THREADS = 128
BIAS_THREADS = 128
SIMD_THREADS = 32


class Launch(NamedTuple):
    """A grid of `threads` in threadgroups of `group`, over the rows of `layout` if there are any."""

    kernel: str
    arguments: tuple[str | int | bool, ...]
    threads: tuple[int, int, int]
    group: int
    layout: Layout | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write; Metal has no empty grids."""
        return 0 in self.threads


def attend(problem: Problem, most_waste: float) -> Launch:
    return _over_rows("attend", (*_shape(problem), *_options(problem)), layout(problem), most_waste)


def delta(problem: Problem) -> Launch:
    """What backward subtracts from the gradients of the weights, one number a row."""
    rows = prod(outputs(problem).extents) * problem.heads
    arguments = (TYPES[problem.dtype], problem.value_dim)
    return Launch("delta", arguments, (SIMD_THREADS * rows, 1, 1), SIMD_THREADS)


def attend_back_query(problem: Problem, most_waste: float) -> Launch:
    arguments = (*_shape(problem), *_options(problem))
    return _over_rows("attend_back_query", arguments, layout(problem), most_waste)


def attend_back_key(problem: Problem, most_waste: float) -> Launch:
    arguments = (*_shape(problem), problem.bias, problem.documents is not None)
    return _over_rows("attend_back_key", arguments, layout(problem, inverse=True), most_waste)


def attend_back_extra(problem: Problem, most_waste: float) -> Launch:
    """The same, of the additional tokens: keys that all outputs see, on axes of their own."""
    where, (dtype, _, *dims) = whole(problem), _shape(problem)
    arguments = (dtype, len(where.widest), *dims, False, problem.documents is not None)
    return _over_rows("attend_back_key", arguments, where, most_waste)


def attend_back_bias(problem: Problem) -> Launch:
    where = layout(problem)
    threads = (BIAS_THREADS * where.geometry.relative_count, problem.heads, 1)
    arguments = (*_shape(problem), problem.documents is not None)
    return Launch("attend_back_bias", arguments, threads, BIAS_THREADS, where)


def dot(problem: Problem, most_waste: float) -> Launch:
    arguments = (TYPES[problem.dtype], problem.rank, problem.dim, problem.bias)
    return _over_rows("dot_walk", arguments, layout(problem), most_waste)


def mix(problem: Problem, weights: str, vectors: str, dim: int, most_waste: float) -> Launch:
    """Of weights and vectors of these dtypes."""
    arguments = (TYPES[weights], TYPES[vectors], problem.rank, dim)
    return _over_rows("mix_walk", arguments, layout(problem), most_waste)


def mix_back(problem: Problem, weights: str, vectors: str, dim: int, most_waste: float) -> Launch:
    arguments = (TYPES[weights], TYPES[vectors], problem.rank, dim)
    return _over_rows("mix_back_walk", arguments, layout(problem, inverse=True), most_waste)


def _over_rows(kernel: str, arguments: tuple, where: Layout, most_waste: float) -> Launch:
    """By tiles of rows, or the plain version with a thread a row."""
    if where.suits_tiles(most_waste):
        threads = (TILE_THREADS * where.tile_count, where.heads, where.batch)
        return Launch(kernel, arguments, threads, TILE_THREADS, where)
    threads = (where.row_count, where.heads, where.batch)
    return Launch(f"{kernel}_plain", arguments, threads, PLAIN_THREADS, where)


def _shape(problem: Problem) -> tuple:
    return TYPES[problem.dtype], problem.rank, problem.dim, problem.value_dim


def _options(problem: Problem) -> tuple[bool, bool, bool]:
    return problem.bias, problem.extra > 0, problem.documents is not None
