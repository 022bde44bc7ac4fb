"""Fused attention on strips, forward."""

from collections.abc import Iterable
from math import isfinite, isnan
from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import Problem
from ..backends.base import Operands, Ready
from ..composite import accumulating
from . import direct, fresh, narrow, plan
from .arena import Like, keep, sheet, trim
from .bundle import Bundle
from .call import LOG2E, Call, chunk, columns_of, rows_of
from .layout import Chunk, Strips, chunks, cut, strips
from .moves import Place, one_of
from .plan import Part, Pass, parts
from .products import facing, fewest, multiply, turns
from .scores import Additive
from .tiles import gather, scatter, tiles

TOTALS = 2.0**-32, 2.0**64
"""Row totals between which weights need no maximum taken off their scores: float32 holds them, their products
with values are seen to be finite, and what underflows is no part of a sum."""

BOTH = "key", "value"
WARM = 1 << 18, 20 << 20
"""Bytes of queries from and up to which reading all operands once brings them nearer: fewer are near, more do
not stay."""


def attend(
    problem: Problem, operands: Operands, scale: float, into: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, written `into` tensors where there are some."""
    if not _is_direct(problem, operands):
        return _attend(problem, operands, scale, into)
    found = direct.prepare(problem, operands, scale)(*operands)
    if into is None:
        return found
    return into[0].copy_(found[0]), into[1].copy_(found[1])


def prepare(problem: Problem, operands: Operands, scale: float) -> Ready:
    """What computes attention of operands like these."""
    if not _is_direct(problem, operands):
        return lambda *given: _attend(problem, Operands(*given), scale, None)
    return direct.prepare(problem, operands, scale)


def _is_direct(problem: Problem, operands: Operands) -> bool:
    return bool(operands.query.numel() * operands.value.numel()) and direct.faster(problem)


def _attend(
    problem: Problem, operands: Operands, scale: float, into: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    out, lse = into or _blank(operands)
    if out.numel() == 0:
        return out, lse
    trim()
    if problem.rank > 1:
        _warm(operands)
    for part in parts(problem):
        call = Call(part, operands, scale)
        run = narrow.run_pass if narrow.faster(problem, part) else run_pass
        for batch, slab in part.passes():
            run(call, batch, slab, (out, lse.unsqueeze(-1)))
    return out, lse


def _blank(operands: Operands) -> tuple[Tensor, Tensor]:
    query, value = operands.query, operands.value
    out = fresh.empty((*query.shape[:-1], value.shape[-1]), query.dtype, query.device)
    return out, fresh.empty(query.shape[:-1], accumulating(query.dtype), query.device)


def _extremes(x: Tensor, blank: float) -> tuple[float, float]:
    """Least and greatest number, with `blank` for what is none: that reaches its own readers whatever others
    do."""
    low, high = map(float, x.aminmax())
    if isnan(low):
        low, high = map(float, x.nan_to_num(blank, torch.inf, -torch.inf).aminmax())
    return low, high


def _warm(operands: Operands) -> None:
    """Read the operands in order, which leaves them in cache for passes that do not."""
    query = operands.query
    if WARM[0] <= query.nbytes <= WARM[1] and query.device.type == "cpu":
        for x in operands[:3]:
            x.sum()


class _State:
    """Rows of tiles while keys come in: weighted sums of values, and the maximum and total of the weights
    in base 2."""

    def __init__(self, out: Tensor, top: Tensor, total: Tensor) -> None:
        self.out, self.top, self.total = out, top, total

    def start(self, scores: Tensor, whole: Tensor, values: Tensor, bare: bool) -> None:
        """Take the first keys; `bare` scores have no maximum taken off. `scores`, the start of the sheet
        `whole`, are spent."""
        if not bare:
            torch.amax(scores, -1, keepdim=True, out=self.top)
            scores.sub_(self.top)
        torch.exp2(whole, out=whole)
        torch.sum(scores, -1, keepdim=True, out=self.total)
        multiply(self.out, scores, values, beta=0)

    def holds(self) -> bool:
        """Whether rows that took bare scores are as good as others."""
        low, high = _extremes(self.total, 1.0)
        if low < TOTALS[0] or high > TOTALS[1]:
            return False
        # A sum is finite of most numbers that are, and takes a third of the time.
        return isfinite(self.out.sum()) or all(map(isfinite, _extremes(self.out, 0.0)))

    def absorb(self, scores: Tensor, whole: Tensor, values: Tensor) -> None:
        """Take more keys."""
        top = torch.maximum(self.top, scores.amax(-1, keepdim=True))
        fade, faded = sheet("fade", tuple(top.shape), Like(top.dtype, top.device))
        torch.sub(self.top, top, out=fade)
        torch.exp2(faded, out=faded)
        scores.sub_(top)
        torch.exp2(whole, out=whole)
        self.total.mul_(fade).add_(scores.sum(-1, keepdim=True))
        multiply(self.out.mul_(fade), scores, values)
        self.top.copy_(top)


class _Scratch(NamedTuple):
    """Tiles of a pass: the state of their rows, and the sheet that its totals start."""

    state: _State
    totals: Tensor


def _scratch(call: Call, work: Pass) -> _Scratch:
    part, like, width = call.part, call.like, call.value.shape[-1]

    def make() -> _Scratch:
        total, totals = sheet("total", (work.boxes, part.rows, 1), like)
        out, top = tiles(part, work, width, "out", like), tiles(part, work, 1, "top", like)
        return _Scratch(_State(out, top, total), totals)

    return keep(("tiles", work, width, like, torch.get_num_threads()), like.device, make)


def run_pass(call: Call, batch: int, slab: int, results: tuple[Tensor, Tensor]) -> None:
    part, like = call.part, call.like
    columns = columns_of(part, call.key, batch), columns_of(part, call.value, batch)
    work = part.measure(batch, slab, 0)
    queries = gather(part, work, rows_of(part, call.query, batch), "query", like)
    state, totals = _scratch(call, work)
    # Maxima cost as much as the other sums; most scores do without, and the others show it soon.
    bare = len(part.pieces) == 1 and like.device.type == "cpu"
    if not bare or not _piece(call, batch, work, columns, queries, state, True):
        bare = False
        for piece in range(len(part.pieces)):
            _piece(call, batch, part.measure(batch, slab, piece), columns, queries, state, False)
    if call.extra[0] is not None:
        if bare:
            state.top.zero_()
        bare = False
        _extra(call, batch, queries, state)
    scatter(part, work, state.out.div_(state.total), "out", rows_of(part, results[0], batch))
    torch.log2(totals, out=totals)
    if not bare:
        state.total.add_(state.top)
    scatter(part, work, state.total.mul_(1 / LOG2E), "total", rows_of(part, results[1], batch))


class _Leg(NamedTuple):
    """Some tiles of one volume of a pass over one axis, whose keys and values are copied just before they are
    used."""

    work: Pass
    volume: int


class _Chunk(NamedTuple):
    """Tiles whose scores are held at a time."""

    leg: _Leg | None
    kinds: Tensor
    product: tuple[Tensor, Tensor, Tensor]
    value: Tensor
    state: _State
    scores: Tensor
    whole: Tensor


def _chunks(
    call: Call, work: Pass, mask: Additive, queries: Tensor, state: _State, copied: list[Strips]
) -> list[_Chunk]:
    part, like, dims = call.part, call.like, (call.key.shape[-1], call.value.shape[-1])

    def make() -> list[_Chunk]:
        kinds, found, step = mask.kinds(work), [], chunk(part.rows, work.keys, like)
        # A buffer that grows is another one: the largest chunk takes it first.
        for some in sorted(chunks(work, step, fewest(like.device)), key=_size, reverse=True):
            leg, boxes = None, [x.boxes(some) for x in copied]
            if not copied:
                leg = _Leg(part.leg(work, some.inside, some.slot, dims), some.run)
                boxes = [strips(part, leg.work, *x, like).runs[0] for x in zip(dims, BOTH, strict=True)]
            key, value = boxes
            mine = _State(*(x[some.all] for x in (state.out, state.top, state.total)))
            size = (len(value), part.rows, work.keys)
            held = sheet("scores", size, like, mask.turned, some.all.start)
            product = facing(held[0], queries[some.all], key.mT)
            found.append(_Chunk(leg, kinds[some.all], product, value, mine, *held))
        return sorted(found, key=lambda chunk: chunk.state.out.storage_offset())

    key = ("chunks", work, len(mask.heads), mask.turned, dims, like, torch.get_num_threads(), plan.CHUNK)
    return keep(key, like.device, make)


def _size(some: Chunk) -> int:
    return some.inside.stop - some.inside.start


def _is_near(part: Part, work: Pass, like: Like) -> bool:
    """Whether keys and values are copied chunk by chunk: of one axis, where strips are computed one by one
    and boxes overlap little."""
    if part.rank > 1 or len(part.pieces) > 1 or work.runs < work.strips or like.device.type != "cpu":
        return False
    return not isinstance(part, Bundle) and work.keys <= work.pitch * (chunk(part.rows, work.keys, like) + 1)


def _cut(part: Part, work: Pass, columns: Iterable[Place], like: Like) -> list[Strips]:
    return [cut(part, work, x, name, like) for x, name in zip(columns, BOTH, strict=True)]


def _piece(
    call: Call,
    batch: int,
    work: Pass,
    columns: tuple[Place, Place],
    queries: Tensor,
    state: _State,
    bare: bool,
) -> bool:
    """Take the keys of a piece; False, with nothing of use in `state`, where `bare` scores do not do."""
    part, like = call.part, call.like
    # Maxima over keys that do not lie together take long.
    mask = call.additive(work, batch, bare and turns(part.rows, like.device))
    scale = call.scale * LOG2E
    copied = [] if _is_near(part, work, like) else _cut(part, work, columns, like)
    found = _chunks(call, work, mask, queries, state, copied)
    for number, some in enumerate(found):
        if some.leg is not None:
            _cut(part, some.leg.work, (one_of(x, some.leg.volume, part.rank + 2) for x in columns), like)
        mask.fill(some.scores, some.kinds)
        multiply(*some.product, scale)
        if not work.opens:
            some.state.absorb(some.scores, some.whole, some.value)
            continue
        some.state.start(some.scores, some.whole, some.value, bare)
        # One chunk tells of most others.
        if bare and number == 0 < len(found) - 1 and not some.state.holds():
            return False
    return not bare or state.holds()


def _extra(call: Call, batch: int, queries: Tensor, state: _State) -> None:
    for some, _, (key, value) in call.extra_chunks(batch, len(queries)):
        query, *mine = (x[some] for x in (queries, state.out, state.top, state.total))
        scores, whole = sheet("scores", (*query.shape[:2], key.shape[1]), call.like)
        multiply(scores, query, key.mT, call.scale * LOG2E, 0)
        _State(*mine).absorb(scores, whole, value)
