"""Online softmax of the Hopper forward, in Gluon: weights of a box of scores, and what older sums shrink by.

Weights are powers of two in units of a row's maximum, but one that has grown by little leaves the unit as it
is: weights then reach 2**8, which every dtype holds, and most boxes spare the sums a product with 1.

A thread holds every fourth pair of columns of two rows. Its maxima and sums are its own, `[64, 4]`: they meet
those of other threads where a unit moves, and at the end of a tile. A warp decides that for its 16 rows, in
PTX, since Gluon's branches are those of all warps.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from . import hopper_veil as hv

# Units of rows that no key has been seen of: finite, since hidden scores are not.
LOWEST = gl.constexpr(-(2.0**100))
# As PTX writes 8 and 1.
_SLACK, _ONE = "0f41000000", "0f3F800000"


def _raising() -> str:
    """PTX that takes maxima and units of a thread's two rows, and gives units and what sums shrink by."""
    rows = range(2)
    ahead = "".join(f"sub.f32 c, ${4 + i}, ${i}; setp.gt.f32 p{i}, c, {_SLACK};" for i in rows)
    stay = "".join(f"mov.f32 a{i}, ${4 + i}; mov.f32 ${2 + i}, {_ONE};" for i in rows)
    meet = "".join(
        f"shfl.sync.bfly.b32 c, a{i}, {lane}, 31, 0xffffffff; max.f32 a{i}, a{i}, c;"
        for lane in (1, 2)
        for i in rows
    )
    # A difference of equal units is zero, and its power exactly 1.
    move = "".join(
        f"sub.f32 c, a{i}, ${i}; setp.gt.f32 p{i}, c, {_SLACK}; selp.f32 a{i}, a{i}, ${i}, p{i};"
        f"sub.f32 c, ${i}, a{i}; mov.f32 ${i}, a{i}; ex2.approx.ftz.f32 ${2 + i}, c;"
        for i in rows
    )
    return (
        f"{{ .reg .pred p0, p1; .reg .f32 a0, a1, c; {ahead} {stay} or.pred p0, p0, p1;"
        f"vote.sync.any.pred p0, p0, 0xffffffff; @!p0 bra DONE; {meet} {move} DONE: }}"
    )


@gluon.constexpr_function
def rescaling(count):
    """PTX that multiplies `count` sums of a thread by their rows' factors.

    A warp whose factors are all 1 skips the products. A thread holds sums of two rows, two by two.
    """
    factor = 2 * count
    products = "".join(f"mul.f32 ${i}, ${i}, ${i + factor};" for i in range(count))
    return (
        f"{{ .reg .pred p; setp.neu.f32 p, ${factor}, {_ONE}; setp.neu.or.f32 p, ${factor + 2}, {_ONE}, p;"
        f"vote.sync.any.pred p, p, 0xffffffff; @!p bra DONE; {products} DONE: }}"
    )


@gluon.constexpr_function
def _rescaled(count):
    """Its operands: sums in place, and factors."""
    return ",".join(["=f"] * count + [str(i) for i in range(count)] + ["f"] * count)


RAISE = gl.constexpr(_raising())
RAISED = gl.constexpr("=&f,=&f,=&f,=&f,f,f,0,1")
# No sum is below zero, but ptxas does not know: it leaves what sums are made of before a branch on that, and
# so before the wait that follows. It makes no predicate of a branch around a shuffle.
HOLD = gl.constexpr(
    "{ .reg .pred p; setp.lt.f32 p, $2, 0f00000000; setp.lt.or.f32 p, $3, 0f00000000, p;"
    "vote.sync.any.pred p, p, 0xffffffff; @!p bra DONE; shfl.sync.bfly.b32 $0, $0, 1, 31, 0xffffffff; DONE: }"
)
HELD = gl.constexpr("=f,=f,0,1")


@gluon.jit
def _beside(numbers, x):
    """Numbers of threads beside what they hold."""
    return gl.convert_layout(numbers, gl.SliceLayout(1, gl.SliceLayout(3, x.type.layout)))[:, None, :, None]


@gluon.jit
def lowest(scores):
    """Units of rows that no key has been seen of, `[64, 4]`."""
    layout: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(3, hv.by_thread(scores).type.layout))
    return gl.full([64, 4], LOWEST, gl.float32, layout=layout)


@gluon.jit
def _highest(scores, veil, scale2):
    """The highest score that each thread sees."""
    if len(veil) > 0:
        # Of columns that one number hides the highest first.
        apart = hv.along_last(scores, veil[0].shape[1])
        held = hv.by_thread(gl.max(apart, 1) * scale2 - veil[0])
        highest = gl.max(gl.max(held, 3), 1)
    else:
        held = hv.by_thread(scores)
        highest = gl.max(gl.max(held, 3), 1) * scale2
    return highest


@gluon.jit
def _powers(scores, units, veil, scale2):
    if len(veil) > 0:
        hidden = hv.by_thread(veil[0])
        hidden = (_beside(units, hidden) + hidden).reshape(veil[0].shape)
        hidden = gl.convert_layout(hidden, veil[0].type.layout)
        weights = gl.exp2(hv.along_last(scores, hidden.shape[1]) * scale2 - hidden[:, None, :])
    else:
        held = hv.by_thread(scores)
        weights = gl.exp2(held * scale2 - _beside(units, held))
    return weights


@gluon.jit
def softmax(scores, units, veil, scale2):
    """Weights of a box and units that they are in, what old sums shrink by, and sums of the weights.

    `veil` is as `hopper_veil.veil` gives it.
    """
    highest = gl.convert_layout(_highest(scores, veil, scale2), units.type.layout)
    units, shrink = gl.inline_asm_elementwise(
        RAISE, RAISED, [highest, units], dtype=(gl.float32, gl.float32), is_pure=False, pack=2
    )
    weights = _powers(scores, units, veil, scale2).reshape(scores.shape)
    sums = gl.sum(gl.sum(hv.by_thread(weights), 3), 1)
    sums = gl.inline_asm_elementwise(HOLD, HELD, [sums], dtype=gl.float32, is_pure=False, pack=2)
    return weights, units, shrink, sums


@gluon.jit
def _rescale(part, shrink):
    count: gl.constexpr = part.shape[1] // 2
    source: gl.constexpr = rescaling(count)
    operands: gl.constexpr = _rescaled(count)
    held = hv.by_thread(part)
    factor, held = gl.broadcast(_beside(shrink, held), held)
    held = gl.inline_asm_elementwise(
        source, operands, [held, factor], dtype=gl.float32, is_pure=True, pack=count
    )
    return gl.convert_layout(held.reshape(part.shape), part.type.layout)


@gluon.jit
def rescale(parts, shrink):
    """Sums, part by part, in new units."""
    found = ()
    for part in gl.static_range(len(parts)):
        found += (_rescale(parts[part], shrink),)
    return found
