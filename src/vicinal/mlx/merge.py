"""Attention over parts of the keys, put together."""

from collections.abc import Sequence
from functools import reduce

import mlx.core as mx

from .. import arguments
from .functional import DTYPES


def merge_attentions(outputs: Sequence[mx.array], lses: Sequence[mx.array]) -> tuple[mx.array, mx.array]:
    """The attention over all keys, from attentions of the same queries over disjoint sets of keys.

    Args:
        outputs: any number of `[batch, *tokens, heads, dim]`.
        lses: their natural log-sum-exps `[batch, *tokens, heads]`. A part that saw no key has `-inf` and
            counts for nothing, whatever its output holds.

    Returns:
        Output, in the outputs' dtype, and log-sum-exp of the whole, in the dtype of the parts'. Where no
        part saw a key they are 0 and `-inf`. Differentiable, any number of times, in outputs and
        log-sum-exps.

    Raises:
        TypeError, ValueError: the parts are none, or differ in number, shape or dtype.
    """
    arguments.listed("outputs", outputs)
    arguments.listed("lses", lses)
    outputs, lses = tuple(outputs), tuple(lses)
    for kind, parts in (("output", outputs), ("lse", lses)):
        for place, x in enumerate(parts):
            arguments.instance(f"{kind} {place}", x, mx.array, "an mlx.core.array")
            arguments.dtype(f"{kind} {place}", x.dtype, DTYPES)
    arguments.parts([tuple(x.shape) for x in outputs], [tuple(x.shape) for x in lses])
    for kind, parts in (("output", outputs), ("lse", lses)):
        arguments.same("dtype", {f"{kind} {place}": x.dtype for place, x in enumerate(parts)})
    stacked = mx.stack(list(lses))
    infinite = mx.array(-float("inf"), stacked.dtype)
    empty = stacked == infinite
    none = mx.all(empty, 0)
    # Finite stand-ins where a part is empty keep NaN out of the gradients.
    finite = mx.where(empty, mx.array(0, stacked.dtype), stacked)
    top = mx.stop_gradient(mx.where(empty, mx.finfo(stacked.dtype).min, stacked).max(0))
    powers = mx.exp(mx.where(empty, infinite, finite - top))
    total = mx.where(none, mx.array(1, stacked.dtype), powers.sum(0))
    weights = powers / total
    wide = outputs[0].astype(mx.float32).dtype if stacked.dtype == mx.float32 else stacked.dtype
    terms = [
        weight[..., None] * mx.where(gone[..., None], mx.array(0, wide), part.astype(wide))
        for weight, part, gone in zip(weights, outputs, empty, strict=True)
    ]
    lse = mx.where(none, infinite, mx.where(none, mx.array(0, stacked.dtype), top) + mx.log(total))
    return reduce(mx.add, terms).astype(outputs[0].dtype), lse
