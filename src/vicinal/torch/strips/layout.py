"""From tensors to tiles and strips, and back.

A strip is what the tiles of the first axis read one after another: `[first axis, box of the other axes,
dim]`, contiguous, so that the box of each of its tiles is an overlapping view. Only the other axes' halos
are copied.
"""

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .arena import take
from .plan import Part, Pass
from .ring import Ring


class Run(NamedTuple):
    """Neighboring slots that hold neighboring columns; slots count from the start of a buffer."""

    at: int
    column: int
    length: int


def runs(ring: Ring, slots: range) -> list[Run]:
    """The columns that `slots` hold: the axis itself first, then what wraps around; other slots are blank."""
    columns, width = ring.columns, ring.width
    before = range(slots.start, min(slots.stop, 0, columns - width))
    inside = range(max(slots.start, 0), min(slots.stop, columns))
    after = range(max(slots.start, columns, width), slots.stop)
    found = ((inside, 0), (before, width), (after, -width))
    return [Run(part.start - slots.start, part.start + hop, len(part)) for part, hop in found if part]


def _blanks(found: list[Run], length: int) -> Iterator[tuple[int, int]]:
    """Start and length of the gaps between runs."""
    at = 0
    for run in sorted(found):
        if run.at > at:
            yield at, run.at - at
        at = run.at + run.length
    if at < length:
        yield at, length - at


def _read(part: Part, work: Pass, axis: int) -> range:
    """Slots of an axis that the tiles of a pass read."""
    ring, tiles = part.rings[axis], work.slab[axis]
    low = tiles[0] * ring.step - ring.shift
    if axis == 0:
        low += work.slots.start
        return range(low, low + work.length)
    return range(low, low + (len(tiles) - 1) * ring.step + ring.width)


def _hull(ring: Ring, slots: range) -> range:
    """`slots` with the slots that those past an end of the axis repeat."""
    low, high = slots.start, slots.stop
    if slots.start < 0:
        high = max(high, min(ring.width, ring.columns))
    if slots.stop > ring.columns:
        low = min(low, max(ring.columns - ring.width, 0))
    return range(low, high)


class Strips(NamedTuple):
    """A buffer `[slots of all strips, width, dim]` and, as views, its boxes `[boxes, keys, dim]`."""

    slots: Tensor
    boxes: Tensor


def strips(part: Part, work: Pass, dim: int, name: str, like: Tensor) -> Strips:
    """Uninitialised strips."""
    span = len(work.slots)
    tail = max(span - work.pitch, 0) if work.strips > 1 else 0
    slots = take(name, (work.strips * work.length + tail, part.width, dim), like.dtype, like.device)
    size, row = (work.boxes, span * part.width, dim), part.width * dim
    return Strips(slots, slots.as_strided(size, (work.pitch * row, dim, 1)))


def cut(part: Part, work: Pass, x: Tensor, name: str, like: Tensor) -> Strips:
    """Strips of `x` `[*batch, *columns, dim]` in the dtype of `like`."""
    made = strips(part, work, x.shape[-1], name, like)
    body = work.strips * work.length
    if made.slots.shape[0] > body:
        made.slots[body:].zero_()
    if part.rank == 1:
        _pad(part, work, x, made.slots[:body].view(*x.shape[:-2], work.length, x.shape[-1]))
        return made
    padded = take("padded", _padded_shape(part, work, x), like.dtype, like.device)
    _pad(part, work, x, padded)
    made.slots[:body].view(-1, *_strip_shape(part, work, x.shape[-1])).copy_(_windows(part, work, padded))
    return made


def _padded_shape(part: Part, work: Pass, x: Tensor) -> tuple[int, ...]:
    hulls = (len(_hull(ring, _read(part, work, axis))) for axis, ring in list(enumerate(part.rings))[1:])
    return (*x.shape[: -part.rank - 1], work.length, *hulls, x.shape[-1])


def _strip_shape(part: Part, work: Pass, dim: int) -> tuple[int, ...]:
    return (*map(len, work.slab[1:]), work.length, *(ring.width for ring in part.rings[1:]), dim)


