"""The operators over documents of different shapes: `torch.ops.vicinal.attend_varlen` and its gradient.

Tokens are packed, `[tokens, heads, dim]`, or padded, `[batch, *frame, heads, dim]`. `shapes`, `[documents,
axes]`, is an int64 tensor on the CPU, so that one graph serves every batch of shapes and reading them waits
for no device; what they must fulfil is checked here, where their values are known. Queries are those of all
tokens. The rest is as in `ops.py`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import arguments
from ..problem import Problem
from . import documents
from .backends.base import Operands, Ready
from .composite import accumulating
from .documents import Batch
from .ops import ATTEND, LIBRARY, RUN, WINDOW, attend_back_shapes, kernel, present, settled, together
from .strips import fresh

ops = torch.ops.vicinal

SCHEMAS = {
    "attend_varlen": f"({ATTEND}, Tensor shapes, {WINDOW}, bool clip, float scale, bool gradients, {RUN}) "
    "-> (Tensor out, Tensor lse)",
    "attend_varlen_back": f"({ATTEND}, Tensor out, Tensor lse, Tensor? grad_out, Tensor? grad_lse, "
    f"Tensor shapes, {WINDOW}, bool clip, float scale, bool[] needs, {RUN}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
}
for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))


def ready_attend(tensors: tuple, rest: tuple) -> Ready:
    """What computes the operator `attend_varlen` for documents like these, where they lie as these do."""
    given, shapes, (*window, clip, scale, gradients, backend, tf32) = Operands(*tensors[:6]), tensors[6], rest
    batch, last = documents.batch(given.query, shapes, window, clip), (scale, gradients, backend, tf32)
    found, runs = _together(batch, given, window, gradients, (backend, tf32))
    if runs is None:
        return lambda *args: _attend_groups(batch, Operands(*args[:6]), last)
    run = runs.prepare(found, given, scale)
    return lambda *args: run(*args[:6])


def _attend_groups(batch: Batch, given: Operands, rest: tuple) -> tuple[Tensor, Tensor]:
    query, value = given.query, given.value
    rows = (*batch.outputs.extents, query.shape[-2])
    out = fresh.zeros((*rows, value.shape[-1]), query.dtype, query.device)
    lse = query.new_full(rows, -torch.inf, dtype=accumulating(query.dtype))
    for group in batch.groups:
        mine = batch.operands(given, group)
        found = ops.attend(*mine, *group.window, *rest)
        for x, part in zip((out, lse), found, strict=True):
            batch.outputs.put(x, group, part)
    return out, lse


def ready_attend_back(tensors: tuple, rest: tuple) -> Ready:
    """The same for `attend_varlen_back`; None, or something one-dimensional, for what needs no gradient."""
    given, shapes, (*window, clip, scale, needs, backend, tf32) = Operands(*tensors[:6]), tensors[10], rest
    batch, last = documents.batch(given.query, shapes, window, clip), (scale, tuple(needs), backend, tf32)
    found, runs = _together(batch, given, window, True, (backend, tf32))
    if runs is None:
        return lambda *args: _attend_back_groups(batch, Operands(*args[:6]), args[6:10], last)
    run = runs.prepare_back(found, settled(*tensors[:10]), scale, tuple(needs))
    return lambda *args: present(run(*settled(*args[:10])), Operands(*args[:6]), needs)


def _attend_back_groups(batch: Batch, given: Operands, saved: tuple, rest: tuple) -> tuple[Tensor, ...]:
    needs = rest[1]
    bias = given.bias
    if bias is not None:
        # Its gradient is summed over groups; in 16 bits every share of it would be rounded.
        given = given._replace(bias=bias.to(accumulating(bias.dtype)))
    # One-dimensional blanks stand for those that are not needed.
    grads = [
        fresh.zeros(x.shape, x.dtype, x.device) if need and x is not None else given.query.new_empty(0)
        for x, need in zip(given, needs, strict=True)
    ]
    for group in batch.groups:
        flow = (None if x is None else batch.outputs.some(x, group) for x in saved)
        mine = batch.operands(given, group)
        found = ops.attend_back(*mine, *flow, *group.window, *rest)
        for place, (x, part) in enumerate(zip(grads, found, strict=True)):
            if x.dim() > 1:
                _take(batch, group, place, x, part)
    if bias is not None:
        grads[3] = grads[3].to(bias.dtype)
    return tuple(grads)


def _together(batch: Batch, given: Operands, window, gradients: bool, run: tuple) -> tuple[Any, Any]:
    """The attention of all documents in one launch, and its backend; None where there is no such backend, or
    where documents of one shape make it a fixed-shape problem."""
    query, key, value, bias, extra_key, _ = given
    if len(batch.groups) < 2 or not query.shape[-2]:
        return None, None
    widths = (query.shape[-2], key.shape[-2], query.shape[-1], value.shape[-1])
    rest = (bias is not None, 0 if extra_key is None else extra_key.shape[1], gradients)
    return together(query, widths, batch.lengths, window, rest, run, batch.documents)


def _take(batch: Batch, group, place: int, x: Tensor, part: Tensor) -> None:
    """Write a group's gradient of the operand at `place`, or add it to that of the bias."""
    if place == 3:
        documents.central(x, group.window[0]).add_(part)
    elif place > 3:
        documents.put_members(x, group, part)
    else:
        batch.tokens.put(x, group, part, batch.steps if place == 0 else (1,))


def _attend_shapes(query, key, value, bias, extra_key, extra_value, shapes, *rest):
    steps = rest[4]
    if query.dim() > 3:
        frame = (-(-room // step) for room, step in zip(query.shape[1:-2], steps, strict=True))
        rows = (query.shape[0], *frame)
    elif all(step == 1 for step in steps):
        rows = query.shape[:1]
    else:
        rows = (torch.library.get_ctx().new_dynamic_size(),)
    out = query.new_empty((*rows, query.shape[-2], value.shape[-1]))
    return out, query.new_empty(out.shape[:-1], dtype=accumulating(query.dtype))


READY = {"attend_varlen": ready_attend, "attend_varlen_back": ready_attend_back}
_SHAPES = {"attend_varlen": _attend_shapes, "attend_varlen_back": attend_back_shapes}
for _name, _shapes in _SHAPES.items():
    LIBRARY.impl(_name, kernel(SCHEMAS[_name], READY[_name]), "CompositeExplicitAutograd")
    torch.library.register_fake(f"vicinal::{_name}", _shapes, lib=LIBRARY)


def _flops(given: Operands, shapes: Tensor, window, clip: bool, dim: int, value_dim: int) -> int:
    heads, extra = given.query.shape[-2], 0 if given.extra_key is None else given.extra_key.shape[1]
    total = 0
    for group in documents.batch(given.query, shapes, window, clip).groups:
        axes = arguments.axes(group.shape, group.window)
        total += Problem(axes, len(group.documents), heads, heads, dim, value_dim, extra=extra).flops
    return total


@register_flop_formula(torch.ops.vicinal.attend_varlen, get_raw=True)
def _attend_flops(*args, out_val=None, **_) -> int:
    given = Operands(*args[:6])
    return _flops(given, args[6], args[7:12], args[12], given.query.shape[-1], given.value.shape[-1])


@register_flop_formula(torch.ops.vicinal.attend_varlen_back, get_raw=True)
def _attend_back_flops(*args, out_val=None, **_) -> int:
    given = Operands(*args[:6])
    return _flops(
        given, args[10], args[11:16], args[16], 3 * given.query.shape[-1], 2 * given.value.shape[-1]
    )
