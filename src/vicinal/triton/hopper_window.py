"""The window rule for the Hopper kernels, in Gluon: what a row of a tile sees, in both directions, and masks.

A problem has three axes here; leading ones of a lower rank hold one token. `SPEC` is what a kernel is
compiled for (`hopper_spec.Spec`). Indices of outputs and keys, and lengths, count within one dilation group.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def first_key(output, length, SPEC: gl.constexpr, axis: gl.constexpr):
    """First key that `output` sees."""
    rule: gl.constexpr = SPEC.rules[axis]
    token = output * rule.output_stride
    shared = token // rule.stride * rule.stride
    if rule.causal:
        first = gl.maximum(gl.minimum(shared + rule.stride, length) - rule.size, 0)
    else:
        leader = gl.minimum(shared + rule.stride // 2, length - 1)
        first = gl.minimum(gl.maximum(leader - rule.size // 2, 0), length - rule.size)
    return first


@gluon.jit
def stop_key(output, length, SPEC: gl.constexpr, axis: gl.constexpr):
    """One past the last key that `output` sees."""
    rule: gl.constexpr = SPEC.rules[axis]
    if rule.causal:
        stop = output * rule.output_stride + 1
    else:
        stop = first_key(output, length, SPEC, axis) + rule.size
    return stop


@gluon.jit
def first_query(key, length, SPEC: gl.constexpr, axis: gl.constexpr):
    """First output that sees `key`: the first whose window stops after it."""
    rule: gl.constexpr = SPEC.rules[axis]
    if rule.causal:
        token = key
    else:
        # The leader of the first block must stand at or after this token.
        leader = key - rule.size + 1 + rule.size // 2
        block = (leader - rule.stride // 2 + rule.stride - 1) // rule.stride
        token = gl.minimum(block, (length - 1) // rule.stride) * rule.stride
        token = gl.where(key < rule.size, 0, token)
    return (token + rule.output_stride - 1) // rule.output_stride


@gluon.jit
def stop_query(key, length, SPEC: gl.constexpr, axis: gl.constexpr):
    """One past the last output that sees `key`: one past the last whose window starts at or before it."""
    rule: gl.constexpr = SPEC.rules[axis]
    if rule.causal:
        block = (key + rule.size - rule.stride) // rule.stride
    else:
        block = (key + rule.size // 2 - rule.stride // 2) // rule.stride
    token = gl.minimum(block * rule.stride + rule.stride - 1, length - 1)
    token = gl.where(key >= length - rule.size, length - 1, token)
    return token // rule.output_stride + 1


@gluon.jit
def sees(column, first, stop, SIZE: gl.constexpr):
    """Whether a column lies in [first, stop), in one comparison; SIZE is stop - first if known, or 0."""
    offset = (column - first).to(gl.uint32, bitcast=True)
    if SIZE > 0:  # noqa: SIM108 the branch is taken at compile time
        seen = offset < SIZE
    else:
        seen = offset < (stop - first).to(gl.uint32, bitcast=True)
    return seen


@gluon.jit
def place(index, box: gl.constexpr, axis: gl.constexpr):
    """Coordinate along `axis` of element `index` of a box, last axis fastest."""
    if axis == 0:
        at = index // (box[1] * box[2])
    elif axis == 1:
        at = index // box[2] % box[1]
    else:
        at = index % box[2]
    return at


@gluon.jit
def coordinates(index, start, box: gl.constexpr):
    """Coordinates of elements `index` of a box at `start`."""
    return start[0] + place(index, box, 0), start[1] + place(index, box, 1), start[2] + place(index, box, 2)


@gluon.jit
def clip(at, extents):
    """Coordinates, moved to the last element where they lie past it."""
    return (
        gl.minimum(at[0], extents[0] - 1),
        gl.minimum(at[1], extents[1] - 1),
        gl.minimum(at[2], extents[2] - 1),
    )


@gluon.jit
def windows(output, lengths, SPEC: gl.constexpr):
    """First and stop keys of outputs, per axis."""
    first = (
        first_key(output[0], lengths[0], SPEC, 0),
        first_key(output[1], lengths[1], SPEC, 1),
        first_key(output[2], lengths[2], SPEC, 2),
    )
    stop = (
        stop_key(output[0], lengths[0], SPEC, 0),
        stop_key(output[1], lengths[1], SPEC, 1),
        stop_key(output[2], lengths[2], SPEC, 2),
    )
    return first, stop


@gluon.jit
def viewers(key, lengths, SPEC: gl.constexpr):
    """First and stop outputs that see keys, per axis: `windows` the other way round."""
    first = (
        first_query(key[0], lengths[0], SPEC, 0),
        first_query(key[1], lengths[1], SPEC, 1),
        first_query(key[2], lengths[2], SPEC, 2),
    )
    stop = (
        stop_query(key[0], lengths[0], SPEC, 0),
        stop_query(key[1], lengths[1], SPEC, 1),
        stop_query(key[2], lengths[2], SPEC, 2),
    )
    return first, stop


@gluon.jit
def _ends(start, extents, SPEC: gl.constexpr):
    """First and last row of a warpgroup's box."""
    rows: gl.constexpr = SPEC.rows
    last = (start[0] + rows[0] - 1, start[1] + rows[1] - 1, start[2] + rows[2] - 1)
    return clip(start, extents), clip(last, extents)


