"""Windows that cover every axis: dense attention by PyTorch's fused kernels."""

import torch
from torch import Tensor

from ...problem import ONE_DTYPE, SHAPE_BY_SHAPE, Problem
from .. import dense
from .base import Backend, Grads, Needs, Operands


class Full(Backend):
    """Runs problems whose windows hold all keys. It has no walks, and refuses them."""

    name = "full"

    def refusal(self, problem: Problem) -> str | None:
        if problem.documents is not None:
            return SHAPE_BY_SHAPE
        if problem.key_dtype is not None:
            return ONE_DTYPE
        if not problem.covers:
            return "the window does not cover every axis"
        if problem.operation != "attend":
            return "PyTorch's dense attention keeps no weights"
        if problem.bias:
            return "PyTorch's dense attention has no relative position bias"
        return dense.refusal(problem.device, problem.dtype, max(problem.dim, problem.value_dim))

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[Tensor, Tensor]:
        query, key, value = _tokens(operands)
        out, lse = dense.attend(query, key, value, False, scale)
        return out.unflatten(1, problem.outputs), lse.unflatten(1, problem.outputs)

    def attend_back(
        self,
        problem: Problem,
        operands: Operands,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor | None,
        grad_lse: Tensor | None,
        scale: float,
        needs: Needs,
    ) -> Grads:
        rank = problem.rank
        grad_out = None if grad_out is None else grad_out.flatten(1, rank)
        grad_lse = None if grad_lse is None else grad_lse.flatten(1, rank)
        out, lse = out.flatten(1, rank), lse.flatten(1, rank)
        query, key, value = _tokens(operands)
        dq, dk, dv = dense.attend_back(query, key, value, out, lse, grad_out, grad_lse, False, scale)
        tokens = dk.shape[1] - problem.extra
        grads = Grads(
            dq.unflatten(1, problem.outputs),
            dk[:, :tokens].unflatten(1, problem.lengths),
            dv[:, :tokens].unflatten(1, problem.lengths),
            None,
            dk[:, tokens:].clone() if problem.extra else None,
            dv[:, tokens:].clone() if problem.extra else None,
        )
        return Grads(
            *(
                x.contiguous() if need and x is not None else None
                for x, need in zip(grads, needs, strict=True)
            )
        )


def _tokens(operands: Operands) -> list[Tensor]:
    """Query, key and value as `[batch, tokens, heads, dim]`, additional tokens at the end."""
    query, key, value, _, *extras = operands
    flat = (x.flatten(1, -3) for x in (query, key, value))
    return [
        x if extra is None else torch.cat([x, extra], 1)
        for x, extra in zip(flat, (None, *extras), strict=True)
    ]


FULL = Full()