def _windows(part: Part, work: Pass, padded: Tensor) -> Tensor:
    """`[volumes, *tiles of the other axes, length, *widths, dim]`, an overlapping view of a padded copy."""
    rank, steps = part.rank, padded.stride()[-part.rank - 1 :]
    offset, hops = padded.storage_offset(), []
    for axis in range(1, rank):
        slots = _read(part, work, axis)
        offset += (slots.start - _hull(part.rings[axis], slots).start) * steps[axis]
        hops.append(part.rings[axis].step * steps[axis])
    volume = prod(padded.shape[-rank - 1 :])
    shape = (work.volumes, *_strip_shape(part, work, padded.shape[-1]))
    return padded.as_strided(shape, (volume, *hops, *steps), offset)


def _pad(part: Part, work: Pass, x: Tensor, padded: Tensor) -> None:
    """Fill `padded` with the columns its slots hold."""
    rank = part.rank
    found = _axis_runs(part, work)
    core, source = padded, x
    for axis in range(1, rank):
        inside = found[axis][0]
        core = core.narrow(axis - rank - 1, inside.at, inside.length)
        source = source.narrow(axis - rank - 1, inside.column, inside.length)
    for run in found[0]:
        core.narrow(-rank - 1, run.at, run.length).copy_(source.narrow(-rank - 1, run.column, run.length))
    for at, length in _blanks(found[0], work.length):
        padded.narrow(-rank - 1, at, length).zero_()
    for axis in range(rank - 1, 0, -1):
        view, dim, inside = _inside(padded, found, axis), axis - rank - 1, found[axis][0]
        for run in found[axis][1:]:
            source = view.narrow(dim, run.column - inside.column + inside.at, run.length)
            view.narrow(dim, run.at, run.length).copy_(source)
        for at, length in _blanks(found[axis], view.shape[dim]):
            view.narrow(dim, at, length).zero_()


def _axis_runs(part: Part, work: Pass) -> list[list[Run]]:
    """Runs of every axis; the other axes' include the slots that wrapped ones repeat."""
    ring = part.rings[0]
    length = (len(work.slab[0]) - 1) * work.pitch + len(work.slots)
    found = [runs(ring, _read(part, work, 0)[:length])]
    for axis in range(1, part.rank):
        ring = part.rings[axis]
        found.append(runs(ring, _hull(ring, _read(part, work, axis))))
    return found


def _inside(padded: Tensor, found: list[list[Run]], axis: int) -> Tensor:
    """`padded` without the halos of the axes between the first and `axis`."""
    for other in range(1, axis):
        inside = found[other][0]
        padded = padded.narrow(other - len(found) - 1, inside.at, inside.length)
    return padded


def fold(part: Part, work: Pass, made: Tensor, target: Tensor) -> None:
    """Add the slots of strips, `[slots, width, dim]`, to the columns they hold in `target` `[*batch,
    *columns, dim]`.

    Strips are spent. Every sum has one order, whatever the number of threads.
    """
    rank, dim = part.rank, made.shape[-1]
    body = made[: work.strips * work.length]
    if rank == 1:
        padded = body.view(*target.shape[:-2], work.length, dim)
    else:
        padded = take("padded", _padded_shape(part, work, target), made.dtype, made.device).zero_()
        _overlap(part, work, body.view(-1, *_strip_shape(part, work, dim)), padded)
    found = _axis_runs(part, work)
    for axis in range(1, rank):
        view, place, inside = _inside(padded, found, axis), axis - rank - 1, found[axis][0]
        for run in found[axis][1:]:
            sink = view.narrow(place, run.column - inside.column + inside.at, run.length)
            sink.add_(view.narrow(place, run.at, run.length))
    for axis in range(1, rank):
        inside = found[axis][0]
        padded = padded.narrow(axis - rank - 1, inside.at, inside.length)
        target = target.narrow(axis - rank - 1, inside.column, inside.length)
    for run in found[0]:
        target.narrow(-rank - 1, run.column, run.length).add_(padded.narrow(-rank - 1, run.at, run.length))


def _overlap(part: Part, work: Pass, made: Tensor, padded: Tensor) -> None:
    """Add `[volumes, *tiles, length, *widths, dim]` to `padded`; in each step no two tiles share a slot."""
    rank = part.rank
    windows = _windows(part, work, padded)
    segments = [
        [(at, min(ring.step, ring.width - at)) for at in range(0, ring.width, ring.step)]
        for ring in part.rings[1:]
    ]
    for chosen in product(*segments):
        source, sink = made, windows
        for axis, (at, length) in enumerate(chosen):
            source = source.narrow(rank + 1 + axis, at, length)
            sink = sink.narrow(rank + 1 + axis, at, length)
        sink.add_(source)


