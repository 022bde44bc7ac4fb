"""The window rule and the geometry of tiles for the Hopper kernels, in Gluon.

A problem has three axes here (leading ones of a lower rank hold one token). `SPEC` is the `Spec` a kernel is compiled for
(`hopper_plan.py`). Indices of outputs and keys count within one dilation group, as in `Axis.keys`, and so do lengths.
A tile is what one program computes: rows are two boxes of 64, one per warpgroup; it visits boxes of columns, the first of
which starts where the first window of the tile starts.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma


class Tile(NamedTuple):
    """What one program computes. Triples hold one entry per axis.

    Args:
        batch, head: of the rows; the head counts query heads in the forward, key/value heads for the gradients of keys.
        residue: dilation group.
        start: first row.
        first, boxes: first column and number of boxes of columns.
        outputs, lengths: extents of the dilation group.
        planes: index along the folded batch and first axis at which the batch entry's outputs and keys start.
    """

    batch: Any
    head: Any
    residue: Any
    start: Any
    first: Any
    boxes: Any
    outputs: Any
    lengths: Any
    planes: Any


class Ring(NamedTuple):
    """Buffers in shared memory that are filled and emptied in turn, with a barrier each for both events."""

    buffers: Any
    full: Any
    empty: Any


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
    """Whether a column lies in [first, stop), by one unsigned comparison; SIZE is its size where all rows agree, or 0."""
    offset = (column - first).to(gl.uint32, bitcast=True)
    if SIZE > 0:
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
def step(box, boxes, SPEC: gl.constexpr):
    """The next box of a walk over `boxes`, last axis fastest, and whether the walk starts over."""
    w = box[2] + 1
    over = w == boxes[2]
    w = gl.where(over, 0, w)
    h, t = box[1], box[0]
    if not SPEC.flat[1]:
        h += over.to(gl.int32)
        over = h == boxes[1]
        h = gl.where(over, 0, h)
    if not SPEC.flat[0]:
        t += over.to(gl.int32)
        over = t == boxes[0]
        t = gl.where(over, 0, t)
    return over, (t, h, w)


@gluon.jit
def within(length, residue, SPEC: gl.constexpr, axis: gl.constexpr):
    """Tokens of the dilation group `residue` on an axis of `length` tokens."""
    dilation: gl.constexpr = SPEC.rules[axis].dilation
    return (length - residue + dilation - 1) // dilation


@gluon.jit
def _groups(extents, residue, SPEC: gl.constexpr):
    return (
        within(extents[0], residue[0], SPEC, 0),
        within(extents[1], residue[1], SPEC, 1),
        within(extents[2], residue[2], SPEC, 2),
    )


@gluon.jit
def _split(program, extent, SPEC: gl.constexpr, axis: gl.constexpr):
    """First row of a program's tile along `axis`, and what is left of its number; group 0 is the longest."""
    side: gl.constexpr = SPEC.tile[axis]
    tiles = (within(extent, 0, SPEC, axis) + side - 1) // side
    return program % tiles * side, program // tiles


@gluon.jit
def _clamp(start, rows, SPEC: gl.constexpr, axis: gl.constexpr):
    """Where groups differ in length, a tile past the end of a short one repeats the last and writes the same."""
    if SPEC.rules[axis].dilation > 1:
        start = gl.where(start >= rows, start - SPEC.tile[axis], start)
    return start


