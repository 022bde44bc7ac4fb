"""From rows to tiles, `[boxes, rows, dim]`, and back."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from .arena import Like, keep, take
from .bundle import Bundle
from .layout import batch_starts
from .moves import Held, Move, Place, Step, blank, hold, play, record
from .plan import Part, Pass
from .rows import Lookup, among, lookup, read


def _pieces(part: Part, work: Pass, x: Tensor, tiles: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Equal parts of rows `[*batch, share, *rows, dim]` and of tiles
    `[*batch, *tiles, first tiles, share, *tile, dim]`."""
    rank, at, steps = part.rank, x.ndim - part.rank - 1, x.stride()
    batch, share = x.shape[: at - 1], at - 1
    order = (*range(1, rank), 0)
    for chosen in product(*(_stretches(part, work, axis) for axis in range(rank))):
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


def _gathering(part: Part, work: Pass, x: Tensor) -> tuple[Lookup | None, tuple[Move, ...]]:
    """Rows of tiles, or moves of them, and what to clear of tiles that are cut off or do not exist."""
    if isinstance(part, Bundle):
        return part.gathered(x), ()
    if part.rank == 1:
        pieces = _pieces(part, work, blank(x.shape, x.stride()), _grid(part, work, x))
        copies = (Step("copy_", 0, made, 1, source) for source, made in pieces)
        return None, record((*copies, *_clearing(part, work, x)))
    return _rows(part, work, x), record(_clearing(part, work, x))


def _rows(part: Part, work: Pass, x: Tensor) -> Lookup:
    """Rows of tiles; those that do not exist repeat others of their axes."""
    rank, steps = part.rank, x.stride()
    # [*batch, *tiles of the other axes, places, share, *tile]
    ndim, batch = x.ndim + rank - 1, x.ndim - rank - 2
    outer, inner = batch_starts(x, ndim, batch), []
    for axis, (ring, wanted) in enumerate(zip(part.rings, work.slab, strict=True)):
        count = partial(torch.arange, device=x.device)
        tiles = count(work.places if axis == 0 else len(wanted)).unsqueeze(1) + wanted.start
        starts = (tiles * ring.tile + count(ring.tile)).clamp_(max=ring.rows - 1) * steps[batch + 1 + axis]
        place = -rank - 2 if axis == 0 else axis - 2 * rank - 2
        (outer if axis else inner).append(among(starts, ndim, place, axis - rank))
    inner.append(among(torch.arange(part.share, device=x.device) * steps[batch], ndim, -rank - 1))
    return lookup(x, outer, inner, 0, len(part.slabs))


def _clearing(part: Part, work: Pass, x: Tensor) -> Iterator[Step]:
    tiles, used = _grid(part, work, x), len(work.slab[0])
    yield Step("zero_", 0, tiles.narrow(-part.rank - 3, used, work.places - used))
    for axis, (ring, wanted) in enumerate(zip(part.rings, work.slab, strict=True)):
        over = wanted.stop * ring.tile - ring.rows
        if over > 0:
            place = -part.rank - 3 if axis == 0 else axis - 2 * part.rank - 3
            last = tiles.narrow(place, len(wanted) - 1, 1)
            yield Step("zero_", 0, last.narrow(axis - part.rank - 1, ring.tile - over, over))


def _scattering(part: Part, work: Pass, like: Tensor) -> Iterator[Step]:
    x = blank(like.shape, like.stride())
    if not isinstance(part, Bundle):
        yield from _leaving(part, work, x, _grid(part, work, x))
        return
    made = blank((work.boxes, part.rows, like.shape[-1]))
    for member in part.members:
        mine, boxes = part.rows_in(member, x), slice(member.box, member.box + member.work.boxes)
        grid = _grid(member.part, member.work, mine)
        yield from _leaving(member.part, member.work, mine, made[boxes].view(grid.shape))


def _leaving(part: Part, work: Pass, x: Tensor, made: Tensor) -> Iterator[Step]:
    for sink, piece in _pieces(part, work, x, made):
        yield Step("copy_", 1, sink, 0, piece)


def tiles(part: Part, work: Pass, dim: int, name: str, like: Like) -> Tensor:
    """An uninitialised buffer of tiles, `[boxes, rows, dim]`."""
    return take(name, (work.boxes, part.rows, dim), like)


def gather(part: Part, work: Pass, x: Place, name: str, like: Like) -> Tensor:
    """Tiles `[boxes, rows, dim]` of `x` `[*batch, share, *rows, dim]`; rows that do not exist are zero."""
    key = ("gather", work, x.shape, x.strides, name, like)
    made, found, held = keep(key, like.device, lambda: _gather(part, work, x.view(), name, like))
    if found is not None:
        read(found, x, made.view(-1, x.shape[-1]))
    if isinstance(part, Bundle):
        made.view(-1, x.shape[-1]).index_fill_(0, part.unused(like.device), 0)
    play(held, x)
    return made


def _gather(
    part: Part, work: Pass, x: Tensor, name: str, like: Like
) -> tuple[Tensor, Lookup | None, list[Held]]:
    made, key = tiles(part, work, x.shape[-1], name, like), ("gather", work, x.shape, x.stride())
    found, moves = part.recent.recall(key, lambda: _gathering(part, work, x))
    return made, found, hold(moves, made)


def scatter(part: Part, work: Pass, made: Tensor, name: str, target: Place) -> None:
    """Write tiles `[boxes, rows, dim]`, which have a `name`, to the rows of `target`
    `[*batch, share, *rows, dim]`."""
    key = ("scatter", work, target.shape, target.strides, name, made.dtype)
    play(keep(key, made.device, lambda: _scatter(part, work, target.view(), made)), target)


def _scatter(part: Part, work: Pass, x: Tensor, made: Tensor) -> list[Held]:
    key = ("scatter", work, x.shape, x.stride())
    return hold(part.recent.recall(key, lambda: record(_scattering(part, work, x))), made)
