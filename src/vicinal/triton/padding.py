"""Padding around documents: each program of a launch fills some of it before it computes its tile.

The stores are on their way while the tile is computed, which leaves most of the memory's time unused.
"""

# pyright: reportAttributeAccessIssue=false
import triton
import triton.language as tl

from .documents import BLOCK, PIECES, WIDTH
from .tile import number_at, row_of, share_of, store_rows

_BLOCK = tl.constexpr(BLOCK)
_PIECES = tl.constexpr(PIECES)
_FIRST = tl.constexpr(WIDTH - 2 * PIECES)


@triton.jit
def fill(
    table, heads, x, y, lse, DIM: tl.constexpr, PAD: tl.constexpr,
    Y_DIM: tl.constexpr, Y_PAD: tl.constexpr, HEADS_FIRST: tl.constexpr,
):  # fmt: skip
    """Zeros in contiguous `x` `[tokens, heads, DIM]` and `y`, and -inf in `lse`, for one head of a row."""
    share = share_of(tl.program_id(0), heads, HEADS_FIRST)
    row = row_of(table, share.row) + _FIRST
    for piece in tl.static_range(_PIECES):
        first, count = number_at(row + 2 * piece).to(tl.int64), number_at(row + 2 * piece + 1)
        for start in range(0, count, _BLOCK):
            token = start + tl.arange(0, _BLOCK)
            inside = token < count
            flat = (first + token) * heads + share.head
            store_rows(x, flat * DIM, tl.zeros([_BLOCK, PAD], tl.float32), inside, DIM, PAD)
            if y is not None:
                store_rows(y, flat * Y_DIM, tl.zeros([_BLOCK, Y_PAD], tl.float32), inside, Y_DIM, Y_PAD)
            if lse is not None:
                tl.store(lse + flat, tl.full([_BLOCK], float("-inf"), tl.float32), mask=inside)
