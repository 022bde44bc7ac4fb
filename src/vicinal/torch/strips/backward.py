"""Fused attention on strips, backward: weights again from the saved log-sum-exp."""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import Problem
from ..backends.base import Grads, Needs, Operands
from .arena import take, trim
from .call import LOG2E, Call, chunk
from .gradients import Gradients
from .layout import accumulate, cut, fold, gather, scatter, strips, tiles
from .plan import Batch, Pass, Slab, parts


def attend_back(
    problem: Problem,
    operands: Operands,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    scale: float,
    needs: Needs,
) -> Grads:
    grads = Gradients(operands, needs)
    if grad_out is None:
        grad_out = out.new_zeros(()).expand_as(out)
    trim()
    for part in parts(problem, True):
        call = Call(part, operands, scale)
        top = None if grad_lse is None else call.rows(grad_lse.unsqueeze(-1))
        saved = _Saved(call.rows(out), call.rows(lse.unsqueeze(-1)), call.rows(grad_out), top)
        grads.enter(part)
        for batch in part.batches:
            columns = grads.columns(batch)
            for slab in part.slabs:
                _pass(call, batch, slab, saved, grads, columns)
            grads.leave(batch, columns)
        grads.finish()
    return grads.result()


class _Saved(NamedTuple):
    """Results of the forward pass and what flows into them, as rows."""

    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None


class _Rows(NamedTuple):
    """Tiles of a pass, `[boxes, rows, width]`.

    `level` is the log-sum-exp in base 2. `delta` is each row's sum of weight times gradient of weight,
    less what flows into the log-sum-exp; `pending` says that the window's share of the sum has still to
    come.
    """

    query: Tensor
    pull: Tensor
    level: Tensor
    delta: Tensor
    grad: Tensor | None
    pending: bool

    def some(self, part: slice) -> "_Rows":
        return self._each(lambda x: x[part])

    def flat(self) -> "_Rows":
        """All rows as one long tile."""
        return self._each(lambda x: x.view(1, -1, x.shape[-1]))

    def along(self, part: slice) -> "_Rows":
        """Some rows of `flat`."""
        return self._each(lambda x: x[:, part])

    def _each(self, view: Callable[[Tensor], Tensor]) -> "_Rows":
        grad = None if self.grad is None else view(self.grad)
        return _Rows(
            view(self.query), view(self.pull), view(self.level), view(self.delta), grad, self.pending
        )


def _pass(
    call: Call, batch: Batch, slab: Slab, saved: _Saved, grads: Gradients, columns: list[Tensor | None]
) -> None:
    part = call.part
    key, value = call.key[batch], call.value[batch]
    volumes = prod(key.shape[: -part.rank - 1])
    work = part.measure(volumes, slab, part.pieces[0])
    rows = _rows(call, batch, work, saved, grads)
    if rows.pending and grads.slopes:
        _extra_delta(call, batch, rows)
    for piece in part.pieces:
        _piece(call, batch, part.measure(volumes, slab, piece), (key, value), rows, grads, columns)
    _extra(call, batch, rows, grads)
    if rows.grad is not None and grads.rows is not None:
        scatter(part, work, rows.grad.mul_(call.scale), grads.rows[batch])


def _rows(call: Call, batch: Batch, work: Pass, saved: _Saved, grads: Gradients) -> _Rows:
    part, like = call.part, call.like
    query = gather(part, work, call.query[batch], "query", like)
    pull = gather(part, work, saved.grad_out[batch], "pull", like)
    level = gather(part, work, saved.lse[batch], "level", like).mul_(LOG2E)
    # The output is rounded to its dtype, so it serves only where the weights do not come all at once.
    pending = len(part.pieces) == 1
    delta = take("delta", tuple(level.shape), like.dtype, like.device).zero_()
    if not pending:
        torch.sum(
            gather(part, work, saved.out[batch], "grad_query", like).mul_(pull), -1, keepdim=True, out=delta
        )
    if saved.grad_lse is not None:
        delta.sub_(gather(part, work, saved.grad_lse[batch], "grad_lse", like))
    grad = None
    if grads.query is not None:
        made = tiles(part, work, call.key[batch].shape[: -part.rank - 1], query.shape[-1], "grad_query", like)
        grad = made.view(query.shape).zero_()
    return _Rows(query, pull, level, delta, grad, pending)


