"""Tiles of the Hopper kernels, in Gluon: the rows of a program, and the boxes that it walks.

Rows of a tile are boxes of 64, one per warpgroup. It walks boxes of columns, the first of which starts
where the first window of the tile starts. The axis along which the warpgroups split the tile is walked
slowest, so what one of them leaves to others lies at the ends of the walk.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .hopper_window import first_key, first_query, stop_key, stop_query


class Tile(NamedTuple):
    """What one program computes. Triples hold one entry per axis.

    Args:
        batch, head: of the rows; for the gradients of keys, the head counts key/value heads.
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


class Grid(NamedTuple):
    """What a launch computes.

    Args:
        outputs, lengths: extents of outputs and keys.
        heads, group: query heads, and those that share keys.
        tiles, first: one past the last tile, and the first.
        walks: query heads, of all batch entries, before the first whose slopes are kept.
    """

    outputs: Any
    lengths: Any
    heads: Any
    group: Any
    tiles: Any
    first: Any
    walks: Any


@gluon.jit
def _advance(at, count, carry):
    at = gl.where(carry, at + 1, at)
    over = at == count
    return gl.where(over, 0, at), over


@gluon.jit
def step(box, boxes, SPEC: gl.constexpr):
    """The next box of a walk over `boxes`, the split axis slowest; it starts over after the last."""
    t, h, w = box
    over = gl.to_tensor(True)
    if SPEC.split == 2:
        h, over = _advance(h, boxes[1], over)
        t, over = _advance(t, boxes[0], over)
        w, over = _advance(w, boxes[2], over)
    elif SPEC.split == 1:
        w, over = _advance(w, boxes[2], over)
        t, over = _advance(t, boxes[0], over)
        h, over = _advance(h, boxes[1], over)
    else:
        w, over = _advance(w, boxes[2], over)
        h, over = _advance(h, boxes[1], over)
        t, over = _advance(t, boxes[0], over)
    return t, h, w


@gluon.jit
def box_of(slow, SPEC: gl.constexpr):
    """The first box of a walk whose index on the slowest axis is `slow`."""
    zero = gl.to_tensor(0)
    if SPEC.split == 2:
        box = (zero, zero, slow)
    elif SPEC.split == 1:
        box = (zero, slow, zero)
    else:
        box = (slow, zero, zero)
    return box


