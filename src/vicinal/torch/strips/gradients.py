"""Gradients of one call while its passes add to them."""

from torch import Tensor

from ..backends.base import Grads, Needs, Operands
from .call import accumulating
from .plan import Batch, Part
from .residues import columns_view, rows_view
from .scores import Additive, Tally


class Gradients:
    """Only what is needed exists. Keys and values are summed in the accumulating dtype, one batch at a
    time."""

    def __init__(self, operands: Operands, needs: Needs) -> None:
        self.operands, self.dtype = operands, accumulating(operands.query.dtype)
        wanted = [x if need else None for x, need in zip(operands, needs, strict=True)]
        self.query, self.key, self.value = (None if x is None else x.new_zeros(x.shape) for x in wanted[:3])
        self.bias, self.extra_key, self.extra_value = (
            None if x is None else x.new_zeros(x.shape, dtype=self.dtype) for x in wanted[3:]
        )
        self.tally: Tally | None = None

    @property
    def slopes(self) -> bool:
        """Whether the gradient of the scores is wanted, and not only the weights."""
        return any(x is not None for x in (self.query, self.key, self.bias, self.extra_key))

    def enter(self, part: Part) -> None:
        self.part = part
        self.rows = None if self.query is None else rows_view(self.query, part.residues, part.kv_heads)
        self.views = [None if x is None else columns_view(x, part.residues) for x in (self.key, self.value)]

    def columns(self, batch: Batch) -> list[Tensor | None]:
        """Where the gradients of keys and values are summed."""
        found = [None if x is None else x[batch] for x in self.views]
        return [
            x if x is None or x.dtype == self.dtype else x.new_zeros(x.shape, dtype=self.dtype) for x in found
        ]

    def leave(self, batch: Batch, columns: list[Tensor | None]) -> None:
        """Round the sums of a batch to the dtype of the gradients."""
        for x, sums in zip(self.views, columns, strict=True):
            if x is not None and sums is not None and x.dtype != self.dtype:
                x[batch].copy_(sums)

    def count(self, mask: Additive, slopes: Tensor, start: int) -> None:
        """Count gradients of scores towards the bias."""
        if self.bias is None:
            return
        if self.tally is None or self.tally.additive is not mask:
            self.finish()
            self.tally = Tally(mask, slopes)
        self.tally.add(slopes, start)

    def finish(self) -> None:
        """Add what was counted to the gradient of the bias."""
        if self.tally is not None and self.bias is not None:
            heads, share = self.tally.additive.heads, self.part.share
            self.bias[heads.start * share : heads.stop * share] += self.tally.result()
        self.tally = None

    def result(self) -> Grads:
        found = (self.query, self.key, self.value, self.bias, self.extra_key, self.extra_value)
        return Grads(*(_like(x, operand) for x, operand in zip(found, self.operands, strict=True)))


def _like(x: Tensor | None, operand: Tensor | None) -> Tensor | None:
    return x if x is None or operand is None else x.to(operand.dtype)
