"""`natten.varlen`: neighborhood attention of packed inputs, each with its spatial shape and window."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

import vicinal.torch as na

from . import fused
from .packed import check_pack, joined


def configure_varlen(
    token_layout_list: Sequence[tuple[int, ...]],
    head_dim: int,
    device: Any,
    dtype: torch.dtype,
    requires_grad: bool,
    head_dim_v: int | None = None,
    kernel_size=2,
    stride=1,
    dilation=1,
    is_causal=False,
    kernel_size_list: Sequence | None = None,
    stride_list: Sequence | None = None,
    dilation_list: Sequence | None = None,
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
    fused.check(len(token_layout_list[0]), backend, kernel_schedule, tiles, None, flags)
    windows = {
        "kernel_size": (kernel_size, kernel_size_list),
        "stride": (stride, stride_list),
        "dilation": (dilation, dilation_list),
    }
    count = len(token_layout_list)
    per_input = {name: [one] * count if many is None else list(many) for name, (one, many) in windows.items()}
    return {"layouts": list(token_layout_list), "is_causal": [is_causal] * count, **per_input}


def neighborhood_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    metadata: dict | None = None,
    token_layout_list: Sequence[tuple[int, ...]] | None = None,
    kernel_size=2,
    stride=1,
    dilation=1,
    is_causal=False,
    kernel_size_list: Sequence | None = None,
    stride_list: Sequence | None = None,
    dilation_list: Sequence | None = None,
    scale: float | None = None,
    backend: str | None = None,
    q_tile_shape=None,
    kv_tile_shape=None,
    backward_q_tile_shape=None,
    backward_kv_tile_shape=None,
    run_persistent_kernel: bool = True,
    kernel_schedule=None,
    return_lse: bool = False,
):
    """Neighborhood attention of inputs of different spatial shapes, packed as `[1, tokens, heads, dim]`.

    Either `metadata` of `configure_varlen`, or its `token_layout_list` and windows again.
    """
    if metadata is None:
        if token_layout_list is None:
            raise ValueError("metadata and token_layout_list are None; pass one of them")
        windows = (kernel_size, stride, dilation, is_causal, kernel_size_list, stride_list, dilation_list)
        tiles = (q_tile_shape, kv_tile_shape, backward_q_tile_shape, backward_kv_tile_shape)
        metadata = configure_varlen(
            token_layout_list,
            query.shape[-1],
            query.device,
            query.dtype,
            query.requires_grad,
            value.shape[-1],
            *windows,
            backend,
            *tiles,
            run_persistent_kernel,
            kernel_schedule,
        )
    layouts = metadata["layouts"]
    offsets = [0, *accumulate(map(prod, layouts))]
    check_pack(query, offsets, "token_layout_list")
    parts = []
    for place, ((a, b), layout) in enumerate(zip(pairwise(offsets), layouts, strict=True)):
        q, k, v = (x[:, a:b].unflatten(1, layout) for x in (query, key, value))
        window = {name: metadata[name][place] for name in ("kernel_size", "stride", "dilation", "is_causal")}
        out, lse = na.neighborhood_attention(q, k, v, **window, scale=scale, return_lse=True)
        parts.append((out.flatten(1, -3), lse.flatten(1, -2)))
    return joined(parts, return_lse)