@gluon.jit
def _locate(program, extents, heads, SPEC: gl.constexpr):
    """`(batch, head, residue, start)` of a program's tile, over rows of `extents` on the whole axes."""
    w, rest = _split(program, extents[2], SPEC, 2)
    h, rest = _split(rest, extents[1], SPEC, 1)
    t, rest = _split(rest, extents[0], SPEC, 0)
    apart: gl.constexpr = SPEC.dilation
    residue = (rest // (apart[1] * apart[2]) % apart[0], rest // apart[2] % apart[1], rest % apart[2])
    rest = rest // (apart[0] * apart[1] * apart[2])
    rows = _groups(extents, residue, SPEC)
    start = (_clamp(t, rows[0], SPEC, 0), _clamp(h, rows[1], SPEC, 1), _clamp(w, rows[2], SPEC, 2))
    return rest // heads, rest % heads, residue, start


@gluon.jit
def _planes(batch, outputs, lengths, SPEC: gl.constexpr):
    """Dilated problems address each batch entry and group through a descriptor of its own."""
    if SPEC.dilated:
        planes = (gl.to_tensor(0), gl.to_tensor(0))
    else:
        planes = (batch * outputs[0], batch * lengths[0])
    return planes


@gluon.jit
def _reach(start, outputs, length, SPEC: gl.constexpr, axis: gl.constexpr):
    if SPEC.flat[axis]:
        first, boxes = gl.to_tensor(0), gl.to_tensor(1)
    else:
        first = first_key(start, length, SPEC, axis)
        stop = stop_key(gl.minimum(start + SPEC.tile[axis], outputs) - 1, length, SPEC, axis)
        boxes = (stop - first + SPEC.columns[axis] - 1) // SPEC.columns[axis]
    return first, boxes


@gluon.jit
def query_tile(program, outputs, lengths, heads, SPEC: gl.constexpr):
    """The tile of a program whose rows are queries and columns keys."""
    batch, head, residue, start = _locate(program, outputs, heads, SPEC)
    planes = _planes(batch, outputs, lengths, SPEC)
    outputs, lengths = _groups(outputs, residue, SPEC), _groups(lengths, residue, SPEC)
    t, boxes_t = _reach(start[0], outputs[0], lengths[0], SPEC, 0)
    h, boxes_h = _reach(start[1], outputs[1], lengths[1], SPEC, 1)
    w, boxes_w = _reach(start[2], outputs[2], lengths[2], SPEC, 2)
    return Tile(batch, head, residue, start, (t, h, w), (boxes_t, boxes_h, boxes_w), outputs, lengths, planes)


@gluon.jit
def _seen_from(start, length, SPEC: gl.constexpr, axis: gl.constexpr):
    if SPEC.flat[axis]:
        first, boxes = gl.to_tensor(0), gl.to_tensor(1)
    else:
        first = first_query(start, length, SPEC, axis)
        stop = stop_query(gl.minimum(start + SPEC.tile[axis], length) - 1, length, SPEC, axis)
        boxes = gl.maximum(stop - first + SPEC.columns[axis] - 1, 0) // SPEC.columns[axis]
    return first, boxes


@gluon.jit
def key_tile(program, outputs, lengths, heads, SPEC: gl.constexpr):
    """The tile of a program whose rows are keys and columns queries; it has no boxes where no output sees its keys."""
    batch, head, residue, start = _locate(program, lengths, heads, SPEC)
    planes = _planes(batch, outputs, lengths, SPEC)
    outputs, lengths = _groups(outputs, residue, SPEC), _groups(lengths, residue, SPEC)
    t, boxes_t = _seen_from(start[0], lengths[0], SPEC, 0)
    h, boxes_h = _seen_from(start[1], lengths[1], SPEC, 1)
    w, boxes_w = _seen_from(start[2], lengths[2], SPEC, 2)
    return Tile(batch, head, residue, start, (t, h, w), (boxes_t, boxes_h, boxes_w), outputs, lengths, planes)


@gluon.jit
def token(at, tile, extents, SPEC: gl.constexpr):
    """Row-major index of the tokens at coordinates `at` of the tile's dilation group, within a batch entry."""
    apart: gl.constexpr = SPEC.dilation
    t = at[0] * apart[0] + tile.residue[0]
    h = at[1] * apart[1] + tile.residue[1]
    w = at[2] * apart[2] + tile.residue[2]
    return (t * extents[1] + h) * extents[2] + w


@gluon.jit
def group_view(
    base, strides, extents, tile, heads, dim, box: gl.constexpr, width: gl.constexpr, SPEC: gl.constexpr
):
    """Descriptor of a tile's batch entry and dilation group of a tensor; `strides` count 16 bytes, up to the heads'."""
    apart: gl.constexpr = SPEC.dilation
    swizzle: gl.constexpr = 2 * width if width < 64 else 128
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=16, rank=5)
    offset = tile.batch.to(gl.int64) * strides[0] + tile.residue[0].to(gl.int64) * strides[1]
    offset += tile.residue[1].to(gl.int64) * strides[2] + tile.residue[2].to(gl.int64) * strides[3]
    group = _groups(extents, tile.residue, SPEC)
    return tma.make_tensor_descriptor(
        base + offset * 8,
        [group[0], group[1], group[2], heads, dim],
        [
            gl.to_tensor(strides[1]).to(gl.int64) * (8 * apart[0]),
            gl.to_tensor(strides[2]).to(gl.int64) * (8 * apart[1]),
            gl.to_tensor(strides[3]).to(gl.int64) * (8 * apart[2]),
            gl.to_tensor(strides[4]).to(gl.int64) * 8,
            1,
        ],
        [box[0], box[1], box[2], 1, width],
        layout,
    )


