"""Fused attention on strips, forward."""

from math import prod

import torch
from torch import Tensor

from ...problem import Problem
from ..backends.base import Operands
from .arena import take, trim
from .call import LOG2E, Call, accumulating, chunk
from .layout import cut, gather, scatter
from .plan import Batch, Pass, Slab, parts


def attend(problem: Problem, operands: Operands, scale: float) -> tuple[Tensor, Tensor]:
    query, value = operands.query, operands.value
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    lse = query.new_empty(query.shape[:-1], dtype=accumulating(query.dtype))
    trim()
    for part in parts(problem):
        call = Call(part, operands, scale)
        views = call.rows(out), call.rows(lse.unsqueeze(-1))
        for batch in part.batches:
            for slab in part.slabs:
                _pass(call, batch, slab, views)
    return out, lse


class _State:
    """Rows of tiles while keys come in: weighted sums of values, and the maximum and total of the weights
    in base 2."""

    def __init__(self, out: Tensor, top: Tensor, total: Tensor) -> None:
        self.out, self.top, self.total = out, top, total

    def __getitem__(self, some: slice) -> "_State":
        return _State(self.out[some], self.top[some], self.total[some])

    def start(self, scores: Tensor, values: Tensor) -> None:
        """Take the first keys; `scores` are spent."""
        torch.amax(scores, -1, keepdim=True, out=self.top)
        torch.exp2(scores.sub_(self.top), out=scores)
        torch.sum(scores, -1, keepdim=True, out=self.total)
        torch.bmm(scores, values, out=self.out)

    def absorb(self, scores: Tensor, values: Tensor) -> None:
        """Take more keys; `scores` are spent."""
        top = torch.maximum(self.top, scores.amax(-1, keepdim=True))
        fade = torch.exp2(self.top - top)
        torch.exp2(scores.sub_(top), out=scores)
        self.total.mul_(fade).add_(scores.sum(-1, keepdim=True))
        self.out.mul_(fade).baddbmm_(scores, values)
        self.top.copy_(top)


def _pass(call: Call, batch: Batch, slab: Slab, views: tuple[Tensor, Tensor]) -> None:
    part, like = call.part, call.like
    key, value = call.key[batch], call.value[batch]
    volumes = prod(key.shape[: -part.rank - 1])
    work = part.measure(volumes, slab, part.pieces[0])
    queries = gather(part, work, call.query[batch], "query", like)
    widths = {"out": value.shape[-1], "top": 1, "total": 1}
    state = _State(
        *(take(name, (*queries.shape[:2], w), like.dtype, like.device) for name, w in widths.items())
    )
    for piece in part.pieces:
        _piece(call, batch, part.measure(volumes, slab, piece), (key, value), queries, state)
    _extra(call, batch, queries, state)
    out, lse = views
    state.top.add_(state.total.log2()).mul_(1 / LOG2E)
    scatter(part, work, state.top, lse[batch])
    scatter(part, work, state.out.div_(state.total), out[batch])


def _piece(
    call: Call, batch: Batch, work: Pass, columns: tuple[Tensor, Tensor], queries: Tensor, state: _State
) -> None:
    part, like = call.part, call.like
    keys = cut(part, work, columns[0], "key", like).boxes
    values = cut(part, work, columns[1], "value", like).boxes
    mask = call.additive(work, batch)
    step = chunk(part.rows, keys.shape[1], like)
    for start in range(0, work.boxes, step):
        some = slice(start, min(start + step, work.boxes))
        scores = take("scores", (some.stop - start, part.rows, keys.shape[1]), like.dtype, like.device)
        mask.fill(scores, start)
        scores.baddbmm_(queries[some], keys[some].transpose(1, 2), alpha=call.scale * LOG2E)
        if work.slots.start == 0:
            state[some].start(scores, values[some])
        else:
            state[some].absorb(scores, values[some])


def _extra(call: Call, batch: Batch, queries: Tensor, state: _State) -> None:
    flat = [x.view(1, -1, x.shape[-1]) for x in (queries, state.out, state.top, state.total)]
    for rows, _, (key, value) in call.extra_chunks(batch, flat[0].shape[1]):
        query, *mine = (x[:, rows] for x in flat)
        scores = take("scores", (1, query.shape[1], key.shape[1]), key.dtype, key.device)
        torch.bmm(query, key.transpose(1, 2), out=scores).mul_(call.scale * LOG2E)
        _State(*mine).absorb(scores, value)
