"""Tiles on overlapping strips, in plain PyTorch operations: fast on a CPU, right on any device."""

from torch import Tensor

from ...problem import ONE_DTYPE, SHAPE_BY_SHAPE, Problem
from .base import Backend, Grads, Needs, Operands, Ready


class Blocked(Backend):
    """Memory grows with tokens alone. A non-finite token reaches at most the tiles that read it."""

    name = "blocked"

    def refusal(self, problem: Problem) -> str | None:
        if problem.key_dtype is not None:
            return ONE_DTYPE
        # Elsewhere other backends take documents of one shape faster than this one takes all.
        return SHAPE_BY_SHAPE if problem.documents is not None and problem.device != "cpu" else None

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[Tensor, Tensor]:
        from ..strips import documents, forward

        run = forward if problem.documents is None else documents
        return run.attend(problem, operands, scale)

    def prepare(self, problem: Problem, operands: Operands, scale: float) -> Ready:
        from ..strips import forward

        if problem.documents is not None:
            return super().prepare(problem, operands, scale)
        return forward.prepare(problem, operands, scale)

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
        from ..strips import backward, documents

        run = backward if problem.documents is None else documents
        return run.attend_back(problem, operands, out, lse, grad_out, grad_lse, scale, needs)

    def dot(
        self, problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float
    ) -> Tensor:
        from ..strips import walks

        return walks.dot(problem, x, y, bias, scale, fill)

    def mix(self, problem: Problem, weights: Tensor, y: Tensor) -> Tensor:
        from ..strips import walks

        return walks.mix(problem, weights, y)

    def mix_back(self, problem: Problem, weights: Tensor, x: Tensor) -> Tensor:
        from ..strips import walks

        return walks.mix_back(problem, weights, x)


BLOCKED = Blocked()
