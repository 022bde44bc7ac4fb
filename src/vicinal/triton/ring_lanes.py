"""Columns of several chunks side by side, and of two columns of one chunk in a lane, as weights hold them."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

MASK = gl.constexpr("and.b32 $0, $1, $2;")


@gluon.jit
def _pair(left, right):
    both = gl.permute(gl.join(left, right), (0, 2, 1))
    return gl.reshape(both, [left.shape[0], 2 * left.shape[1]])


@gluon.jit
def _halves(block):
    """The first and the last half of the columns of `[ROWS, columns]`."""
    pairs = gl.reshape(block, [block.shape[0], 2, block.shape[1] // 2])
    return gl.split(gl.permute(pairs, (0, 2, 1)))


@gluon.jit
def joined(parts):
    """`[ROWS, columns]` of each part side by side; there are 1, 2 or 4."""
    if len(parts) == 1:
        return parts[0]
    elif len(parts) == 2:
        return _pair(parts[0], parts[1])
    else:
        return _pair(_pair(parts[0], parts[1]), _pair(parts[2], parts[3]))


@gluon.jit
def parted(block, COUNT: gl.constexpr):
    """The reverse of `joined`."""
    if COUNT == 1:
        return (block,)
    elif COUNT == 2:
        return _halves(block)
    else:
        left, right = _halves(block)
        return _halves(left) + _halves(right)


@gluon.jit
def folded(found, seen, SPEC: gl.constexpr):
    """The lanes of a chunk: of two columns half a chunk apart, the one that a row sees."""
    if SPEC.lanes < SPEC.width:
        left, right = _halves(found)
        return gl.where(_halves(seen)[1], right, left)
    else:
        return found


@gluon.jit
def unfolded(weights, seen, LAYOUT: gl.constexpr, SPEC: gl.constexpr):
    """The columns of a chunk, given its lanes: zero where a row does not see them."""
    if SPEC.lanes < SPEC.width:
        bits = weights.to(gl.int16, bitcast=True)
        left, right = _halves(gl.where(seen, -1, 0).to(gl.int16))
        # Parts of the same columns may have layouts of two names.
        bits = gl.convert_layout(bits, LAYOUT)
        left, right = gl.convert_layout(left, LAYOUT), gl.convert_layout(right, LAYOUT)
        return _pair(_masked(bits, left), _masked(bits, right)).to(weights.dtype, bitcast=True)
    else:
        return weights


@gluon.jit
def _masked(bits, mask):
    """Both of two neighbors at once, which Triton does one by one."""
    return gl.inline_asm_elementwise(MASK, "=r,r,r", [bits, mask], dtype=gl.int16, is_pure=True, pack=2)
