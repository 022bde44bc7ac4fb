"""The arrays of an attention."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx


class Operands(NamedTuple):
    """Arrays of an attention, or their gradients.

    Shapes: query `[batch, *outputs, heads, dim]` (already sampled at `output_stride`), key `[batch,
    *lengths, kv_heads, dim]`, value `[batch, *lengths, kv_heads, value_dim]`, bias `[heads, *(2 * size -
    1)]` in the query's dtype or float32, extra_key and extra_value `[batch, extra, kv_heads, dim or
    value_dim]`.
    """

    query: mx.array
    key: mx.array
    value: mx.array
    bias: mx.array | None = None
    extra_key: mx.array | None = None
    extra_value: mx.array | None = None


def wide(x: mx.array) -> mx.array:
    """`x` in float32, which accumulates."""
    return x if x.dtype == mx.float32 else x.astype(mx.float32)


def mapped(function: Callable[..., Any], *operands: Operands) -> Operands:
    """`function` of what stands at each place of the operands; None where one of them has none."""
    found: list[Any] = [
        None if any(x is None for x in given) else function(*given) for given in zip(*operands, strict=True)
    ]
    return Operands(*found)


def widened(operands: Operands) -> Operands:
    """All operands in float32."""
    return mapped(wide, operands)


def narrowed(grads: Operands, like: Operands) -> Operands:
    """Gradients in the dtypes of their operands."""
    return mapped(lambda grad, x: grad.astype(x.dtype), grads, like)
