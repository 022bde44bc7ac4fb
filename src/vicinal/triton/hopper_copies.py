"""How boxes come and go in the Hopper kernels, in Gluon: tensor maps, rings in shared memory, copies."""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from . import hopper_parts as hp
from . import hopper_tile as ht


class View(NamedTuple):
    """A tensor map, and with dilation groups in one map the tensor's strides, in units of 16 bytes."""

    map: Any
    strides: Any


class Ring(NamedTuple):
    """Buffers in shared memory that are filled and emptied in turn, with a barrier each for both events."""

    buffers: Any
    full: Any
    empty: Any


@gluon.jit
def group_view(
    tensor, strides, extents, tile, heads, dim, box: gl.constexpr, width: gl.constexpr, SPEC: gl.constexpr
):
    """The view of a tensor with dilation, whose `strides` count 16 bytes, up to the heads'.

    `tensor` is a map of all groups, or an address: then the view is of the batch entry and group of `tile`.
    """
    if SPEC.described:
        view = View(_described(tensor, strides, extents, tile, heads, dim, box, width, SPEC), ())
    else:
        view = View(tensor, strides)
    return view


@gluon.jit
def _described(
    base, strides, extents, tile, heads, dim, box: gl.constexpr, width: gl.constexpr, SPEC: gl.constexpr
):
    apart: gl.constexpr = SPEC.dilation
    swizzle: gl.constexpr = 2 * width if width < 64 else 128
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=16, rank=5)
    offset = tile.batch.to(gl.int64) * strides[0] + tile.residue[0].to(gl.int64) * strides[1]
    offset += tile.residue[1].to(gl.int64) * strides[2] + tile.residue[2].to(gl.int64) * strides[3]
    group = ht.groups(extents, tile.residue, SPEC)
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
def place(view, plane, at, tile, head, SPEC: gl.constexpr):
    """Coordinates in a tensor map: in one of all dilation groups, heads count 16 bytes from its start."""
    if SPEC.dilated and not SPEC.described:
        t, h, w = tile.residue
        batch, by_t, by_h, by_w, by_head = view.strides
        head = tile.batch * batch + t * by_t + h * by_h + w * by_w + head * by_head
    return [plane + at[0], at[1], at[2], head, 0]


@gluon.jit
def barriers(count: gl.constexpr, arrivals: gl.constexpr):
    """Barriers in shared memory that `arrivals` arrivals complete."""
    bars = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(bars.index(i), count=arrivals)
    return bars


@gluon.jit
def buffers(view, count: gl.constexpr):
    """Room in shared memory for `count` boxes of a tensor."""
    shape: gl.constexpr = [count] + view.map.block_type.shape  # noqa: RUF005 no unpacking in kernels
    return gl.allocate_shared_memory(view.map.dtype, shape, view.map.layout)


@gluon.jit
def ring(view, stages: gl.constexpr, readers: gl.constexpr, arrivals: gl.constexpr = 1):
    """Buffers for boxes of a tensor that `readers` warpgroups read, full after `arrivals`."""
    return Ring(buffers(view, stages), barriers(stages, arrivals), barriers(stages, readers))


@gluon.jit
def fill(view, into, stage, plane, at, tile, head, SPEC: gl.constexpr):
    """Copies a box of one head into a stage of a ring."""
    where = place(view, plane, at, tile, head, SPEC)
    mbarrier.expect(into.full.index(stage), view.map.block_type.nbytes)
    tma.async_copy_global_to_shared(view.map, where, into.full.index(stage), into.buffers.index(stage))


@gluon.jit
def copy_row(view, into, warpgroup: gl.constexpr, turn, depth: gl.constexpr, plane, tile, SPEC: gl.constexpr):
    """Copies the rows of a warpgroup in tile number `turn` of a program, of which `depth` have room."""
    slot = turn % depth * SPEC.warpgroups + warpgroup
    mbarrier.wait(into.empty.index(slot), turn // depth & 1 ^ 1)
    fill(view, into, slot, plane, ht.corner(tile.start, warpgroup, SPEC), tile, tile.head, SPEC)


@gluon.jit
def copy_boxes(key, value, keys, values, base, tile, head, SPEC: gl.constexpr):
    """Copies the boxes of keys and values that a tile of queries walks, after `base` of tiles before."""
    box = ht.box_of(gl.to_tensor(0), SPEC)
    for i in range(base, base + tile.boxes[0] * tile.boxes[1] * tile.boxes[2]):
        at = ht.box_at(tile.first, box, SPEC)
        stage = i % SPEC.stages
        mbarrier.wait(keys.empty.index(stage), i // SPEC.stages & 1 ^ 1)
        fill(key, keys, stage, tile.planes[1], at, tile, head, SPEC)
        stage = i % SPEC.value_stages
        mbarrier.wait(values.empty.index(stage), i // SPEC.value_stages & 1 ^ 1)
        fill(value, values, stage, tile.planes[1], at, tile, head, SPEC)
        box = ht.step(box, tile.boxes, SPEC)


@gluon.jit
def put(view, sums, buffer, plane, at, tile, CUTS: gl.constexpr, SPEC: gl.constexpr):
    """Starts writing a warpgroup's box through shared memory; TMA leaves out what lies outside the tensor."""
    width: gl.constexpr = view.map.block_type.shape[4]
    hp.store(sums, buffer.reshape([64, width]), CUTS)
    fence_async_shared()
    tma.async_copy_shared_to_global(view.map, place(view, plane, at, tile, tile.head, SPEC), buffer)
