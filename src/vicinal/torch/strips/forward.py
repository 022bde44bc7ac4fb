"""Fused attention on strips, forward."""

import torch
from torch import Tensor

from ...problem import Problem
from ..backends.base import Operands
from . import direct, narrow
from .arena import Like, sheet, trim
from .call import LOG2E, Call, accumulating, chunk, columns_of, rows_of
from .layout import cut, gather, scatter, tiles
from .plan import Pass, parts


def attend(problem: Problem, operands: Operands, scale: float) -> tuple[Tensor, Tensor]:
    query, value = operands.query, operands.value
    out = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[:-1], dtype=accumulating(query.dtype), device=query.device)
    if out.numel() == 0:
        return out, lse
    if direct.faster(problem):
        return direct.attend(problem, operands, scale)
    trim()
    for part in parts(problem):
        call = Call(part, operands, scale)
        run = narrow.run_pass if narrow.faster(problem) and len(part.pieces) == 1 else _pass
        for batch, slab in part.passes():
            run(call, batch, slab, (out, lse.unsqueeze(-1)))
    return out, lse


class _State:
    """Rows of tiles while keys come in: weighted sums of values, and the maximum and total of the weights
    in base 2."""

    def __init__(self, out: Tensor, top: Tensor, total: Tensor) -> None:
        self.out, self.top, self.total = out, top, total

    def __getitem__(self, some: slice) -> "_State":
        return _State(self.out[some], self.top[some], self.total[some])

    def start(self, scores: Tensor, whole: Tensor, values: Tensor) -> None:
        """Take the first keys. `scores`, the start of the sheet `whole`, are spent."""
        torch.amax(scores, -1, keepdim=True, out=self.top)
        scores.sub_(self.top)
        torch.exp2(whole, out=whole)
        torch.sum(scores, -1, keepdim=True, out=self.total)
        torch.bmm(scores, values, out=self.out)

    def absorb(self, scores: Tensor, whole: Tensor, values: Tensor) -> None:
        """Take more keys."""
        top = torch.maximum(self.top, scores.amax(-1, keepdim=True))
        fade, faded = sheet("fade", tuple(top.shape), Like(top.dtype, top.device))
        torch.sub(self.top, top, out=fade)
        torch.exp2(faded, out=faded)
        scores.sub_(top)
        torch.exp2(whole, out=whole)
        self.total.mul_(fade).add_(scores.sum(-1, keepdim=True))
        self.out.mul_(fade).baddbmm_(scores, values)
        self.top.copy_(top)


def _pass(call: Call, batch: int, slab: int, results: tuple[Tensor, Tensor]) -> None:
    part, like = call.part, call.like
    columns = columns_of(part, call.key, batch), columns_of(part, call.value, batch)
    work = part.measure(batch, slab, 0)
    queries = gather(part, work, rows_of(part, call.query, batch), "query", like)
    total, totals = sheet("total", (work.boxes, part.rows, 1), like)
    out, top = (
        tiles(part, work, width, name, like) for name, width in (("out", call.value.shape[-1]), ("top", 1))
    )
    state = _State(out, top, total)
    for piece in range(len(part.pieces)):
        _piece(call, batch, part.measure(batch, slab, piece), columns, queries, state)
    _extra(call, batch, queries, state)
    scatter(part, work, out.div_(total), rows_of(part, results[0], batch))
    torch.log2(totals, out=totals)
    scatter(part, work, total.add_(top).mul_(1 / LOG2E), rows_of(part, results[1], batch))


def _piece(
    call: Call, batch: int, work: Pass, columns: tuple[Tensor, Tensor], queries: Tensor, state: _State
) -> None:
    part, like = call.part, call.like
    keys = cut(part, work, columns[0], "key", like).boxes
    values = cut(part, work, columns[1], "value", like).boxes
    mask = call.additive(work, batch)
    kinds = mask.kinds(work)
    step = chunk(part.rows, keys.shape[1], like)
    for start in range(0, work.boxes, step):
        some = slice(start, min(start + step, work.boxes))
        scores, whole = sheet("scores", (some.stop - start, part.rows, keys.shape[1]), like)
        mask.fill(scores, kinds[some])
        scores.baddbmm_(queries[some], keys[some].mT, alpha=call.scale * LOG2E)
        if work.slots.start == 0:
            state[some].start(scores, whole, values[some])
        else:
            state[some].absorb(scores, whole, values[some])


def _extra(call: Call, batch: int, queries: Tensor, state: _State) -> None:
    if call.extra[0] is None:
        return
    flat = [x.view(1, -1, x.shape[-1]) for x in (queries, state.out, state.top, state.total)]
    for rows, _, (key, value) in call.extra_chunks(batch, flat[0].shape[1]):
        query, *mine = (x[:, rows] for x in flat)
        scores, whole = sheet("scores", (1, query.shape[1], key.shape[1]), call.like)
        torch.bmm(query, key.mT, out=scores).mul_(call.scale * LOG2E)
        _State(*mine).absorb(scores, whole, value)
