"""`natten.varlen`: neighborhood attention of packed inputs, each with its spatial shape and window."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

import vicinal.torch as na

from . import fused
from .packed import check_pack, joined
from .split import Flags, Sizes, given

Windows = Sequence[Sizes] | None


def configure_varlen(
    token_layout_list: Sequence[tuple[int, ...]],
    head_dim: int,
    device: Any,
    dtype: torch.dtype,
    requires_grad: bool,
    head_dim_v: int | None = None,
    kernel_size: Sizes = 2,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags | None = False,
    kernel_size_list: Windows = None,
    stride_list: Windows = None,
    dilation_list: Windows = None,
    backend: str | None = None,
    q_tile_shape=None,
    kv_tile_shape=None,
    backward_q_tile_shape=None,
    backward_kv_tile_shape=None,
    run_persistent_kernel: bool = True,
    kernel_schedule=None,
) -> dict:
    """Layouts and windows of packed inputs, for `neighborhood_attention_varlen`.

    A list with one window per input goes before a window for all. Other arguments change no number.
    """
    tiles = (q_tile_shape, kv_tile_shape, backward_q_tile_shape, backward_kv_tile_shape)
    flags = (False, run_persistent_kernel, False)
    rank, count = len(token_layout_list[0]), len(token_layout_list)
    fused.check(rank, backend, kernel_schedule, tiles, None, flags)
    options = ((kernel_size, kernel_size_list), (stride, stride_list), (dilation, dilation_list))
    windows = [[one] * count if many is None else many for one, many in options]
    inputs = zip(token_layout_list, zip(*windows, strict=True), strict=True)
    # Neighbors in the pack with the same window are one call.
    runs = [
        (na.VarlenLayout([shape for shape, _ in run], rank), window)
        for window, run in groupby(inputs, key=lambda entry: entry[1])
    ]
    tokens = [layout.total_tokens for layout, _ in runs]
    return {"runs": runs, "tokens": tokens, "is_causal": given(is_causal, False)}


def neighborhood_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    metadata: dict | None = None,
    token_layout_list: Sequence[tuple[int, ...]] | None = None,
    kernel_size: Sizes = 2,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags | None = False,
    kernel_size_list: Windows = None,
    stride_list: Windows = None,
    dilation_list: Windows = None,
    scale: float | None = None,
    backend: str | None = None,
    q_tile_shape=None,
    kv_tile_shape=None,
    backward_q_tile_shape=None,
    backward_kv_tile_shape=None,
    run_persistent_kernel: bool = True,
    kernel_schedule=None,
    return_lse: bool = False,
) -> Any:
    """Neighborhood attention of inputs of different spatial shapes, packed as `[1, tokens, heads, dim]`.

    Either `metadata` of `configure_varlen`, or its `token_layout_list` and windows again.
    """
    if metadata is None:
        if token_layout_list is None:
            raise ValueError("metadata and token_layout_list are None; pass one of them")
        windows = (kernel_size, stride, dilation, is_causal, kernel_size_list, stride_list, dilation_list)
        tiles = (q_tile_shape, kv_tile_shape, backward_q_tile_shape, backward_kv_tile_shape)
        kind = (query.device, query.dtype, query.requires_grad, value.shape[-1])
        knobs = (backend, *tiles, run_persistent_kernel, kernel_schedule)
        metadata = configure_varlen(token_layout_list, query.shape[-1], *kind, *windows, *knobs)
    counts = metadata["tokens"]
    check_pack(query, [0, sum(counts)], "token_layout_list")
    slices = zip(*(x[0].split(counts) for x in (query, key, value)), strict=True)
    parts = []
    for (q, k, v), (layout, (size, step, apart)) in zip(slices, metadata["runs"], strict=True):
        window = {"kernel_size": size, "stride": step, "dilation": apart, "is_causal": metadata["is_causal"]}
        out, lse = na.neighborhood_attention_packed(q, k, v, layout, **window, scale=scale, return_lse=True)
        parts.append((out.unsqueeze(0), lse.unsqueeze(0)))
    return joined(parts, return_lse)
