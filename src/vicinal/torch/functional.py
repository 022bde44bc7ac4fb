"""The public functions: names, defaults, documentation. `arguments.py` checks, the operators work."""

from typing import Any

import torch
from torch import Tensor

from .. import arguments
from ..arguments import Flags, Sizes
from . import batching, composite, warm  # noqa: F401  (registers vmap rules)
from .ops import sampled
from .watching import autocast_dtype, is_recorded

ops = torch.ops.vicinal

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FLOAT8 = torch.float8_e4m3fn


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    output_stride: Sizes = 1,
    bias: Tensor | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Neighborhood attention over one to three axes: every query attends to the window of keys around it.

    A window never shrinks at a border, it shifts; a causal axis lets a query see only keys at or before
    itself. Several axes combine as a product. Any window argument is one value for all axes, or a tuple or
    list with one per axis.

    Args:
        query: `[batch, *spatial, heads, dim]`, 1 to 3 spatial axes; float64, float32, float16 or bfloat16.
            On Hopper GPUs query and key may be float8_e4m3fn beside a value in float16 or bfloat16, without
            gradients, bias, additional tokens and dilation; `scale` then includes what they were divided by.
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
        `[batch, *outputs, heads, value_dim]` in the value's dtype; with `return_lse`, a pair with the
        log-sum-exp `[batch, *outputs, heads]` in float32 (float64 for float64). Both carry gradients.

    Raises:
        TypeError, ValueError: an argument is not what is said above; raised before anything is computed.
        UnsupportedProblem: no backend, or not the one asked for, can run this here; the message says why.

    Source: Hassani et al., "Neighborhood Attention Transformer" (2023) and "Generalized Neighborhood
    Attention" (2025).
    """
    operands = (query, key, value, bias, additional_keys, additional_values)
    asked = (kernel_size, stride, dilation, is_causal, scale, output_stride, backend)
    out, lse = warm.call("attend", operands, asked, _checked_attend)
    return (out, lse) if return_lse else out


def _checked_attend(
    query, key, value, bias, extra_key, extra_value, *asked
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Tensors and other arguments of the operator `attend`."""
    *sizes, scale, output_stride, backend = asked
    check = _float8 if isinstance(query, Tensor) and query.dtype == FLOAT8 else checked
    operands = check(query, key, value, bias, extra_key, extra_value)
    arguments.backend(backend)
    window = _window(operands, (*sizes, output_stride))
    scale = arguments.default_scale(scale, operands[0].shape[-1])
    return operands, (*window, scale, is_recorded(operands), backend, None)


def _window(operands: tuple[Any, ...], sizes: tuple[Any, ...]) -> arguments.Window:
    """The window over operands, checked together."""
    query, key, value, bias, *extras = operands
    lengths = arguments.spatial("query", query.shape)
    extra_shapes = (None if x is None else x.shape for x in extras)
    arguments.attention(query.shape, key.shape, value.shape, *extra_shapes)
    arguments.same_spatial(lengths, key.shape)
    window = arguments.window(lengths, *sizes)
    if bias is not None:
        arguments.bias(bias.shape, query.shape[-2], window[0])
    return window


def qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    output_stride: Sizes = 1,
    bias: Tensor | None = None,
    additional_keys: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Scores of every query with its window's keys, before the softmax: the first split operation.

    `av(qk(...).softmax(-1), ...)` is `neighborhood_attention(...)`. Arguments are those of
    `neighborhood_attention`, and so is the default scale.

    Returns:
        `[batch, *outputs, heads, prod(kernel_size) + tokens]` in the query's dtype: the window's keys in
        row-major order, last axis fastest, `-inf` where causality hides a slot, then the additional tokens.

    Raises:
        TypeError, ValueError, UnsupportedProblem: as `neighborhood_attention`.
    """
    asked = (kernel_size, stride, dilation, is_causal, scale, output_stride, backend)
    if additional_keys is None:
        return warm.call("dot", (query, key, bias), asked, _checked_dot)
    (query, key, bias, extra), rest = _checked_dot(query, key, bias, *asked, extra=additional_keys)
    weights = warm.call("dot", (query, key, bias), asked, _checked_dot)
    return torch.cat([weights, composite.dot_extra(sampled(query, rest[4]) * rest[5], extra)], -1)


def _checked_dot(query, key, bias, *asked, extra=None) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Tensors and other arguments of the operator `dot`; additional keys, if there are any, last."""
    *sizes, scale, output_stride, backend = asked
    query, key, _, bias, extra, _ = checked(query, key, key, bias, extra, None)
    arguments.backend(backend)
    window = _window((query, key, key, bias, extra, extra), (*sizes, output_stride))
    scale = arguments.default_scale(scale, query.shape[-1])
    tensors = (query, key, bias) if extra is None else (query, key, bias, extra)
    return tensors, (*window, scale, -torch.inf, backend, None)


