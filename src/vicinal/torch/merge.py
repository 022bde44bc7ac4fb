"""Attention over parts of the keys, put together."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from .. import arguments
from .functional import DTYPES


def merge_attentions(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The attention over all keys, from attentions of the same queries over disjoint sets of keys.

    Args:
        outputs: any number of `[batch, *tokens, heads, dim]`.
        lses: their natural log-sum-exps `[batch, *tokens, heads]`. A part that saw no key has `-inf` and
            counts for nothing, whatever its output holds.

    Returns:
        Output, in the outputs' dtype, and log-sum-exp of the whole, in the dtype of the parts'. Where no part
        saw a key they are 0 and `-inf`. Differentiable, any number of times, in outputs and log-sum-exps.

    Raises:
        TypeError, ValueError: the parts are none, or differ in number, shape, dtype or device.
    """
    arguments.listed("outputs", outputs)
    arguments.listed("lses", lses)
    outputs, lses = tuple(outputs), tuple(lses)
    for kind, parts in (("output", outputs), ("lse", lses)):
        for place, x in enumerate(parts):
            arguments.instance(f"{kind} {place}", x, Tensor, "a tensor")
            arguments.dtype(f"{kind} {place}", x.dtype, DTYPES)
    arguments.parts([tuple(x.shape) for x in outputs], [tuple(x.shape) for x in lses])
    for kind, parts in (("output", outputs), ("lse", lses)):
        arguments.same("dtype", {f"{kind} {place}": x.dtype for place, x in enumerate(parts)})
        arguments.same("device", {f"{kind} {place}": x.device for place, x in enumerate(parts)})
    stacked = torch.stack(lses)
    empty = stacked == -torch.inf
    none = empty.all(0)
    # Finite stand-ins where a part is empty keep NaN out of the gradients.
    top = stacked.detach().masked_fill(empty, torch.finfo(stacked.dtype).min).amax(0)
    powers = (stacked.masked_fill(empty, 0) - top).masked_fill(empty, -torch.inf).exp()
    total = powers.sum(0)
    weights = powers / total.masked_fill(none, 1)
    wide = torch.promote_types(outputs[0].dtype, lses[0].dtype)
    weighted = (
        weight.unsqueeze(-1) * part.to(wide).masked_fill(gone.unsqueeze(-1), 0)
        for weight, part, gone in zip(weights, outputs, empty, strict=True)
    )
    lse = (top.masked_fill(none, 0) + total.masked_fill(none, 1).log()).masked_fill(none, -torch.inf)
    return reduce(torch.add, weighted).to(outputs[0].dtype), lse
