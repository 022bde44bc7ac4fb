"""Attention of documents of different shapes, padded or packed: names, defaults, documentation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import arguments, layout
from ..arguments import Flags, Sizes
from . import warm
from .functional import checked
from .watching import is_recorded

Extents = Tensor | Sequence[int] | Sequence[Sequence[int]]


class VarlenLayout(layout.VarlenLayout):
    __doc__ = layout.VarlenLayout.__doc__

    def __init__(self, shapes: Sequence[int | Sequence[int]], rank: int | None = None) -> None:
        super().__init__(shapes, rank)
        # `[documents, rank]`, all that a call reads of a layout: a graph does not depend on the numbers.
        with torch.inference_mode(False):
            self.table = torch.tensor(self.shapes, dtype=torch.int64, device="cpu").view(len(self), self.rank)

    def pack(self, documents: Sequence[Tensor]) -> Tensor:
        """`[total_tokens, ...]` of documents `[*shape, ...]`, in the order of the layout."""
        layout.packable(self, documents, Tensor, "a tensor")
        return torch.cat([x.flatten(0, self.rank - 1) for x in documents])


def neighborhood_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sizes: Extents,
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
            to those of the tensors. An int32 or int64 tensor, a list or a tuple. The numbers are read on the
            host: a tensor on the CPU spares a wait for the device, and under `torch.compile` any tensor
            spares a compilation per batch.
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
    arguments.instance("query", query, Tensor, "a tensor")
    shapes = table(sizes, query.dim() - 3)
    operands = (query, key, value, bias, additional_keys, additional_values, shapes)
    asked = (kernel_size, stride, dilation, is_causal, scale, output_stride, fit, backend)
    out, lse = warm.call("attend_varlen", operands, asked, _checked_padded)
    return (out, lse) if return_lse else out


def _checked_padded(query, key, value, bias, extra_key, extra_value, shapes, *asked) -> tuple[tuple, tuple]:
    """Tensors and other arguments of the operator."""
    operands = checked(query, key, value, bias, extra_key, extra_value)
    query, key, value, bias, extra_key, extra_value = operands
    lengths = arguments.spatial("query", query.shape)
    extra_shapes = (None if x is None else x.shape for x in (extra_key, extra_value))
    arguments.attention(query.shape, key.shape, value.shape, *extra_shapes)
    arguments.same_spatial(lengths, key.shape)
    arguments.sizes(shapes.shape, query.shape[0], len(lengths))
    return (*operands, shapes), _rest(operands, len(lengths), asked)


def neighborhood_attention_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: VarlenLayout,
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
        layout: the documents' shapes, empty ones among them. Under `torch.compile` one graph serves all
            layouts of a rank, if they are arguments of what is compiled.
        additional_keys: `[documents, tokens, kv_heads, dim]` for the queries of each document.
        additional_values: `[documents, tokens, kv_heads, value_dim]`.

    Returns:
        `[outputs, heads, value_dim]`, packed by `layout.sampled(output_stride)`; with `return_lse`, a pair
        with the log-sum-exp `[outputs, heads]`.

    Raises:
        TypeError, ValueError, UnsupportedProblem: as `neighborhood_attention_varlen`.
    """
    arguments.instance("layout", layout, VarlenLayout, "a vicinal.torch.VarlenLayout")
    operands = (query, key, value, bias, additional_keys, additional_values, layout.table)
    asked = (kernel_size, stride, dilation, is_causal, scale, output_stride, fit, backend)
    out, lse = warm.call("attend_varlen", operands, asked, _checked_packed)
    return (out, lse) if return_lse else out


def _checked_packed(query, key, value, bias, extra_key, extra_value, shapes, *asked) -> tuple[tuple, tuple]:
    """Tensors and other arguments of the operator."""
    operands = checked(query, key, value, bias, extra_key, extra_value)
    query, key, value, bias, extra_key, extra_value = operands
    arguments.packed(query.shape, key.shape, value.shape)
    documents, rank = shapes.shape
    # As a batch of documents, for the heads and the additional tokens.
    batches = ((documents, *x.shape) for x in (query, key, value))
    extra_shapes = (None if x is None else x.shape for x in (extra_key, extra_value))
    arguments.attention(*batches, *extra_shapes)
    return (*operands, shapes), _rest(operands, rank, asked)


def _rest(operands: tuple[Any, ...], rank: int, asked: tuple) -> tuple:
    """Arguments of the operator besides tensors."""
    *sizes, scale, output_stride, fit, backend = asked
    kernel_size, stride, dilation, is_causal = sizes
    window = arguments.window(None, kernel_size, stride, dilation, is_causal, output_stride, rank)
    query, bias = operands[0], operands[3]
    arguments.backend(backend)
    if bias is not None:
        arguments.bias(bias.shape, query.shape[-2], window[0])
    scale, clip = arguments.default_scale(scale, query.shape[-1]), arguments.fit(fit)
    return (*window, clip, scale, is_recorded(operands), backend, None)


def table(sizes: Extents, rank: int) -> Tensor:
    """`[documents, axes]` as the operators take them: int64, on the CPU; no documents have `rank` axes."""
    if not isinstance(sizes, Tensor):
        arguments.instance("sizes", sizes, (list, tuple), "a tensor, a list or a tuple")
        return VarlenLayout(sizes, None if sizes else rank).table
    arguments.one_of("dtype of sizes", sizes.dtype, (torch.int32, torch.int64))
    sizes = sizes.to("cpu", torch.int64)
    return sizes.unsqueeze(1) if sizes.dim() == 1 else sizes


def inside(shapes: Tensor, frame: Sequence[int], output_stride: Sequence[int], device: Any) -> Tensor:
    """`[batch, *outputs]` whether an output of a padded batch is one of a document of `shapes`."""
    shapes, rank = shapes.to(device), len(frame)
    mask = torch.ones((), dtype=torch.bool, device=device)
    for axis, (room, step) in enumerate(zip(frame, output_stride, strict=True)):
        along = torch.arange(0, room, step, device=device) < shapes[:, axis, None]
        mask = mask & along.view(len(shapes), *(-1 if other == axis else 1 for other in range(rank)))
    return mask
