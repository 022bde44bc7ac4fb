"""Attention of documents of different shapes, padded or packed: names, defaults, documentation."""

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx

from .. import arguments, layout
from ..arguments import Flags, Sizes, Window
from ..layout import Shape
from . import documents
from .functional import arrays, checked_bias, settled
from .operands import Operands
from .ops import Call

Extents = mx.array | Sequence[int] | Sequence[Sequence[int]]


class VarlenLayout(layout.VarlenLayout):
    __doc__ = layout.VarlenLayout.__doc__

    def pack(self, documents: Sequence[mx.array]) -> mx.array:
        """`[total_tokens, ...]` of documents `[*shape, ...]`, in the order of the layout."""
        layout.packable(self, documents, mx.array, "an mlx.core.array")
        return mx.concatenate([x.flatten(0, self.rank - 1) for x in documents])


def neighborhood_attention_varlen(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    sizes: Extents,
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
    fit: str = "error",
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Neighborhood attention of a padded batch, in which every entry holds a document of its own size.

    A document lies in the first corner of its entry. The result is that of `neighborhood_attention` on each
    document alone; padding is never read, whatever it holds. Arguments that are not listed are those of
    `neighborhood_attention`.

    Args:
        query: `[batch, *spatial, heads, dim]`, 1 to 3 spatial axes.
        key: `[batch, *spatial, kv_heads, dim]`.
        value: `[batch, *spatial, kv_heads, value_dim]`.
        sizes: `[batch, spatial axes]`, or `[batch]` where there is one axis: the extents of every document, 0
            to those of the arrays. An int32 or int64 array, a list or a tuple. The numbers are read when the
            graph is built: an array is evaluated, and a function under `mx.compile` takes them from outside,
            as a list or a tuple.
        additional_keys: `[batch, tokens, kv_heads, dim]` for the queries of each document.
        additional_values: `[batch, tokens, kv_heads, value_dim]`.
        fit: what becomes of a document that is shorter than the window: "error", or "clip" to let it attend
            to its whole extent on that axis, as a window of `min(kernel_size, extent)`, which takes a
            dilation of 1.

    Returns:
        `[batch, *outputs, heads, value_dim]`, zero outside of the documents; with `return_lse`, a pair
        with the log-sum-exp `[batch, *outputs, heads]`, `-inf` outside of the documents, which is what
        `merge_attentions` takes for nothing seen. Gradients of padding are
        zero, and those that flow into it are ignored.

    Raises:
        TypeError, ValueError, UnsupportedProblem: as `neighborhood_attention`; a ValueError names the
            documents that do not fit.
    """
    operands = _checked(query, key, value, bias, additional_keys, additional_values)
    lengths = arguments.spatial("query", query.shape)
    extra_shapes = (None if x is None else x.shape for x in operands[4:])
    arguments.attention(query.shape, key.shape, value.shape, *extra_shapes)
    arguments.same_spatial(lengths, key.shape)
    window = arguments.window(None, kernel_size, stride, dilation, is_causal, output_stride, len(lengths))
    shapes = extents(sizes, query.shape[0], len(lengths))
    return _attend(operands, shapes, window, fit, scale, return_lse, backend)


def neighborhood_attention_packed(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    layout: VarlenLayout,
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
    fit: str = "error",
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Neighborhood attention of documents packed along one axis, without any padding.

    The result is that of `neighborhood_attention` on each document alone. Arguments that are not listed are
    those of `neighborhood_attention`, and `fit` is that of `neighborhood_attention_varlen`.

    Args:
        query: `[tokens, heads, dim]`, as `layout.pack(documents)` makes it.
        key: `[tokens, kv_heads, dim]`.
        value: `[tokens, kv_heads, value_dim]`.
        layout: the documents' shapes, empty ones among them.
        additional_keys: `[documents, tokens, kv_heads, dim]` for the queries of each document.
        additional_values: `[documents, tokens, kv_heads, value_dim]`.

    Returns:
        `[outputs, heads, value_dim]`, packed by `layout.sampled(output_stride)`; with `return_lse`, a pair
        with the log-sum-exp `[outputs, heads]`.

    Raises:
        TypeError, ValueError, UnsupportedProblem: as `neighborhood_attention_varlen`.
    """
    operands = _checked(query, key, value, bias, additional_keys, additional_values)
    arguments.instance("layout", layout, VarlenLayout, "a vicinal.mlx.VarlenLayout")
    arguments.packed(query.shape, key.shape, value.shape)
    # As a batch of documents, for the heads and the additional tokens.
    shapes = ((len(layout), *x.shape) for x in (query, key, value))
    extra_shapes = (None if x is None else x.shape for x in operands[4:])
    arguments.attention(*shapes, *extra_shapes)
    window = arguments.window(None, kernel_size, stride, dilation, is_causal, output_stride, layout.rank)
    return _attend(operands, layout.shapes, window, fit, scale, return_lse, backend)


def extents(sizes: Extents, batch: int, rank: int) -> tuple[Shape, ...]:
    """Shapes of the documents of a padded batch."""
    if isinstance(sizes, mx.array):
        arguments.one_of("dtype of sizes", sizes.dtype, (mx.int32, mx.int64))
        arguments.sizes(sizes.shape, batch, rank)
        sizes = cast("list[int]", sizes.tolist())
    arguments.instance("sizes", sizes, (list, tuple), "an array, a list or a tuple")
    found = VarlenLayout(sizes, rank)
    arguments.sizes((len(found), rank), batch, rank)
    return found.shapes


def _checked(query, key, value, bias, extra_key, extra_value) -> Operands:
    extras = {"additional_keys": extra_key, "additional_values": extra_value}
    arrays(query=query, key=key, value=value, **extras)
    return Operands(query, key, value, bias, extra_key, extra_value)


def _attend(
    operands: Operands,
    shapes: tuple[Shape, ...],
    window: Window,
    fit: str,
    scale: float | None,
    return_lse: bool,
    backend: str | None,
) -> Any:
    query = operands.query
    checked_bias(operands.bias, query, window[0])
    scale, clip = arguments.default_scale(scale, query.shape[-1]), arguments.fit(fit)
    batch = documents.batch(query, shapes, len(window[0]), window, clip)
    call = Call(window, scale, present=tuple(x is not None for x in operands), **settled(backend))
    out, lse = batch.attend(call, operands, return_lse)
    return (out, lse) if return_lse else out
