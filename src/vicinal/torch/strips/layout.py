"""From tensors to tiles and strips, and back.

A strip is what the tiles of the first axis read one after another: `[first axis, box of the other axes,
dim]`, contiguous, so that the box of each of its tiles is an overlapping view. Only the other axes' halos
are copied.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .arena import Like, keep, sheet, take
from .bundle import Bundle
from .moves import Held, Move, Place, Step, blank, hold, placed, play, record, run
from .plan import Part, Pass
from .products import multiply
from .ring import Ring, held
from .rows import Lookup, among, lookup, read


class Run(NamedTuple):
    """Neighboring slots that hold neighboring columns; slots count from the start of a buffer."""

    at: int
    column: int
    length: int


def runs(ring: Ring, slots: range) -> list[Run]:
    """The columns that `slots` hold: the axis itself first, then what wraps around; other slots are blank."""
    columns, width = ring.columns, ring.width
    before = range(max(slots.start, -width), min(slots.stop, 0, columns - width))
    inside = range(max(slots.start, 0), min(slots.stop, columns))
    after = range(max(slots.start, columns, width), min(slots.stop, columns + width))
    found = ((inside, 0), (before, width), (after, -width))
    return [Run(part.start - slots.start, part.start + hop, len(part)) for part, hop in found if part]


def _read(part: Part, work: Pass, axis: int) -> range:
    """Slots of an axis that the tiles of a pass read."""
    ring, box, tiles = part.rings[axis], work.box[axis], work.slab[axis]
    first = ring.read(tiles).start + box.start
    return range(first, first + ((len(tiles) - 1) * ring.step + len(box) if axis else work.length))


class Strips(NamedTuple):
    """A buffer `[slots of all strips, width, dim]` and views of it: boxes `[boxes, keys, dim]`, run by
    run, and rows `[keys, dim]`."""

    slots: Tensor
    runs: tuple[Tensor, ...]
    rows: Tensor

    def boxes(self, some: "Chunk") -> Tensor:
        return self.runs[some.run][some.inside]


def strips(part: Part, work: Pass, dim: int, name: str, like: Like) -> Strips:
    """Uninitialised strips."""
    return keep(("strips", work, dim, name, like), like.device, lambda: _strips(part, work, dim, name, like))


def _strips(part: Part, work: Pass, dim: int, name: str, like: Like) -> Strips:
    row = work.width * dim
    size = (_body(work) + _tail(work), work.width, dim)
    slots = take(name, size, like, work.before * row)
    shape = (work.runs, work.boxes // work.runs, work.keys, dim)
    boxes = slots.as_strided(shape, (work.length * row, work.pitch * row, dim, 1))
    return Strips(slots, boxes.unbind(), slots.view(-1, dim))


class Chunk(NamedTuple):
    """Boxes of one run: which of all, which of the run, and the slot that the first starts at."""

    all: slice
    run: int
    inside: slice
    slot: int


def chunks(work: Pass, step: int, least: int) -> Iterator[Chunk]:
    """The boxes of a pass, about `step` at a time, half as many more at most, and no fewer than `least` where
    there are as many."""
    count = work.boxes // work.runs
    pieces = max(min((count + step // 2) // step, count // least), 1)
    for number, piece in product(range(work.runs), range(pieces)):
        start, stop = (count * x // pieces for x in (piece, piece + 1))
        first = number * count + start
        every = slice(first, number * count + stop)
        yield Chunk(every, number, slice(start, stop), number * work.length + start * work.pitch)


def _body(work: Pass) -> int:
    return work.strips * work.length


def _tail(work: Pass) -> int:
    """Slots past the last strip that its last box reads."""
    return max(work.slots - work.pitch, 0) if work.strips > work.runs else 0


def cut(part: Part, work: Pass, x: Place, name: str, like: Like) -> Strips:
    """Strips of `x` `[*batch, *columns, dim]` in the dtype of `like`; a slot without a column repeats one of
    its box."""
    key = ("cut", work, x.shape, x.strides, name, like)
    made, found, held = keep(key, like.device, lambda: _cut(part, work, x.view(), name, like))
    if found is not None:
        read(found, x, made.rows)
    play(held, x)
    return made


def _cut(
    part: Part, work: Pass, x: Tensor, name: str, like: Like
) -> tuple[Strips, Lookup | None, list[Held]]:
    made, key = strips(part, work, x.shape[-1], name, like), ("cut", work, x.shape, x.stride())
    if isinstance(part, Bundle):
        return made, part.recent.recall(key, lambda: part.cut(x, _tail(work) * work.width)), []
    if part.rank > 1:
        return made, part.recent.recall(key, lambda: _cutting(part, work, x, _tail(work) * work.width)), []
    moves = part.recent.recall(key, lambda: record(_lines(part, work, x)))
    return made, None, hold(moves, made.slots)


def _lines(part: Part, work: Pass, like: Tensor) -> Iterator[Step]:
    """Strips of one axis, run by run: longer rows than an index takes."""
    batch, dim, slots = like.shape[:-2], like.shape[-1], _read(part, work, 0)
    made, x = blank((_body(work) + _tail(work), 1, dim)), blank(like.shape, like.stride())
    body, end = made[: _body(work)].view(*batch, work.length, dim), 0
    for one in sorted(runs(part.rings[0], slots)):
        yield Step("zero_", 0, body[..., end : one.at, :])
        yield Step(
            "copy_", 0, body[..., one.at : one.at + one.length, :], 1, x.narrow(-2, one.column, one.length)
        )
        end = one.at + one.length
    yield Step("zero_", 0, body[..., end:, :])
    yield Step("zero_", 0, made[_body(work) :])


def _cutting(part: Part, work: Pass, x: Tensor, tail: int) -> Lookup:
    rank, steps = part.rank, x.stride()
    # [*batch, *tiles of the other axes, length, *widths of the other axes]
    ndim, batch = x.ndim + rank - 2, x.ndim - rank - 1
    outer = batch_starts(x, ndim, batch)
    for axis in range(1, rank):
        ring, count = part.rings[axis], partial(torch.arange, device=x.device)
        slots = count(len(work.slab[axis])).unsqueeze(1) * ring.step + count(len(work.box[axis]))
        starts = _columns(ring, slots + _read(part, work, axis).start) * steps[batch + axis]
        outer.append(among(starts, ndim, axis - 2 * rank, axis - rank))
    slots = torch.arange(work.length, device=x.device) + _read(part, work, 0).start
    inner = among(_columns(part.rings[0], slots) * steps[batch], ndim, -rank)
    return lookup(x, outer, [inner], tail, len(part.slabs) * len(part.pieces))


def _columns(ring: Ring, slots: Tensor) -> Tensor:
    """The column that each slot holds, or the nearest one where it holds none."""
    return held(slots, slots.new_tensor(ring.columns), ring.width)


def batch_starts(x: Tensor, ndim: int, batch: int) -> list[Tensor]:
    """First elements along each of the leading `batch` axes."""
    return [
        among(torch.arange(x.shape[axis], device=x.device) * x.stride(axis), ndim, axis - ndim)
        for axis in range(batch)
    ]


def _padded_shape(part: Part, work: Pass, x: Tensor) -> tuple[int, ...]:
    hulls = (len(_hull(part, work, axis)) for axis in range(1, part.rank))
    return (*x.shape[: -part.rank - 1], work.length, *hulls, x.shape[-1])


def _hull(part: Part, work: Pass, axis: int) -> range:
    """Slots of a padded copy: where it is one of several tiles, also those that wrapped ones repeat."""
    slots = _read(part, work, axis)
    return slots if _is_plain(part) else part.rings[axis].hull(slots)


def _is_plain(part: Part) -> bool:
    """Whether strips are padded copies: of one axis, or parts of one box."""
    return part.rank == 1 or len(part.pieces) > 1


def _strip_shape(part: Part, work: Pass, dim: int) -> tuple[int, ...]:
    return (*map(len, work.slab[1:]), work.length, *(ring.width for ring in part.rings[1:]), dim)


def _windows(part: Part, work: Pass, padded: Tensor) -> Tensor:
    """`[volumes, *tiles of the other axes, length, *widths, dim]`, an overlapping view of a padded copy."""
    rank, steps = part.rank, padded.stride()[-part.rank - 1 :]
    offset, hops = padded.storage_offset(), []
    for axis in range(1, rank):
        slots = _read(part, work, axis)
        offset += (slots.start - part.rings[axis].hull(slots).start) * steps[axis]
        hops.append(part.rings[axis].step * steps[axis])
    volume = prod(padded.shape[-rank - 1 :])
    shape = (work.volumes, *_strip_shape(part, work, padded.shape[-1]))
    return padded.as_strided(shape, (volume, *hops, *steps), offset)


def _axis_runs(part: Part, work: Pass) -> list[list[Run]]:
    """Runs of every axis of a padded copy."""
    length = (len(work.slab[0]) - 1) * work.pitch + work.slots
    found = [runs(part.rings[0], _read(part, work, 0)[:length])]
    found += (runs(part.rings[axis], _hull(part, work, axis)) for axis in range(1, part.rank))
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


def covers(part: Part) -> bool:
    """Whether a single fold writes every column of each batch."""
    if len(part.slabs) > 1 or len(part.pieces) > 1:
        return False
    found = _axis_runs(part, part.measure(0, 0, 0))
    return all(ring.columns == axis[0].length for ring, axis in zip(part.rings, found, strict=True))


def meets(part: Part, work: Pass) -> bool:
    """Whether a pass adds to its band."""
    band = work.band
    if band is None or len(part.pieces) == 1:
        return True
    axes = zip(_axis_runs(part, work), band.columns, strict=True)
    return all(any(_within(one, columns).length for one in found) for found, columns in axes)


def fold(part: Part, work: Pass, made: Tensor, target: Place, like: Like, first: bool = False) -> None:
    """Add strips `[slots, width, dim]` to the columns they hold in `target` `[*batch, *columns, dim]`, or be
    the `first` to write them.

    Strips are spent. Every sum has one order, whatever the number of threads.
    """
    meta = blank(target.shape, target.strides)
    if isinstance(part, Bundle):
        _fold_all(part, work, made, target, meta, like)
        return
    shape = _padded_shape(part, work, meta)
    key = ("fold", first, work, target.shape, target.strides)
    body = blank((_body(work), work.width, target.shape[-1]))
    moves = part.recent.recall(key, lambda: record(_folding(part, work, meta, body, first)))
    strips = placed(made)
    run(moves, target, strips, strips if _is_plain(part) else placed(take("padded", shape, like)))


def _fold_all(part: Bundle, work: Pass, made: Tensor, target: Place, meta: Tensor, like: Like) -> None:
    """Where a dtype is too narrow for sums, they are made beside (0), and then rounded (3)."""
    dtype = target.tensor.dtype
    key = ("fold", work, target.shape, target.strides, dtype, made.shape)
    sums, padded, moves = part.recent.recall(key, lambda: _folding_all(part, made, meta, dtype != like.dtype))
    beside, strips = placed(take("sums", (sums,), like)) if sums else target, placed(made)
    run(moves, beside, strips, strips if part.rank == 1 else placed(take("padded", (padded,), like)), target)


def _folding_all(part: Bundle, made: Tensor, like: Tensor, rounds: bool) -> tuple[int, int, tuple[Move, ...]]:
    """Numbers of sums and of the largest padded copy, and the moves."""
    strips, sums, padded, steps = blank(made.shape), 0, 0, []
    for member in part.members:
        mine, work = part.columns(member, like), member.work
        padded = max(padded, prod(_padded_shape(member.part, work, mine)))
        target = mine
        if rounds:
            target = blank((sums + mine.numel(),))[sums:].view(mine.shape)
            sums += mine.numel()
        first = covers(member.part)
        if not first:
            steps.append(Step("zero_", 0, target))
        start = member.box * work.pitch
        body = strips[start : start + _body(work)]
        steps += _folding(member.part, work, target, body, first)
        if rounds:
            steps.append(Step("copy_", 3, mine, 0, target))
    return sums, padded, record(steps)


def _folding(part: Part, work: Pass, target: Tensor, body: Tensor, first: bool) -> Iterator[Step]:
    """From strips (1) through a padded copy (2), which strips of one box are, to a tensor (0)."""
    rank, shape, dim = part.rank, _padded_shape(part, work, target), target.shape[-1]
    found = _axis_runs(part, work)
    padded = body.view(shape) if _is_plain(part) else blank(shape)
    if not _is_plain(part):
        yield Step("zero_", 2, padded)
        yield from _overlap(part, body.view(-1, *_strip_shape(part, work, dim)), _windows(part, work, padded))
        for axis in range(1, rank):
            for repeat, sink in _halos(_inside(padded, found, axis), axis - rank - 1, found[axis]):
                yield Step("add_", 2, sink, 2, repeat)
        found[1:] = (one[:1] for one in found[1:])
    for number, chosen in enumerate(product(*found)):
        source, sink = padded, target
        for axis, one in enumerate(chosen):
            some = one if work.band is None else _within(one, work.band.columns[axis])
            source = source.narrow(axis - rank - 1, some.at, some.length)
            sink = sink.narrow(axis - rank - 1, some.column, some.length)
        yield Step("copy_" if first and not number else "add_", 0, sink, 2, source)


def _within(one: Run, columns: range) -> Run:
    """The part of a run that holds some columns."""
    start = min(max(one.column, columns.start), one.column + one.length)
    stop = min(one.column + one.length, columns.stop)
    return Run(one.at + start - one.column, start, max(stop - start, 0))


def _overlap(part: Part, made: Tensor, windows: Tensor) -> Iterator[Step]:
    """Add `[volumes, *tiles, length, *widths, dim]` to overlapping windows; in a step no two tiles share a
    slot."""
    segments = [
        [(at, min(ring.step, ring.width - at)) for at in range(0, ring.width, ring.step)]
        for ring in part.rings[1:]
    ]
    for chosen in product(*segments):
        source, sink = made, windows
        for axis, (at, length) in enumerate(chosen):
            source = source.narrow(part.rank + 1 + axis, at, length)
            sink = sink.narrow(part.rank + 1 + axis, at, length)
        yield Step("add_", 2, sink, 1, source)


class Segment(NamedTuple):
    """Where the same part of several boxes is summed, none of which overlap, the weights of its keys,
    `[boxes, keys, rows]`, and room for a product that cannot be added in place."""

    sink: Tensor
    weights: Tensor
    made: Tensor | None


def segments(work: Pass, slots: Tensor, some: Chunk, weights: Tensor) -> list[Segment]:
    """The boxes of a chunk, for `weights` `[boxes, rows, keys]`.

    Boxes overlap, segments of one pitch do not. Far segments go first: then a slot takes its tiles
    in order, whether or not they come in one chunk.
    """
    span, dim, like, found = work.slots, slots.shape[-1], Like(slots.dtype, slots.device), []
    row = work.width * dim
    for at in range((span - 1) // work.pitch * work.pitch, -1, -work.pitch):
        length = min(work.pitch, span - at) * work.width
        size = (len(weights), length, dim)
        sink = slots.as_strided(size, (work.pitch * row, dim, 1), (some.slot + at) * row)
        mine = weights[:, :, at * work.width : at * work.width + length].mT
        # A product written with gaps runs matrix by matrix.
        gaps = length < work.pitch * work.width
        made = sheet("segment", size, like, first=some.all.start)[0] if gaps else None
        found.append(Segment(sink, mine, made))
    return found


def accumulate(found: list[Segment], rows: Tensor, scale: float) -> None:
    """Add `scale * weights^T rows` to segments."""
    for sink, weights, made in found:
        if made is None:
            multiply(sink, weights, rows, scale)
        else:
            multiply(made, weights, rows, scale, 0)
            sink.add_(made)