@gluon.jit
def corner(start, warpgroup: gl.constexpr, SPEC: gl.constexpr):
    """First row of the box of `warpgroup` in a tile."""
    offset: gl.constexpr = SPEC.offset
    return (
        start[0] + warpgroup * offset[0],
        start[1] + warpgroup * offset[1],
        start[2] + warpgroup * offset[2],
    )


@gluon.jit
def box_at(first, box, SPEC: gl.constexpr):
    """First column of a visited box."""
    columns: gl.constexpr = SPEC.columns
    return first[0] + box[0] * columns[0], first[1] + box[1] * columns[1], first[2] + box[2] * columns[2]


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
def hide(scores, fill: gl.constexpr, at, index, first, stop, shared, sizes: gl.constexpr, SPEC: gl.constexpr):
    """`scores` of rows that see [first, stop) over the box of columns at `at`, `fill` where the row does not see the column.

    Each axis pays only in boxes that cross the border of what all rows see.
    """
    columns: gl.constexpr = SPEC.columns
    for axis in gl.static_range(3):
        if SPEC.masked[axis]:
            if (at[axis] < shared[0][axis]) | (at[axis] + columns[axis] > shared[1][axis]):
                column = place(index, columns, axis) + at[axis]
                seen = sees(column[None, :], first[axis][:, None], stop[axis][:, None], sizes[axis])
                scores = gl.where(seen, scores, fill)
    return scores


@gluon.jit
def barriers(count: gl.constexpr, arrivals: gl.constexpr):
    """Barriers in shared memory that `arrivals` arrivals complete."""
    bars = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(bars.index(i), count=arrivals)
    return bars


@gluon.jit
def buffers(descriptor, count: gl.constexpr):
    """Room in shared memory for `count` boxes of a descriptor."""
    shape: gl.constexpr = [count] + descriptor.block_type.shape  # noqa: RUF005 no unpacking in kernels
    return gl.allocate_shared_memory(descriptor.dtype, shape, descriptor.layout)


@gluon.jit
def ring(descriptor, stages: gl.constexpr, readers: gl.constexpr):
    """Buffers for boxes of a descriptor that `readers` warpgroups read."""
    return Ring(buffers(descriptor, stages), barriers(stages, 1), barriers(stages, readers))


@gluon.jit
def fill(descriptor, into, stage, plane, at, head):
    """Copies a box of one head into a stage of a ring."""
    mbarrier.expect(into.full.index(stage), descriptor.block_type.nbytes)
    tma.async_copy_global_to_shared(
        descriptor, [plane + at[0], at[1], at[2], head, 0], into.full.index(stage), into.buffers.index(stage)
    )


@gluon.jit
def put(descriptor, values, buffer, plane, at, head):
    """Starts writing a warpgroup's box through shared memory; TMA leaves out what lies outside the tensor."""
    buffer.reshape(values.shape).store(values.to(descriptor.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(descriptor, [plane + at[0], at[1], at[2], head, 0], buffer)
