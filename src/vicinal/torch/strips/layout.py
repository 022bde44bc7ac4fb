"""From tensors to tiles and strips, and back.

A strip is what the tiles of the first axis read one after another: `[first axis, box of the other axes,
dim]`, contiguous, so that the box of each of its tiles is an overlapping view. Only the other axes' halos
are copied.
"""

from collections.abc import Iterator
from itertools import product as combinations
from math import prod
from typing import NamedTuple

from torch import Tensor

from .arena import Like, take
from .moves import Step, blank, record, run
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
    for one in sorted(found):
        if one.at > at:
            yield at, one.at - at
        at = one.at + one.length
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


def strips(part: Part, work: Pass, dim: int, name: str, like: Like) -> Strips:
    """Uninitialised strips."""
    span, row = len(work.slots), part.width * dim
    slots = take(name, (_body(work) + _tail(work), part.width, dim), like)
    return Strips(slots, slots.as_strided((work.boxes, span * part.width, dim), (work.pitch * row, dim, 1)))


def _body(work: Pass) -> int:
    return work.strips * work.length


def _tail(work: Pass) -> int:
    """Slots past the last strip that its last box reads."""
    return max(len(work.slots) - work.pitch, 0) if work.strips > 1 else 0


def cut(part: Part, work: Pass, x: Tensor, name: str, like: Like) -> Strips:
    """Strips of `x` `[*batch, *columns, dim]` in the dtype of `like`."""
    made = strips(part, work, x.shape[-1], name, like)
    shape = _padded_shape(part, work, x)
    moves = part.remember(("cut", work, x.shape, x.stride()), lambda: record(_cutting(part, work, x)))
    run(moves, x, made.slots, made.slots if part.rank == 1 else take("padded", shape, like))
    return made


def _cutting(part: Part, work: Pass, like: Tensor) -> Iterator[Step]:
    """From a tensor (0) through a padded copy (2) to strips (1); on one axis the strips are the padded
    copy."""
    x, shape, dim = blank(like.shape, like.stride()), _padded_shape(part, work, like), like.shape[-1]
    slots = blank((_body(work) + _tail(work), part.width, dim))
    yield Step("zero_", 1, slots[_body(work) :])
    if part.rank == 1:
        yield from _pad(part, work, x, slots[: _body(work)].view(shape))
        return
    padded = blank(shape)
    yield from _pad(part, work, x, padded)
    body = slots[: _body(work)].view(-1, *_strip_shape(part, work, dim))
    yield Step("copy_", 1, body, 2, _windows(part, work, padded))


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


def _pad(part: Part, work: Pass, x: Tensor, padded: Tensor) -> Iterator[Step]:
    """Fill `padded` (2) with the columns of `x` (0) that its slots hold."""
    rank = part.rank
    found = _axis_runs(part, work)
    core, source = padded, x
    for axis in range(1, rank):
        inside = found[axis][0]
        core = core.narrow(axis - rank - 1, inside.at, inside.length)
        source = source.narrow(axis - rank - 1, inside.column, inside.length)
    for one in found[0]:
        columns = source.narrow(-rank - 1, one.column, one.length)
        yield Step("copy_", 2, core.narrow(-rank - 1, one.at, one.length), 0, columns)
    for at, length in _blanks(found[0], work.length):
        yield Step("zero_", 2, padded.narrow(-rank - 1, at, length))
    for axis in range(rank - 1, 0, -1):
        wide, dim = _inside(padded, found, axis), axis - rank - 1
        for sink, source in _halos(wide, dim, found[axis]):
            yield Step("copy_", 2, sink, 2, source)
        for at, length in _blanks(found[axis], wide.shape[dim]):
            yield Step("zero_", 2, wide.narrow(dim, at, length))


def _axis_runs(part: Part, work: Pass) -> list[list[Run]]:
    """Runs of every axis; the other axes' include the slots that wrapped ones repeat."""
    length = (len(work.slab[0]) - 1) * work.pitch + len(work.slots)
    found = [runs(part.rings[0], _read(part, work, 0)[:length])]
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


def _halos(padded: Tensor, dim: int, found: list[Run]) -> Iterator[tuple[Tensor, Tensor]]:
    """Wrapped slots, and the slots that hold the same columns."""
    inside = found[0]
    for one in found[1:]:
        same = padded.narrow(dim, one.column - inside.column + inside.at, one.length)
        yield padded.narrow(dim, one.at, one.length), same


def fold(part: Part, work: Pass, made: Tensor, target: Tensor, like: Like) -> None:
    """Add strips `[slots, width, dim]` to the columns they hold in `target` `[*batch, *columns, dim]`.

    Strips are spent. Every sum has one order, whatever the number of threads.
    """
    shape = _padded_shape(part, work, target)
    key = ("fold", work, target.shape, target.stride())
    moves = part.remember(key, lambda: record(_folding(part, work, target)))
    run(moves, target, made, made if part.rank == 1 else take("padded", shape, like))


def _folding(part: Part, work: Pass, like: Tensor) -> Iterator[Step]:
    """From strips (1) through a padded copy (2) to a tensor (0)."""
    rank, shape, dim = part.rank, _padded_shape(part, work, like), like.shape[-1]
    target, body = blank(like.shape, like.stride()), blank((_body(work), part.width, dim))
    padded = body.view(shape) if rank == 1 else blank(shape)
    if rank > 1:
        yield Step("zero_", 2, padded)
        yield from _overlap(part, body.view(-1, *_strip_shape(part, work, dim)), _windows(part, work, padded))
    found = _axis_runs(part, work)
    for axis in range(1, rank):
        for repeat, sink in _halos(_inside(padded, found, axis), axis - rank - 1, found[axis]):
            yield Step("add_", 2, sink, 2, repeat)
    for axis in range(1, rank):
        inside = found[axis][0]
        padded = padded.narrow(axis - rank - 1, inside.at, inside.length)
        target = target.narrow(axis - rank - 1, inside.column, inside.length)
    for one in found[0]:
        columns = target.narrow(-rank - 1, one.column, one.length)
        yield Step("add_", 0, columns, 2, padded.narrow(-rank - 1, one.at, one.length))


