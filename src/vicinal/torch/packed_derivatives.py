"""Derivatives of the operators over documents: the first by an operator, higher ones group by group."""

from types import SimpleNamespace
from typing import Any

import torch

from . import autograd, documents
from .autograd import Formula, differentiate, fixed, keep, zeros
from .documents import Batch
from .known import call
from .packed import SCHEMAS

ops = torch.ops.vicinal


def _group(ctx: Any, batch: Batch, group: Any, operands: tuple, results: tuple, **rest: Any) -> Any:
    """The call of one group, as the formulas of the fixed-shape operators keep it."""
    mine = batch.operands(operands, group)
    flow = (batch.outputs.some(x, group) for x in results)
    return SimpleNamespace(
        saved_tensors=(*mine, *flow), window=group.window, scale=ctx.scale, run=ctx.run, **rest
    )


class AttendVarlen(Formula):
    tensors = 7

    def save(self, ctx, inputs, output):
        keep(ctx, *inputs[:6], *output, inputs[6])
        *window, ctx.clip, ctx.scale, _, backend, tf32 = inputs[7:]
        ctx.window, ctx.run = fixed(window, backend, tf32)

    def backward(self, ctx, grad_out, grad_lse):
        *saved, shapes = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:7]
        given = (*saved, grad_out, grad_lse, shapes)
        grads = call("attend_varlen_back", given, *ctx.window, ctx.clip, ctx.scale, needs, *ctx.run)
        return *[grad if need else None for grad, need in zip(grads, needs, strict=True)], None

    def jvp(self, ctx, *tangents):
        *operands, out, lse, shapes = ctx.saved_tensors
        batch = documents.batch(operands[0], shapes, ctx.window, ctx.clip)
        formula, found = autograd.FORMULAS["attend"], []
        for group in batch.groups:
            one = _group(ctx, batch, group, tuple(operands), (out, lse))
            found.append(formula.jvp(one, *batch.operands(tangents[:6], group)))
        return _results(batch, found, (out, lse))


class AttendVarlenBack(Formula):
    """`out` and `lse` count as functions of the operands, so their own gradients are left out."""

    tensors = 11

    def save(self, ctx, inputs, output):
        operands, results, grads = inputs[:6], inputs[6:8], inputs[8:10]
        keep(ctx, *operands, *map(zeros, grads, [x.detach() for x in results]), inputs[10])
        *window, ctx.clip, ctx.scale, ctx.needs, backend, tf32 = inputs[11:]
        ctx.window, ctx.run = fixed(window, backend, tf32)
        ctx.given = tuple(grad is not None for grad in grads)

    def backward(self, ctx, *cotangents):
        operands, flow, shapes = ctx.saved_tensors[:6], ctx.saved_tensors[6:8], ctx.saved_tensors[8]
        batch = documents.batch(operands[0], shapes, ctx.window, ctx.clip)
        cotangents = tuple(x if need else None for x, need in zip(cotangents, ctx.needs, strict=True))
        formula, to_operands, to_flow = autograd.FORMULAS["attend_back"], [], []
        rest = {"needs": ctx.needs, "given": (True, True), "needs_input_grad": (True,) * 11}
        for group in batch.groups:
            one = _group(ctx, batch, group, operands, flow, **rest)
            grads = formula.backward(one, *batch.operands(cotangents, group))
            to_operands.append(grads[:6])
            to_flow.append(grads[8:])
        to_flow = _results(batch, to_flow, flow)
        found = (*batch.gathered(to_operands, operands), None, None, *to_flow)
        given = (True,) * 8 + ctx.given
        wanted = zip(found, given, ctx.needs_input_grad[1:11], strict=True)
        return *[x if present and need else None for x, present, need in wanted], None

    def jvp(self, ctx, *tangents):
        operands, flow, shapes = ctx.saved_tensors[:6], ctx.saved_tensors[6:8], ctx.saved_tensors[8]
        batch = documents.batch(operands[0], shapes, ctx.window, ctx.clip)
        moves = list(map(zeros, tangents[8:10], flow))
        formula, found = autograd.FORMULAS["attend_back"], []
        for group in batch.groups:
            one = _group(ctx, batch, group, operands, flow, needs=ctx.needs)
            mine = batch.operands(tangents[:6], group)
            found.append(formula.jvp(one, *mine, None, None, *(batch.outputs.some(x, group) for x in moves)))
        wanted = tuple(x if need else None for x, need in zip(operands, ctx.needs, strict=True))
        moved = batch.gathered(found, wanted)
        return tuple(operands[0].new_empty(0) if x is None else x for x in moved)


def _results(batch: Batch, found: list, like: tuple) -> tuple:
    """Outputs and log-sum-exps of all groups together."""
    columns = list(zip(*found, strict=True)) or [()] * len(like)
    first = 1 if batch.outputs.frame is None else 1 + len(batch.outputs.frame)
    return tuple(
        batch.outputs.joined(batch.groups, column, x.new_zeros(x.shape[first:]))
        for column, x in zip(columns, like, strict=True)
    )


FORMULAS = {"attend_varlen": AttendVarlen(), "attend_varlen_back": AttendVarlenBack()}
assert FORMULAS.keys() == SCHEMAS.keys()
FUNCTIONS = {name: differentiate(name, formula) for name, formula in FORMULAS.items()}
