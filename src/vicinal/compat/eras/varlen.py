"""`natten.varlen`: neighborhood attention of packed inputs, each with its spatial shape and window."""

from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from math import prod
from typing import Any

from . import knobs
from .front import Array, Flags, Front, Sizes, given, named
from .packed import check_pack, joined

Windows = Sequence[Sizes] | None


def configure_varlen(
    token_layout_list: Sequence[tuple[int, ...]],
    head_dim: int,
    device: Any,
    dtype: Any,
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
    count = len(token_layout_list)
    if not count:
        raise ValueError("token_layout_list is empty; pass the spatial shape of every packed input")
    knobs.check(len(token_layout_list[0]), backend, kernel_schedule, tiles, None, flags)
    windows = (
        _for_each("kernel_size_list", kernel_size, kernel_size_list, count),
        _for_each("stride_list", stride, stride_list, count),
        _for_each("dilation_list", dilation, dilation_list, count),
    )
    inputs = zip(token_layout_list, zip(*windows, strict=True), strict=True)
    # Neighbors in the pack with the same window are one call.
    runs = [
        ([tuple(shape) for shape, _ in run], window)
        for window, run in groupby(inputs, key=lambda entry: entry[1])
    ]
    return {"runs": runs, "is_causal": given(is_causal, False)}


def _for_each(name: str, one: Sizes, many: Windows, count: int) -> Sequence[Sizes]:
    """`many`, or `one` for each of `count` inputs."""
    if many is None:
        return [one] * count
    if len(many) != count:
        raise ValueError(f"{name} has {len(many)} entries for {count} packed inputs; pass one for each")
    return many


def attending(front: Front, module: str) -> Callable:
    """`neighborhood_attention_varlen`."""

    def attend(
        query: Array,
        key: Array,
        value: Array,
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
            options = (*windows, backend, *tiles, run_persistent_kernel, kernel_schedule)
            metadata = configure_varlen(token_layout_list, query.shape[-1], None, None, False, None, *options)
        tokens = [sum(map(prod, shapes)) for shapes, _ in metadata["runs"]]
        ends = list(accumulate(tokens, initial=0))
        check_pack(query, ends, "token_layout_list")
        parts = []
        for (a, b), (shapes, (size, step, apart)) in zip(pairwise(ends), metadata["runs"], strict=True):
            window = {
                "kernel_size": size,
                "stride": step,
                "dilation": apart,
                "is_causal": metadata["is_causal"],
            }
            layout = front.na.VarlenLayout(shapes, len(shapes[0]))
            operands = (x[0, a:b] for x in (query, key, value))
            out, lse = front.na.neighborhood_attention_packed(
                *operands, layout, **window, scale=scale, return_lse=True
            )
            parts.append((out[None], lse[None]))
        return joined(front, parts, return_lse)

    return named(module, ("neighborhood_attention_varlen",), (attend,))[0]