@gluon.jit
def shared_window(start, tile, SPEC: gl.constexpr):
    """Keys that every output of a warpgroup's box sees, per axis: a box of columns inside needs no mask."""
    first, last = _ends(start, tile.outputs, SPEC)
    return windows(last, tile.lengths, SPEC)[0], windows(first, tile.lengths, SPEC)[1]


@gluon.jit
def shared_viewers(start, tile, SPEC: gl.constexpr):
    """Outputs that see every key of a warpgroup's box, per axis."""
    first, last = _ends(start, tile.lengths, SPEC)
    return viewers(last, tile.lengths, SPEC)[0], viewers(first, tile.lengths, SPEC)[1]


@gluon.jit
def inside(at, extents):
    """Whether coordinates lie inside the tensor."""
    return (at[0] < extents[0]) & (at[1] < extents[1]) & (at[2] < extents[2])


@gluon.jit
def overhangs(start, extents, SPEC: gl.constexpr):
    """Whether a warpgroup's box of rows holds some that lie outside the tensor."""
    rows: gl.constexpr = SPEC.rows
    beyond = (start[0] + rows[0] > extents[0]) | (start[1] + rows[1] > extents[1])
    return beyond | (start[2] + rows[2] > extents[2])


@gluon.jit
def crosses(at, shared, SPEC: gl.constexpr, axis: gl.constexpr):
    """Whether the box of columns at `at` holds some, along `axis`, that not every row sees."""
    columns: gl.constexpr = SPEC.columns
    return (at[axis] < shared[0][axis]) | (at[axis] + columns[axis] > shared[1][axis])


@gluon.jit
def crossed(at, shared, SPEC: gl.constexpr):
    """A bit per axis on which the box of columns at `at` needs a mask."""
    bits = gl.to_tensor(0)
    for axis in gl.static_range(3):
        if SPEC.masked[axis]:
            bits |= crosses(at, shared, SPEC, axis).to(gl.int32) << axis
    return bits


@gluon.jit
def hide(weights, at, index, first, stop, shared, SPEC: gl.constexpr):
    """`weights` over the box of columns at `at`, 0 where a row sees none of [first, stop) there.

    Each axis pays only in boxes that cross the border of what all rows see.
    """
    columns: gl.constexpr = SPEC.columns
    sizes: gl.constexpr = SPEC.sizes
    for axis in gl.static_range(3):
        if SPEC.masked[axis]:  # noqa: SIM102 the outer branch is taken at compile time
            if crosses(at, shared, SPEC, axis):
                column = place(index, columns, axis) + at[axis]
                seen = sees(column[None, :], first[axis][:, None], stop[axis][:, None], sizes[axis])
                weights = gl.where(seen, weights, 0.0)
    return weights