def _pieces(part: Part, work: Pass, x: Tensor, tiles: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Equal parts of rows `[*batch, share, *rows, dim]` and of `[*batch, *tiles, first tiles, share, *tile,
    dim]`."""
    rank, at, steps = part.rank, x.ndim - part.rank - 1, x.stride()
    batch, share = x.shape[: at - 1], at - 1
    per_axis = []
    for ring, wanted in zip(part.rings, work.slab, strict=True):
        ragged = wanted.stop * ring.tile > ring.rows
        full = wanted[: len(wanted) - ragged]
        found = [(0, full, ring.tile)] if full else []
        if ragged:
            last = wanted[-1]
            found.append((len(full), range(last, last + 1), ring.rows - last * ring.tile))
        per_axis.append(found)
    order = (*range(1, rank), 0)
    for chosen in product(*per_axis):
        counts, sizes = [len(c[1]) for c in chosen], [c[2] for c in chosen]
        shape = (*batch, *(counts[i] for i in order), part.share, *sizes, x.shape[-1])
        hops = [steps[at + axis] * ring.tile for axis, ring in enumerate(part.rings)]
        strides = (*steps[:share], *(hops[i] for i in order), steps[share], *steps[at:])
        offset = x.storage_offset() + sum(c[1].start * hop for c, hop in zip(chosen, hops, strict=True))
        piece = tiles
        for place, axis in enumerate(order):
            piece = piece.narrow(share + place, chosen[axis][0], counts[axis])
            piece = piece.narrow(share + rank + 1 + axis, 0, sizes[axis])
        yield x.as_strided(shape, strides, offset), piece


def tiles(part: Part, work: Pass, batch: tuple[int, ...], dim: int, name: str, like: Tensor) -> Tensor:
    """An uninitialised buffer of tiles, `[*batch, *tiles, first tiles, share, *tile, dim]`."""
    others = map(len, work.slab[1:])
    shape = (*batch, *others, work.places, part.share, *part.tile, dim)
    return take(name, shape, like.dtype, like.device)


def gather(part: Part, work: Pass, x: Tensor, name: str, like: Tensor) -> Tensor:
    """Tiles `[boxes, rows, dim]` of `x` `[*batch, share, *rows, dim]`; rows that do not exist are zero."""
    made = tiles(part, work, x.shape[: -part.rank - 2], x.shape[-1], name, like)
    ragged = any(
        wanted.stop * ring.tile > ring.rows for ring, wanted in zip(part.rings, work.slab, strict=True)
    )
    if ragged or work.places > len(work.slab[0]):
        made.zero_()
    for source, piece in _pieces(part, work, x, made):
        piece.copy_(source)
    return made.view(work.boxes, part.rows, x.shape[-1])


def scatter(part: Part, work: Pass, made: Tensor, target: Tensor) -> None:
    """Write tiles `[boxes, rows, dim]` to the rows of `target` `[*batch, share, *rows, dim]`."""
    batch = target.shape[: -part.rank - 2]
    grid = (*batch, *map(len, work.slab[1:]), work.places, part.share, *part.tile)
    for sink, piece in _pieces(part, work, target, made.view(*grid, made.shape[-1])):
        sink.copy_(piece)


def accumulate(
    part: Part, work: Pass, slots: Tensor, some: slice, weights: Tensor, rows: Tensor, scale: float
) -> None:
    """Add `scale * weights^T rows` to the boxes `some` of strips.

    Boxes overlap, segments of one pitch do not. Far segments go first: then a slot takes its tiles
    in order, whether or not they come in one chunk.
    """
    span, row = len(work.slots), part.width * slots.shape[-1]
    for at in range((span - 1) // work.pitch * work.pitch, -1, -work.pitch):
        length = min(work.pitch, span - at) * part.width
        size = (some.stop - some.start, length, slots.shape[-1])
        sink = slots.as_strided(
            size, (work.pitch * row, slots.shape[-1], 1), (some.start * work.pitch + at) * row
        )
        mine = weights[:, :, at * part.width : at * part.width + length].transpose(1, 2)
        if sink.is_contiguous():
            sink.baddbmm_(mine, rows, alpha=scale)
        else:
            # A product written with gaps runs matrix by matrix.
            sink.add_(
                torch.bmm(mine, rows, out=take("segment", size, slots.dtype, slots.device)), alpha=scale
            )
