"""The public functions: names, defaults, documentation. `arguments.py` checks, the operators work."""

from functools import lru_cache
from typing import Any

import mlx.core as mx

from .. import arguments, settings
from ..arguments import Flags, Sizes
from . import composite, dense, documents, ops
from .operands import Operands, wide
from .ops import Call

# Without float64: MLX rounds functions of it to float32, softmax among them.
DTYPES = (mx.float32, mx.float16, mx.bfloat16)


def neighborhood_attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    output_stride: Sizes = 1,
    bias: mx.array | None = None,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Neighborhood attention over one to three axes: every query attends to the window of keys around it.

    A window never shrinks at a border, it shifts; a causal axis lets a query see only keys at or before
    itself. Several axes combine as a product. Any window argument is one value for all axes, or a tuple or
    list with one per axis.

    Args:
        query: `[batch, *spatial, heads, dim]`, 1 to 3 spatial axes; float32, float16 or bfloat16.
        key: `[batch, *spatial, kv_heads, dim]`. `heads` is a multiple of `kv_heads`: query head `h` uses
            key/value head `h // (heads // kv_heads)`.
        value: `[batch, *spatial, kv_heads, value_dim]`.
        kernel_size: keys of a window per axis, at least 1; `kernel_size * dilation` fits the axis.
        stride: neighboring queries that share one window, at most `kernel_size`; the output keeps its shape.
        dilation: distance between the keys of a window.
        is_causal: per axis, whether keys after the query are hidden.
        scale: factor on the products of queries and keys; `dim ** -0.5` if None.
        output_stride: distance between the queries that are computed, from 0; the output has
            `ceil(length / output_stride)` of them.
        bias: `[heads, *(2 * kernel_size - 1)]` relative position bias in the query's dtype or float32, added
            to the scaled scores; the entry on an axis is `(key - query) / dilation + kernel_size - 1`.
        additional_keys: `[batch, tokens, kv_heads, dim]` keys all queries see besides their windows, in one
            softmax.
        additional_values: `[batch, tokens, kv_heads, value_dim]`.
        return_lse: also return the natural log-sum-exp of the scaled scores.
        backend: name of the backend to use; None takes the first that does not refuse.

    Returns:
        `[batch, *outputs, heads, value_dim]` in the query's dtype; with `return_lse`, a pair with the
        log-sum-exp `[batch, *outputs, heads]` in float32. Both carry gradients.

    Raises:
        TypeError, ValueError: an argument is not what is said above; raised before anything is computed.
        UnsupportedProblem: no backend, or not the one asked for, can run this here; the message says why.

    Source: Hassani et al., "Neighborhood Attention Transformer" (2023) and "Generalized Neighborhood
    Attention" (2025).
    """
    extras = {"additional_keys": additional_keys, "additional_values": additional_values}
    arrays(query=query, key=key, value=value, **extras)
    lengths = arguments.spatial("query", query.shape)
    extra_shapes = [None if x is None else x.shape for x in extras.values()]
    arguments.attention(query.shape, key.shape, value.shape, *extra_shapes)
    arguments.same_spatial(lengths, key.shape)
    window = _window(lengths, kernel_size, stride, dilation, is_causal, output_stride)
    checked_bias(bias, query, window[0])
    scale = arguments.default_scale(scale, query.shape[-1])
    given = Operands(
        documents.sampled(query, window[4]), key, value, bias, additional_keys, additional_values
    )
    call = Call(window, scale, present=tuple(x is not None for x in given), **settled(backend))
    out, lse = ops.attend(call, given, return_lse)
    return (out, lse) if return_lse else out


def qk(
    query: mx.array,
    key: mx.array,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    output_stride: Sizes = 1,
    bias: mx.array | None = None,
    additional_keys: mx.array | None = None,
    backend: str | None = None,
) -> mx.array:
    """Scores of every query with its window's keys, before the softmax: the first split operation.

    `av(mx.softmax(qk(...), -1), ...)` is `neighborhood_attention(...)`. Arguments are those of
    `neighborhood_attention`, and so is the default scale.

    Returns:
        `[batch, *outputs, heads, prod(kernel_size) + tokens]` in the query's dtype: the window's keys in
        row-major order, last axis fastest, `-inf` where causality hides a slot, then the additional tokens.

    Raises:
        TypeError, ValueError, UnsupportedProblem: as `neighborhood_attention`.
    """
    arrays(query=query, key=key, additional_keys=additional_keys)
    lengths = arguments.spatial("query", query.shape)
    extra_shape = None if additional_keys is None else additional_keys.shape
    arguments.attention(query.shape, key.shape, key.shape, extra_shape, extra_shape)
    arguments.same_spatial(lengths, key.shape)
    window = _window(lengths, kernel_size, stride, dilation, is_causal, output_stride)
    checked_bias(bias, query, window[0])
    scale = arguments.default_scale(scale, query.shape[-1])
    call = Call(window, scale, fill=-float("inf"), **settled(backend))
    rows = documents.sampled(query, window[4])
    if bias is None:
        weights = ops.dot(call, rows, key)
    else:
        # Scores and bias are rounded once, together.
        weights = ops.dot(call, wide(rows), wide(key))
        weights = (weights + ops.spread(call, bias.astype(weights.dtype), lengths)).astype(query.dtype)
    if additional_keys is None:
        return weights
    extra = composite.dot_extra(wide(rows) * scale, wide(additional_keys))
    return mx.concatenate([weights, extra.astype(query.dtype)], -1)


def av(
    attention_weights: mx.array,
    value: mx.array,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    *,
    output_stride: Sizes = 1,
    additional_values: mx.array | None = None,
    backend: str | None = None,
) -> mx.array:
    """Values of every window, summed with given weights: the second split operation.

    Args:
        attention_weights: `[batch, *outputs, heads, prod(kernel_size) + tokens]`, slots as `qk` returns them.
            Weights of slots that causality hides are ignored.
        value: `[batch, *spatial, kv_heads, value_dim]`.
        additional_values: `[batch, tokens, kv_heads, value_dim]` for the trailing weights.

    The other arguments are those of `neighborhood_attention`.

    Returns:
        `[batch, *outputs, heads, value_dim]` in the value's dtype.

    Raises:
        TypeError, ValueError, UnsupportedProblem: as `neighborhood_attention`.
    """
    arrays(attention_weights=attention_weights, value=value, additional_values=additional_values)
    lengths = arguments.spatial("value", value.shape)
    window = _window(lengths, kernel_size, stride, dilation, is_causal, output_stride)
    outputs = [-(-length // step) for length, step in zip(lengths, window[4], strict=True)]
    tokens = 0
    if additional_values is not None:
        arguments.extra("additional_values", additional_values.shape, "value", value.shape)
        tokens = additional_values.shape[1]
    arguments.weights(attention_weights.shape, outputs, value.shape, window[0], tokens)
    call = Call(window, **settled(backend))
    if additional_values is None:
        return ops.mix(call, attention_weights, value)
    slots = attention_weights.shape[-1] - tokens
    weights, values = wide(attention_weights), wide(value)
    out = ops.mix(call, weights[..., :slots], values)
    extra = composite.mix_extra(weights[..., slots:], wide(additional_values))
    return (out + extra).astype(value.dtype)


def attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    return_lse: bool = False,
) -> Any:
    """Dense attention of every query to every key, through MLX's fused kernels.

    Args:
        query: `[batch, queries, heads, dim]`; float32, float16 or bfloat16.
        key: `[batch, keys, kv_heads, dim]`; `heads` is a multiple of `kv_heads`.
        value: `[batch, keys, kv_heads, value_dim]`.
        is_causal: whether query `i` sees only keys `j <= i`, counted from the first of each.
        scale: factor on the products; `dim ** -0.5` if None.
        return_lse: also return the natural log-sum-exp of the scaled scores.

    Returns:
        `[batch, queries, heads, value_dim]`; with `return_lse`, a pair with `[batch, queries, heads]` in
        float32. Both carry gradients.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """
    arrays(query=query, key=key, value=value)
    arguments.dense(query.shape, key.shape)
    arguments.attention(query.shape, key.shape, value.shape)
    if not isinstance(is_causal, bool):
        raise TypeError(f"is_causal is {is_causal!r}; dense attention takes True or False")
    scale = arguments.default_scale(scale, query.shape[-1])
    rows, columns = query.shape[1], key.shape[1]
    if is_causal and 0 < rows < columns:
        key, value = key[:, :rows], value[:, :rows]
    parts = [(query, is_causal)]
    if is_causal and rows > columns:
        # Queries past the last key see all keys.
        parts = [(query[:, :columns], True), (query[:, columns:], False)]
    found = [dense.attend(part, key, value, causal, scale, return_lse) for part, causal in parts]
    out = mx.concatenate([out for out, _ in found], 1)
    return (out, mx.concatenate([lse for _, lse in found if lse is not None], 1)) if return_lse else out


def arrays(**operands: Any) -> None:
    """Operands are arrays of one dtype that attention is defined for."""
    for name, x in operands.items():
        if x is not None or name not in arguments.OPTIONAL:
            arguments.instance(name, x, mx.array, "an mlx.core.array")
    dtypes = {name: x.dtype for name, x in operands.items() if x is not None}
    arguments.same("dtype", dtypes)
    arguments.dtype(*next(iter(dtypes.items())), DTYPES)


_checked_once = lru_cache(4096, typed=True)(arguments.window)


def _window(lengths: tuple[int, ...], *given: Any) -> arguments.Window:
    """`arguments.window`, which takes as long as a few operations, remembered where that is safe."""
    # In a tuple, True and 1 would be the same key.
    if all(type(x) in (int, bool) for x in given):
        return _checked_once(lengths, *given)
    return arguments.window(lengths, *given)


def checked_bias(bias: mx.array | None, query: mx.array, sizes: tuple[int, ...]) -> None:
    if bias is None:
        return
    arguments.instance("bias", bias, mx.array, "an mlx.core.array")
    arguments.one_of("bias dtype", bias.dtype, (query.dtype, mx.float32))
    arguments.bias(bias.shape, query.shape[-2], sizes)


def settled(backend: str | None) -> dict[str, Any]:
    """What arguments and settings choose here, fixed for the backward pass too."""
    arguments.backend(backend)
    current = settings.current()
    return {"backend": current.backend if backend is None else backend, "tf32": current.tf32}