def av(
    attention_weights: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    *,
    output_stride: Sizes = 1,
    additional_values: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
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
    asked = (kernel_size, stride, dilation, is_causal, output_stride, backend)
    if additional_values is None:
        return warm.call("mix", (attention_weights, value), asked, _checked_mix)
    (weights, value, extra), _ = _checked_mix(attention_weights, value, *asked, extra=additional_values)
    slots = weights.shape[-1] - extra.shape[1]
    out = warm.call("mix", (weights[..., :slots], value), asked, _checked_mix)
    return out + composite.mix_extra(weights[..., slots:], extra)


def _checked_mix(weights, value, *asked, extra=None) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Tensors and other arguments of the operator `mix`; additional values, if there are any, last."""
    *sizes, backend = asked
    names = ("attention_weights", "value", "additional_values")
    weights, value, extra = _tensors(names, (weights, value, extra))
    arguments.backend(backend)
    lengths = arguments.spatial("value", value.shape)
    window = arguments.window(lengths, *sizes)
    outputs = [-(-length // step) for length, step in zip(lengths, window[4], strict=True)]
    tokens = 0
    if extra is not None:
        arguments.extra("additional_values", extra.shape, "value", value.shape)
        tokens = extra.shape[1]
    arguments.weights(weights.shape, outputs, value.shape, window[0], tokens)
    rest = (*window, backend, None)
    if extra is None:
        return (weights, value), rest
    return (weights, value, extra), rest


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    return_lse: bool = False,
) -> Any:
    """Dense attention of every query to every key, through PyTorch's fused kernels.

    Args:
        query: `[batch, queries, heads, dim]`; float64, float32, float16 or bfloat16.
        key: `[batch, keys, kv_heads, dim]`; `heads` is a multiple of `kv_heads`.
        value: `[batch, keys, kv_heads, value_dim]`.
        is_causal: whether query `i` sees only keys `j <= i`, counted from the first of each.
        scale: factor on the products; `dim ** -0.5` if None.
        return_lse: also return the natural log-sum-exp of the scaled scores.

    Returns:
        `[batch, queries, heads, value_dim]`; with `return_lse`, a pair with `[batch, queries, heads]` in
        float32 (float64 for float64). Both carry gradients.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """
    query, key, value, *_ = checked(query, key, value, None, None, None)
    arguments.dense(query.shape, key.shape)
    arguments.attention(query.shape, key.shape, value.shape)
    if not isinstance(is_causal, bool):
        raise TypeError(f"is_causal is {is_causal!r}; dense attention takes True or False")
    scale = arguments.default_scale(scale, query.shape[-1])
    rows, columns = query.shape[1], key.shape[1]
    if not is_causal or rows == columns:
        out, lse = ops.dense(query, key, value, is_causal, scale)
    elif rows < columns:
        out, lse = ops.dense(query, key[:, :rows], value[:, :rows], True, scale)
    else:
        # Queries past the last key see all keys.
        square = ops.dense(query[:, :columns], key, value, True, scale)
        rest = ops.dense(query[:, columns:], key, value, False, scale)
        out, lse = (torch.cat(both, 1) for both in zip(square, rest, strict=True))
    return (out, lse) if return_lse else out


def checked(query, key, value, bias, extra_key, extra_value) -> tuple[Any, ...]:
    """Operands that agree in dtype and device, cast where autocast says so."""
    names = ("query", "key", "value", "additional_keys", "additional_values")
    query, key, value, extra_key, extra_value = _tensors(names, (query, key, value, extra_key, extra_value))
    if bias is not None:
        _plain("bias", bias)
        if bias.dtype not in (query.dtype, torch.float32) and autocast_dtype(query.device.type) is not None:
            bias = bias.to(query.dtype)
        arguments.one_of("bias dtype", bias.dtype, (query.dtype, torch.float32))
        arguments.same("device", {"query": query.device, "bias": bias.device})
    return query, key, value, bias, extra_key, extra_value


def _float8(query, key, value, bias, extra_key, extra_value) -> tuple[Any, ...]:
    """Operands whose queries and keys are float8, checked."""
    for name, x in (("bias", bias), ("additional_keys", extra_key), ("additional_values", extra_value)):
        if x is not None:
            raise ValueError(f"{name} does not go with a float8 query; pass None, or the query in bfloat16")
    query, key = _tensors(("query", "key"), (query, key), (FLOAT8,))
    (value,) = _tensors(("value",), (value,), DTYPES[2:])
    arguments.same("device", {"query": query.device, "value": value.device})
    return query, key, value, None, None, None


def _plain(name: str, x: Any) -> None:
    """`x` is a tensor, neither nested nor sparse."""
    arguments.instance(name, x, Tensor, "a tensor")
    if x.is_nested or x.layout != torch.strided:
        kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        raise TypeError(f"{name} is a {kind} tensor; pass a dense one, such as {name}.to_dense()")


def _tensors(names: tuple[str, ...], tensors: tuple[Any, ...], dtypes=DTYPES) -> tuple[Any, ...]:
    """Tensors of one of `dtypes`, None among them, that an operator can take together."""
    given = [x for x in tensors if x is not None]
    for name, x in zip(names, tensors, strict=True):
        if x is None and name in arguments.OPTIONAL:
            continue
        _plain(name, x)
    device = given[0].device
    if any(x.device != device for x in given):
        arguments.same("device", {n: x.device for n, x in zip(names, tensors, strict=True) if x is not None})
    narrow = autocast_dtype(device.type)
    if narrow is not None:
        tensors = tuple(x.to(narrow) if x is not None and x.dtype in DTYPES[1:] else x for x in tensors)
        given = [x for x in tensors if x is not None]
    dtype = given[0].dtype
    arguments.dtype(names[0], dtype, dtypes)
    if any(x.dtype != dtype for x in given):
        arguments.same("dtype", {n: x.dtype for n, x in zip(names, tensors, strict=True) if x is not None})
    return tensors
