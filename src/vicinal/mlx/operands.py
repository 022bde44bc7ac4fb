"""The arrays of an attention."""

from typing import NamedTuple

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
    return x.astype(mx.float32)


def widened(operands: Operands) -> Operands:
    """All operands in float32."""
    return Operands(*(None if x is None else wide(x) for x in operands))
