"""Layouts of tiles of rows, whose `sides` say how many rows there are, in registers and in shared memory.

Every 16 rows of a tile are computed by a warp.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def count(sides):
    """Rows of a tile."""
    return sides[0] * sides[1] * sides[2]


@gluon.constexpr_function
def products(sides):
    """Layout of products, of which every warp computes 16 rows."""
    return gl.NVMMADistributedLayout([2, 0], [count(sides) // 16, 1], [16, 8])


@gluon.constexpr_function
def factor(sides, side):
    """Layout of the left (0) or right (1) factor of a product."""
    return gl.DotOperandLayout(side, products(sides), 2)


@gluon.constexpr_function
def beside(sides):
    """Layout of one number for each row of a product."""
    return gl.SliceLayout(1, products(sides))


@gluon.constexpr_function
def above(sides):
    """Layout of one number for each column of a product."""
    return gl.SliceLayout(0, products(sides))


@gluon.constexpr_function
def numbers(sides):
    """Layout of numbers to copy."""
    return gl.BlockedLayout([1], [32], [count(sides) // 16], [0])


@gluon.constexpr_function
def lines(dim, sides):
    """Layout of `[rows, dim]` in registers: 16 bytes a thread."""
    return gl.BlockedLayout([1, 8], [256 // dim, dim // 8], [count(sides) // 16, 1], [1, 0])


@gluon.constexpr_function
def tokens(dim, sides):
    """Layout of `[rows]` beside `lines`."""
    return gl.SliceLayout(1, lines(dim, sides))


@gluon.constexpr_function
def swizzled(dim):
    """Layout of `[slots, rows, dim]` in shared memory: eight rows of 16 bytes lie in different banks."""
    phase = max(1, 64 // dim)
    return gl.SwizzledSharedLayout(8, phase, 8 // phase, [1, 0])
