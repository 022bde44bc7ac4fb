"""Fused attention on strips, backward: weights again from the saved log-sum-exp."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import Problem
from ..backends.base import Grads, Needs, Operands
from ..composite import accumulating
from ..sections import OPERANDS, RESULTS, Section
from . import direct, fresh, plan
from .arena import Like, keep, sheet, take, trim
from .call import LOG2E, Call, chunk, columns_of, rows_of
from .gradients import Gradients, gradients, sections
from .layout import Segment, Strips, accumulate, chunks, cut, fold, meets, segments, strips
from .moves import Place
from .plan import Pass, parts
from .products import fewest, multiply, turns
from .scores import HIDDEN, Additive
from .tiles import gather, scatter, tiles


def attend_back(
    problem: Problem,
    operands: Operands,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    scale: float,
    needs: Needs,
    into: Grads | None = None,
) -> Grads:
    """Gradients, written `into` tensors where there are some; there, those of bias and additional tokens are
    added, in the dtype of sums."""
    if into is None and out.numel() and len(some := sections(operands, needs)) > 1:
        return _attend_back_some(problem, some, (*operands, out, lse, grad_out, grad_lse), scale, needs)
    if grad_lse is None and grad_out is not None and out.numel() and direct.faster(problem, True):
        made = direct.attend_back(problem, operands, out, lse, grad_out, scale)
        if into is None:
            return Grads(*(x if need else None for x, need in zip(made, needs, strict=True)))
        return Grads(
            *(None if x is None or y is None else x.copy_(y) for x, y in zip(into, made, strict=True))
        )
    found = parts(problem, True) if out.numel() else ()
    grads = gradients(operands, needs, found, into)
    saved = Saved.of(out, lse, grad_out, grad_lse, operands.bias is not None)
    trim()
    for part in found:
        call = Call(part, operands, scale)
        for batch in range(len(part.batches)):
            for slab, columns in enumerate(grads.columns(part, batch)):
                run_pass(call, batch, slab, saved, grads, columns)
        grads.finish(part)
    return grads.result() if into is None else into


def _attend_back_some(
    problem: Problem, some: list[Section], tensors: Sequence[Tensor | None], scale: float, needs: Needs
) -> Grads:
    """Gradients, some heads and batch entries at a time."""
    whole = [
        None if x is None or not need else fresh.empty(tuple(x.shape), x.dtype, x.device)
        for x, need in zip(tensors[:6], needs, strict=True)
    ]
    bias = None
    for section in some:
        places = zip(tensors, OPERANDS + 2 * RESULTS, strict=True)
        *given, out, lse, pull, slope = (section.of(x, place) for x, place in places)
        made = Grads(*(section.of(x, place) for x, place in zip(whole, OPERANDS, strict=True)))
        if section.entries.start == 0:
            bias = _sums(made.bias)
        tokens = _sums(made.extra_key), _sums(made.extra_value)
        into = made._replace(bias=bias, extra_key=tokens[0], extra_value=tokens[1])
        entries, heads = len(section.entries), len(section.heads)
        share = problem.heads // problem.kv_heads
        mine = replace(problem, batch=entries, heads=heads * share, kv_heads=heads)
        attend_back(mine, Operands(*given), out, lse, pull, slope, scale, needs, into)
        for sink, x in zip(made[3:], into[3:], strict=True):
            if sink is not None and x is not None:
                sink.copy_(x)
    return Grads(*whole)


def _sums(x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    dtype = accumulating(x.dtype)
    return x.zero_() if x.dtype == dtype else x.new_zeros(x.shape, dtype=dtype)


class Saved(NamedTuple):
    """Results of the forward pass, the output where it is as exact as sums, and what flows into them.

    `exists` is one, where there is a bias: in tiles it is zero, as are all numbers, in rows that do not
    exist. Their scores are the bias alone, whose exponential might not be finite.
    """

    out: Tensor | None
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None
    exists: Tensor | None

    @classmethod
    def of(
        cls, out: Tensor, lse: Tensor, grad_out: Tensor | None, grad_lse: Tensor | None, has_bias: bool
    ) -> "Saved":
        if grad_out is None:
            grad_out = out.new_zeros(()).expand_as(out)
        lse = lse.unsqueeze(-1)
        exists = lse.new_ones(()).expand_as(lse) if has_bias else None
        exact = out if out.dtype == lse.dtype else None
        return cls(exact, lse, grad_out, None if grad_lse is None else grad_lse.unsqueeze(-1), exists)


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
        rows = self.query[part], self.pull[part], self.level[part], self.delta[part]
        return _Rows(*rows, None if self.grad is None else self.grad[part], self.pending)


def run_pass(
    call: Call, batch: int, slab: int, saved: Saved, grads: Gradients, columns: Sequence[Place | None]
) -> None:
    part = call.part
    inputs = columns_of(part, call.key, batch), columns_of(part, call.value, batch)
    work = part.measure(batch, slab, 0)
    rows = _rows(call, batch, work, saved, grads)
    pieces = [part.measure(batch, slab, piece) for piece in range(len(part.pieces))]
    own = work.band is None or work.band.own
    if not own:
        grads = grads.sums
    if grads.slopes and (rows.pending or saved.out is None):
        for piece in () if rows.pending else pieces:
            _piece(call, batch, piece, inputs, rows, None, (None, None))
        _extra_delta(call, batch, rows)
    for piece in pieces:
        if own or meets(part, piece):
            _piece(call, batch, piece, inputs, rows, grads, columns)
    _extra(call, batch, rows, grads)
    if rows.grad is not None and grads.query is not None:
        scatter(part, work, rows.grad, "grad_query", rows_of(part, grads.query, batch))


def _rows(call: Call, batch: int, work: Pass, saved: Saved, grads: Gradients) -> _Rows:
    part, like = call.part, call.like

    def tiled(x: Tensor, name: str) -> Tensor:
        return gather(part, work, rows_of(part, x, batch), name, like)

    query, pull = tiled(call.query, "query"), tiled(saved.grad_out, "pull")
    level = tiled(saved.lse, "level").mul_(LOG2E)
    if saved.exists is not None:
        level.masked_fill_(tiled(saved.exists, "exists") == 0, -HIDDEN)
    pending = len(part.pieces) == 1
    delta = tiles(part, work, 1, "delta", like).zero_()
    if not pending and saved.out is not None:
        torch.sum(tiled(saved.out, "grad_query").mul_(pull), -1, keepdim=True, out=delta)
    if saved.grad_lse is not None:
        delta.sub_(tiled(saved.grad_lse, "grad_lse"))
    grad = None
    if grads.query is not None:
        grad = tiles(part, work, query.shape[-1], "grad_query", like)
    return _Rows(query, pull, level, delta, grad, pending)


def _piece(
    call: Call,
    batch: int,
    work: Pass,
    inputs: tuple[Place, Place],
    rows: _Rows,
    grads: Gradients | None,
    columns: Sequence[Place | None],
) -> None:
    """Add what a piece gives to gradients, or to `delta` alone where there are none."""
    part, like = call.part, call.like
    names = ("key", "value")
    keys, values = (cut(part, work, x, name, like) for x, name in zip(inputs, names, strict=True))
    sums: list[Tensor | None] = [
        None if sink is None else strips(part, work, x.shape[-1], "grad_" + name, like).slots.zero_()
        for sink, x, name in zip(columns, inputs, names, strict=True)
    ]
    mask = call.additive(work, batch, turns(part.rows, like.device))
    kinds, with_slopes = mask.kinds(work), grads is None or grads.slopes
    for some in _chunks(call, work, mask, rows, keys, values, sums, with_slopes):
        mine, weights = some.rows, some.weights
        mask.fill(weights, kinds[some.tiles])
        multiply(weights, mine.query, some.key_turned, call.scale * LOG2E)
        weights.sub_(mine.level)
        torch.exp2(some.whole, out=some.whole)
        accumulate(some.to_value, mine.pull, 1.0)
        if some.slopes is None:
            continue
        if grads is None:
            _gain(some.slopes, mine, weights, some.value_turned)
            continue
        _slope(some.slopes, mine, weights, some.value_turned, some.blanks)
        if mine.grad is not None:
            multiply(mine.grad, some.slopes, some.key, call.scale, 0 if work.opens else 1)
        accumulate(some.to_key, mine.query, call.scale)
        grads.count(part, mask, some.slopes, kinds[some.tiles])
    for sink, made in zip(columns, sums, strict=True):
        if sink is not None and made is not None:
            fold(part, work, made, sink, like, grads is not None and grads.fresh)


class _Chunk(NamedTuple):
    """Tiles whose scores are held at a time; `slopes`, gradients of scores, only where they are wanted."""

    tiles: slice
    rows: _Rows
    key: Tensor
    key_turned: Tensor
    value_turned: Tensor
    weights: Tensor
    whole: Tensor
    slopes: Tensor | None
    blanks: Tensor | None
    to_key: list[Segment]
    to_value: list[Segment]


def _chunks(
    call: Call,
    work: Pass,
    mask: Additive,
    rows: _Rows,
    keys: Strips,
    values: Strips,
    sums: list[Tensor | None],
    with_slopes: bool,
) -> list[_Chunk]:
    part, like, span = call.part, call.like, work.keys

    def make() -> list[_Chunk]:
        found = []
        for some in chunks(work, chunk(part.rows, span, like, 2), fewest(like.device)):
            key = keys.boxes(some)
            size = (len(key), part.rows, span)
            lie = like, mask.turned, some.all.start
            weights, whole = sheet("scores", size, *lie)
            slopes = sheet("slopes", size, *lie)[0] if with_slopes else None
            to_key, to_value = (
                [] if slots is None or x is None else segments(work, slots, some, x)
                for slots, x in zip(sums, (slopes, weights), strict=True)
            )
            boxes = key, key.mT, values.boxes(some).mT
            held = weights, whole, slopes, part.blanks(work, some.all, like.device)
            found.append(_Chunk(some.all, rows.some(some.all), *boxes, *held, to_key, to_value))
        return found

    widths = rows.query.shape[-1], rows.pull.shape[-1]
    needs = (with_slopes, rows.grad is None, rows.pending, *(x is None for x in sums))
    key = ("chunks back", part, work.shape, widths, needs, like, torch.get_num_threads(), plan.CHUNK)
    return keep(key, like.device, make)


def _slope(
    slopes: Tensor, rows: _Rows, weights: Tensor, value_turned: Tensor, blanks: Tensor | None = None
) -> None:
    """Write the gradient of the scores; completes `delta` where it is pending.

    `blanks` are boxes without a tile. What they read of two strips may hold a NaN of one, which their sum
    would carry to the other.
    """
    if not rows.pending:
        multiply(slopes, rows.pull, value_turned, beta=0)
        slopes.sub_(rows.delta).mul_(weights)
        return
    _gain(slopes, rows, weights, value_turned)
    if blanks is not None:
        rows.delta.index_fill_(0, blanks, 0)
    slopes.addcmul_(weights, rows.delta, value=-1)


def _gain(slopes: Tensor, rows: _Rows, weights: Tensor, value_turned: Tensor) -> None:
    """Write weights times their gradients, and add them to `delta`."""
    multiply(slopes, rows.pull, value_turned, beta=0)
    slopes.mul_(weights)
    rows.delta.add_(slopes.sum(-1, keepdim=True))


def _extra_weights(call: Call, rows: _Rows, key: Tensor) -> Tensor:
    """`[tiles, rows, tokens]` weights of additional tokens."""
    weights, whole = sheet("scores", (*rows.query.shape[:2], key.shape[1]), call.like)
    multiply(weights, rows.query, key.mT, call.scale * LOG2E, 0)
    weights.sub_(rows.level)
    torch.exp2(whole, out=whole)
    return weights


def _extra_delta(call: Call, batch: int, rows: _Rows) -> None:
    """Add the share of the additional tokens to `delta`."""
    for some, _, (key, value) in call.extra_chunks(batch, len(rows.query)):
        mine = rows.some(some)
        weights = _extra_weights(call, mine, key)
        slopes = take("slopes", tuple(weights.shape), call.like)
        _gain(slopes, mine, weights, value.mT)


def _extra(call: Call, batch: int, rows: _Rows, grads: Gradients) -> None:
    for some, where, (key, value) in call.extra_chunks(batch, len(rows.query)):
        mine = rows._replace(pending=False).some(some)
        weights = _extra_weights(call, mine, key)
        if grads.extra_value is not None:
            _add(grads.extra_value[where], weights, mine.pull, 1.0)
        if not grads.slopes:
            continue
        slopes = take("slopes", tuple(weights.shape), call.like)
        _slope(slopes, mine, weights, value.mT)
        if mine.grad is not None:
            multiply(mine.grad, slopes, key, call.scale)
        if grads.extra_key is not None:
            _add(grads.extra_key[where], slopes, mine.query, call.scale)


def _add(sink: Tensor, weights: Tensor, rows: Tensor, scale: float) -> None:
    """Add what tiles give to additional tokens `[tokens, dim]`."""
    made = take("segment", (len(rows), *sink.shape), Like(rows.dtype, rows.device))
    multiply(made, weights.mT, rows, scale, 0)
    sink.add_(made.sum(0))