def _piece(
    call: Call,
    batch: Batch,
    work: Pass,
    inputs: tuple[Tensor, Tensor],
    rows: _Rows,
    grads: Gradients,
    columns: list[Tensor | None],
) -> None:
    part, like = call.part, call.like
    names = ("key", "value")
    keys, values = (cut(part, work, x, name, like).boxes for x, name in zip(inputs, names, strict=True))
    sums: list[Tensor | None] = [
        None if sink is None else strips(part, work, x.shape[-1], "grad_" + name, like).slots.zero_()
        for sink, x, name in zip(columns, inputs, names, strict=True)
    ]
    mask = call.additive(work, batch)
    step = chunk(part.rows, keys.shape[1], like, 2)
    for start in range(0, work.boxes, step):
        some = slice(start, min(start + step, work.boxes))
        mine, shape = rows.some(some), (some.stop - start, part.rows, keys.shape[1])
        weights = take("scores", shape, like.dtype, like.device)
        mask.fill(weights, start)
        weights.baddbmm_(mine.query, keys[some].transpose(1, 2), alpha=call.scale * LOG2E)
        torch.exp2(weights.sub_(mine.level), out=weights)
        if sums[1] is not None:
            accumulate(part, work, sums[1], some, weights, mine.pull, 1.0)
        if not grads.slopes:
            continue
        slopes = _slopes(mine, weights, values[some])
        if mine.grad is not None:
            mine.grad.baddbmm_(slopes, keys[some])
        if sums[0] is not None:
            accumulate(part, work, sums[0], some, slopes, mine.query, call.scale)
        grads.count(mask, slopes, start)
    for sink, made in zip(columns, sums, strict=True):
        if sink is not None and made is not None:
            fold(part, work, made, sink)


def _slopes(rows: _Rows, weights: Tensor, values: Tensor) -> Tensor:
    """Gradient of the scores; completes `delta` where it is pending."""
    slopes = take("slopes", tuple(weights.shape), weights.dtype, weights.device)
    torch.bmm(rows.pull, values.transpose(1, 2), out=slopes)
    if not rows.pending:
        return slopes.sub_(rows.delta).mul_(weights)
    slopes.mul_(weights)
    rows.delta.add_(slopes.sum(-1, keepdim=True))
    return slopes.addcmul_(weights, rows.delta, value=-1)


def _extra_weights(call: Call, rows: _Rows, key: Tensor) -> Tensor:
    """`[1, rows, tokens]` weights of additional tokens."""
    weights = take("scores", (1, rows.query.shape[1], key.shape[1]), key.dtype, key.device)
    torch.bmm(rows.query, key.transpose(1, 2), out=weights).mul_(call.scale * LOG2E)
    return torch.exp2(weights.sub_(rows.level), out=weights)


def _extra_delta(call: Call, batch: Batch, rows: _Rows) -> None:
    """Add the share of the additional tokens to `delta`."""
    flat = rows.flat()
    for some, _, (key, value) in call.extra_chunks(batch, flat.query.shape[1]):
        mine = flat.along(some)
        weights = _extra_weights(call, mine, key)
        mine.delta.add_(weights.mul_(mine.pull @ value.transpose(1, 2)).sum(-1, keepdim=True))


def _extra(call: Call, batch: Batch, rows: _Rows, grads: Gradients) -> None:
    flat = rows._replace(pending=False).flat()
    for some, where, (key, value) in call.extra_chunks(batch, flat.query.shape[1]):
        mine = flat.along(some)
        weights = _extra_weights(call, mine, key)
        if grads.extra_value is not None:
            grads.extra_value[where].addmm_(weights[0].T, mine.pull[0])
        if not grads.slopes:
            continue
        slopes = _slopes(mine, weights, value)
        if mine.grad is not None:
            mine.grad.baddbmm_(slopes, key)
        if grads.extra_key is not None:
            grads.extra_key[where].addmm_(slopes[0].T, mine.query[0], alpha=call.scale)
