"""Products of the Hopper kernels, in Gluon, in parts of the head dimension.

Blocks extend over powers of two. What three quarters of one hold is multiplied as a half and a quarter: the
zeros that fill a box up are left out. `CUTS` has the start and the width of each part.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait


@gluon.jit
def matrix(buffers, place):
    """Buffer `place` of some, a row for each token."""
    extents: gl.constexpr = buffers.shape
    count: gl.constexpr = extents[1] * extents[2] * extents[3]
    return buffers.index(place).reshape([count, extents[5]])


@gluon.jit
def cut(buffer, START: gl.constexpr, WIDTH: gl.constexpr):
    """A part of the columns of a buffer."""
    return buffer.slice(START, WIDTH, dim=1)


@gluon.jit
def factors(rows, layout: gl.constexpr, CUTS: gl.constexpr, HELD: gl.constexpr):
    """Rows as left factors of products in `layout`: in registers they take no bandwidth."""
    found = ()
    for part in gl.static_range(len(CUTS)):
        factor = cut(rows, CUTS[part][0], CUTS[part][1])
        if HELD:
            factor = factor.load(gl.DotOperandLayout(0, layout, 2))
        found += (factor,)
    return found


@gluon.jit
def afresh(numbers, i):
    """The same numbers, for the compiler others in each step `i`, which is not negative."""
    return numbers + (i >> 31)


@gluon.jit
def anew(buffers, place, i, CUTS: gl.constexpr):
    """The same from shared memory, addressed in step `i`: kept addresses would take registers."""
    return factors(matrix(buffers, afresh(place, i)), None, CUTS, False)


@gluon.jit
def multiply(rows, box, empty, CUTS: gl.constexpr):
    """Starts the product of rows, as `factors` gives them, with the transpose of a box."""
    flying = empty
    for part in gl.static_range(len(CUTS)):
        columns = cut(box, CUTS[part][0], CUTS[part][1]).permute((1, 0))
        flying = warpgroup_mma(rows[part], columns, flying, use_acc=part > 0, is_async=True)
    return (flying,)


@gluon.constexpr_function
def weight_layout(cuts):
    """Of the left factor of what is added to sums."""
    return gl.DotOperandLayout(0, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, cuts[0][1], 16]), 2)


@gluon.jit
def _zeros(WIDTH: gl.constexpr):
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    return gl.full([64, WIDTH], 0.0, gl.float32, layout=layout)


@gluon.jit
def zeros(CUTS: gl.constexpr):
    """Sums of 64 rows."""
    sums = ()
    for part in gl.static_range(len(CUTS)):
        sums += (_zeros(CUTS[part][1]),)
    return sums


@gluon.jit
def add(weights, box, sums, CUTS: gl.constexpr):
    """Starts adding the product of weights with a box to sums."""
    adding = ()
    for part in gl.static_range(len(CUTS)):
        columns = cut(box, CUTS[part][0], CUTS[part][1])
        adding += (warpgroup_mma(weights, columns, sums[part], is_async=True),)
    return adding


@gluon.jit
def landed(flying, LEFT: gl.constexpr):
    """Products once no more than `LEFT` of those started later are under way."""
    found = warpgroup_mma_wait(LEFT, deps=flying)
    return found if len(flying) > 1 else (found,)


@gluon.jit
def scaled(sums, scale):
    """Sums times a number."""
    found = ()
    for part in gl.static_range(len(sums)):
        found += (sums[part] * scale,)
    return found


@gluon.jit
def store(sums, buffer, CUTS: gl.constexpr):
    """Rounds sums into a buffer."""
    for part in gl.static_range(len(CUTS)):
        cut(buffer, CUTS[part][0], CUTS[part][1]).store(sums[part].to(buffer.dtype))
