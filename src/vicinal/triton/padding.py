"""Padding around documents, which programs of their own fill: other programs compute meanwhile."""

# pyright: reportAttributeAccessIssue=false
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .documents import AREA
from .tile import number_at, row_of

_AREA = tl.constexpr(AREA)


class _Area(NamedTuple):
    """Runs of `count` tokens, `pitch` apart: every `parts`-th block from `part` on is this program's."""

    first: Any
    count: Any
    runs: Any
    pitch: Any
    part: Any
    parts: Any


@triton.jit
def fill(table, heads, x, y, lse, DIM: tl.constexpr, Y_DIM: tl.constexpr):
    """Zeros in contiguous `x` `[tokens, heads, DIM]` and `y`, and -inf in `lse`, for a row of padding."""
    row = row_of(table, tl.program_id(0) // heads) + _AREA
    first = number_at(row).to(tl.int64)
    part = tl.program_id(0) % heads
    area = _Area(first, number_at(row + 1), number_at(row + 2), number_at(row + 3), part, heads)
    _put(x, 0.0, area, heads * DIM, 4096)
    if y is not None:
        _put(y, 0.0, area, heads * Y_DIM, 4096)
    if lse is not None:
        _put(lse, float("-inf"), area, heads, 256)


@triton.jit
def _put(x, value, area, width, BLOCK: tl.constexpr):
    """`value` in `x` `[tokens, width]`, `BLOCK` elements at once."""
    size = area.count * width
    blocks = tl.cdiv(size, BLOCK)
    filled = tl.full([BLOCK], value, x.dtype.element_ty)
    for number in range(area.part, area.runs * blocks, area.parts):
        token = area.first + number // blocks * area.pitch
        at = number % blocks * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + token * width + at, filled, mask=at < size, eviction_policy="evict_first")