def _overlap(part: Part, made: Tensor, windows: Tensor) -> Iterator[Step]:
    """Add `[volumes, *tiles, length, *widths, dim]` to overlapping windows; in a step no two tiles share a
    slot."""
    segments = [
        [(at, min(ring.step, ring.width - at)) for at in range(0, ring.width, ring.step)]
        for ring in part.rings[1:]
    ]
    for chosen in combinations(*segments):
        source, sink = made, windows
        for axis, (at, length) in enumerate(chosen):
            source = source.narrow(part.rank + 1 + axis, at, length)
            sink = sink.narrow(part.rank + 1 + axis, at, length)
        yield Step("add_", 2, sink, 1, source)


def _pieces(part: Part, work: Pass, x: Tensor, tiles: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Equal parts of rows `[*batch, share, *rows, dim]` and of tiles
    `[*batch, *tiles, first tiles, share, *tile, dim]`."""
    rank, at, steps = part.rank, x.ndim - part.rank - 1, x.stride()
    batch, share = x.shape[: at - 1], at - 1
    order = (*range(1, rank), 0)
    for chosen in combinations(*(_stretches(part, work, axis) for axis in range(rank))):
        counts, sizes = [len(c[1]) for c in chosen], [c[2] for c in chosen]
        shape = (*batch, *(counts[i] for i in order), part.share, *sizes, x.shape[-1])
        hops = [steps[at + axis] * ring.tile for axis, ring in enumerate(part.rings)]
        strides = (*steps[:share], *(hops[i] for i in order), steps[share], *steps[at:])
        offset = sum(c[1].start * hop for c, hop in zip(chosen, hops, strict=True))
        piece = tiles
        for place, axis in enumerate(order):
            piece = piece.narrow(share + place, chosen[axis][0], counts[axis])
            piece = piece.narrow(share + rank + 1 + axis, 0, sizes[axis])
        yield x.as_strided(shape, strides, offset), piece


def _stretches(part: Part, work: Pass, axis: int) -> list[tuple[int, range, int]]:
    """Where full tiles and a cut-off last one start in a buffer, which they are, and their rows."""
    ring, wanted = part.rings[axis], work.slab[axis]
    full = wanted[: len(wanted) - _ragged(part, work, axis)]
    found = [(0, full, ring.tile)] if full else []
    if len(full) < len(wanted):
        last = wanted[-1]
        found.append((len(full), wanted[-1:], ring.rows - last * ring.tile))
    return found


def _ragged(part: Part, work: Pass, axis: int) -> bool:
    return work.slab[axis].stop * part.rings[axis].tile > part.rings[axis].rows


def _grid(part: Part, work: Pass, x: Tensor) -> Tensor:
    """Blank tiles `[*batch, *tiles, first tiles, share, *tile, dim]` for rows `x`."""
    batch = x.shape[: -part.rank - 2]
    return blank((*batch, *map(len, work.slab[1:]), work.places, part.share, *part.tile, x.shape[-1]))


def _gathering(part: Part, work: Pass, like: Tensor) -> Iterator[Step]:
    tiles = _grid(part, work, like)
    if any(_ragged(part, work, axis) for axis in range(part.rank)):
        yield Step("zero_", 1, tiles)
    else:
        last, used = like.ndim - 3, len(work.slab[0])
        yield Step("zero_", 1, tiles.narrow(last, used, work.places - used))
    for source, piece in _pieces(part, work, blank(like.shape, like.stride()), tiles):
        yield Step("copy_", 1, piece, 0, source)


def _scattering(part: Part, work: Pass, like: Tensor) -> Iterator[Step]:
    for sink, piece in _pieces(part, work, blank(like.shape, like.stride()), _grid(part, work, like)):
        yield Step("copy_", 0, sink, 1, piece)


def tiles(part: Part, work: Pass, dim: int, name: str, like: Like) -> Tensor:
    """An uninitialised buffer of tiles, `[boxes, rows, dim]`."""
    return take(name, (work.boxes, part.rows, dim), like)


def gather(part: Part, work: Pass, x: Tensor, name: str, like: Like) -> Tensor:
    """Tiles `[boxes, rows, dim]` of `x` `[*batch, share, *rows, dim]`; rows that do not exist are zero."""
    made = tiles(part, work, x.shape[-1], name, like)
    key = ("gather", work, x.shape, x.stride())
    run(part.remember(key, lambda: record(_gathering(part, work, x))), x, made)
    return made


def scatter(part: Part, work: Pass, made: Tensor, target: Tensor) -> None:
    """Write tiles `[boxes, rows, dim]` to the rows of `target` `[*batch, share, *rows, dim]`."""
    key = ("scatter", work, target.shape, target.stride())
    run(part.remember(key, lambda: record(_scattering(part, work, target))), target, made)


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
        if length == work.pitch * part.width:
            sink.baddbmm_(mine, rows, alpha=scale)
        else:
            # A product written with gaps runs matrix by matrix.
            product = take("segment", size, Like(slots.dtype, slots.device))
            sink.add_(product.baddbmm_(mine, rows, alpha=scale, beta=0))