@gluon.jit
def _share(first, stop, tile, SPEC: gl.constexpr):
    """Boxes that hold columns [first, stop) of the split axis: the first, and their range in the walk."""
    axis: gl.constexpr = SPEC.split
    columns: gl.constexpr = SPEC.columns
    count = tile.boxes[axis]
    low = gl.minimum((first - tile.first[axis]) // columns[axis], count)
    high = gl.maximum((stop - tile.first[axis] + columns[axis] - 1) // columns[axis], low)
    if axis == 2:
        inner = tile.boxes[0] * tile.boxes[1]
    elif axis == 1:
        inner = tile.boxes[0] * tile.boxes[2]
    else:
        inner = tile.boxes[1] * tile.boxes[2]
    return low, low * inner, gl.minimum(high, count) * inner


@gluon.jit
def own_keys(start, tile, SPEC: gl.constexpr):
    """What the warpgroup with queries at `start` visits: first box on the split axis, steps of the walk."""
    axis: gl.constexpr = SPEC.split
    rows: gl.constexpr = SPEC.rows
    outputs, length = tile.outputs[axis], tile.lengths[axis]
    first = first_key(gl.minimum(start[axis], outputs - 1), length, SPEC, axis)
    stop = stop_key(gl.minimum(start[axis] + rows[axis], outputs) - 1, length, SPEC, axis)
    return _share(first, stop, tile, SPEC)


@gluon.jit
def own_queries(start, tile, SPEC: gl.constexpr):
    """What the warpgroup with keys at `start` visits: first box on the split axis, and steps of the walk.

    No boxes, if the keys lie past the end of the tensor.
    """
    axis: gl.constexpr = SPEC.split
    rows: gl.constexpr = SPEC.rows
    length = tile.lengths[axis]
    first = first_query(gl.minimum(start[axis], length - 1), length, SPEC, axis)
    stop = stop_query(gl.minimum(start[axis] + rows[axis], length) - 1, length, SPEC, axis)
    low, begin, end = _share(first, stop, tile, SPEC)
    return low, begin, gl.where(start[axis] < length, end, begin)


@gluon.jit
def within(length, residue, SPEC: gl.constexpr, axis: gl.constexpr):
    """Tokens of the dilation group `residue` on an axis of `length` tokens."""
    dilation: gl.constexpr = SPEC.rules[axis].dilation
    return (length - residue + dilation - 1) // dilation


@gluon.jit
def groups(extents, residue, SPEC: gl.constexpr):
    """Extents of a dilation group."""
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
    """Where groups differ in length, a tile past the end of a short one repeats the one before."""
    if SPEC.rules[axis].dilation > 1:
        start = gl.where(start >= rows, start - SPEC.tile[axis], start)
    return start


@gluon.jit
def _locate(program, extents, heads, SPEC: gl.constexpr):
    """`(batch, head, residue, start)` of a program's tile, over rows of `extents` on the whole axes."""
    axes: gl.constexpr = SPEC.order
    places: gl.constexpr = SPEC.places
    first, rest = _split(program, extents[axes[0]], SPEC, axes[0])
    second, rest = _split(rest, extents[axes[1]], SPEC, axes[1])
    third, rest = _split(rest, extents[axes[2]], SPEC, axes[2])
    starts = (first, second, third)
    t, h, w = starts[places[0]], starts[places[1]], starts[places[2]]
    apart: gl.constexpr = SPEC.dilation
    residue = (rest // (apart[1] * apart[2]) % apart[0], rest // apart[2] % apart[1], rest % apart[2])
    rest = rest // (apart[0] * apart[1] * apart[2])
    rows = groups(extents, residue, SPEC)
    start = (_clamp(t, rows[0], SPEC, 0), _clamp(h, rows[1], SPEC, 1), _clamp(w, rows[2], SPEC, 2))
    return rest // heads, rest % heads, residue, start


@gluon.jit
def _planes(batch, outputs, lengths, SPEC: gl.constexpr):
    """With dilation, `_place` or a program's own tensor map tells batch entries and groups apart."""
    if SPEC.dilated:  # noqa: SIM108 kernels have no conditional expressions of tuples
        planes = (gl.to_tensor(0), gl.to_tensor(0))
    else:
        planes = (batch * outputs[0], batch * lengths[0])
    return planes


@gluon.jit
def _origin(first, SPEC: gl.constexpr, axis: gl.constexpr):
    """Where the first box of columns starts: where the first window does, or at a multiple of its side."""
    side: gl.constexpr = SPEC.columns[axis]
    if SPEC.keeps:
        first = first // side * side
    return first


@gluon.jit
def _reach(start, outputs, length, SPEC: gl.constexpr, axis: gl.constexpr):
    if SPEC.flat[axis]:
        first, boxes = gl.to_tensor(0), gl.to_tensor(1)
    else:
        first = _origin(first_key(start, length, SPEC, axis), SPEC, axis)
        stop = stop_key(gl.minimum(start + SPEC.tile[axis], outputs) - 1, length, SPEC, axis)
        boxes = (stop - first + SPEC.columns[axis] - 1) // SPEC.columns[axis]
    return first, boxes


@gluon.jit
def query_tile(program, outputs, lengths, heads, SPEC: gl.constexpr):
    """The tile of a program whose rows are queries and columns keys."""
    batch, head, residue, start = _locate(program, outputs, heads, SPEC)
    planes = _planes(batch, outputs, lengths, SPEC)
    outputs, lengths = groups(outputs, residue, SPEC), groups(lengths, residue, SPEC)
    t, boxes_t = _reach(start[0], outputs[0], lengths[0], SPEC, 0)
    h, boxes_h = _reach(start[1], outputs[1], lengths[1], SPEC, 1)
    w, boxes_w = _reach(start[2], outputs[2], lengths[2], SPEC, 2)
    return Tile(batch, head, residue, start, (t, h, w), (boxes_t, boxes_h, boxes_w), outputs, lengths, planes)


@gluon.jit
def _seen_from(start, length, SPEC: gl.constexpr, axis: gl.constexpr):
    if SPEC.flat[axis]:
        first, boxes = gl.to_tensor(0), gl.to_tensor(1)
    else:
        first = _origin(first_query(start, length, SPEC, axis), SPEC, axis)
        stop = stop_query(gl.minimum(start + SPEC.tile[axis], length) - 1, length, SPEC, axis)
        boxes = gl.maximum(stop - first + SPEC.columns[axis] - 1, 0) // SPEC.columns[axis]
    return first, boxes


@gluon.jit
def key_tile(program, outputs, lengths, heads, SPEC: gl.constexpr):
    """The tile of a program whose rows are keys and columns queries; no boxes if no output sees its keys."""
    batch, head, residue, start = _locate(program, lengths, heads, SPEC)
    planes = _planes(batch, outputs, lengths, SPEC)
    outputs, lengths = groups(outputs, residue, SPEC), groups(lengths, residue, SPEC)
    t, boxes_t = _seen_from(start[0], lengths[0], SPEC, 0)
    h, boxes_h = _seen_from(start[1], lengths[1], SPEC, 1)
    w, boxes_w = _seen_from(start[2], lengths[2], SPEC, 2)
    return Tile(batch, head, residue, start, (t, h, w), (boxes_t, boxes_h, boxes_w), outputs, lengths, planes)


@gluon.jit
def token(at, tile, extents, SPEC: gl.constexpr):
    """Row-major index, within a batch entry, of the tokens at `at` in the tile's dilation group."""
    apart: gl.constexpr = SPEC.dilation
    t = at[0] * apart[0] + tile.residue[0]
    h = at[1] * apart[1] + tile.residue[1]
    w = at[2] * apart[2] + tile.residue[2]
    return (t * extents[1] + h) * extents[2] + w


@gluon.jit
def entry(at, tile, extents, heads, SPEC: gl.constexpr):
    """Index of rows at `at` in a contiguous `[batch, *extents, heads]`."""
    tokens = tile.batch.to(gl.int64) * (extents[0] * extents[1] * extents[2]) + token(at, tile, extents, SPEC)
    return tokens * heads + tile.head


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
