"""NATTEN 0.15: 0.14 with a third axis, additional tokens, and the names `na*d_qk`, `na*d_av`."""

from collections.abc import Callable

from torch import Tensor

from . import split, switches
from .flops import (
    add_natten_handle,
    av_1d_flop,
    av_2d_flop,
    av_3d_flop,
    get_flops,
    qk_1d_rpb_flop,
    qk_2d_rpb_flop,
    qk_3d_rpb_flop,
)
from .layers import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D
from .switches import *  # noqa: F403
from .v014 import natten1dqkrpb, natten2dqkrpb

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "add_natten_handle",
    "av_1d_flop",
    "av_2d_flop",
    "av_3d_flop",
    "get_flops",
    "na1d_av",
    "na1d_qk",
    "na1d_qk_with_bias",
    "na2d_av",
    "na2d_qk",
    "na2d_qk_with_bias",
    "na3d_av",
    "na3d_qk",
    "na3d_qk_with_bias",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "natten3dav",
    "natten3dqk",
    "natten3dqkrpb",
    "qk_1d_rpb_flop",
    "qk_2d_rpb_flop",
    "qk_3d_rpb_flop",
]
__all__ += switches.__all__


def _functions(rank: int) -> tuple[Callable, ...]:
    def qk(
        query: Tensor, key: Tensor, kernel_size: int, dilation: int, additional_keys: Tensor | None = None
    ) -> Tensor:
        """Unscaled scores `[batch, heads, *spatial, slots + tokens]`, those of `additional_keys` last."""
        return split.qk(rank, query, key, kernel_size, dilation, additional_keys=additional_keys)

    def qk_with_bias(
        query: Tensor,
        key: Tensor,
        bias: Tensor | None,
        kernel_size: int,
        dilation: int,
        additional_keys: Tensor | None = None,
    ) -> Tensor:
        """Unscaled scores with a relative position bias `[heads, *(2 * kernel_size - 1)]`."""
        return split.qk(rank, query, key, kernel_size, dilation, False, bias, additional_keys)

    def av(
        attn: Tensor, value: Tensor, kernel_size: int, dilation: int, additional_values: Tensor | None = None
    ) -> Tensor:
        """Values summed with weights as the scores are laid out, `[batch, heads, *spatial, dim]`."""
        return split.av(rank, attn, value, kernel_size, dilation, additional_values=additional_values)

    names = (f"na{rank}d_qk", f"na{rank}d_qk_with_bias", f"na{rank}d_av")
    return split.named(__name__, names, (qk, qk_with_bias, av))


def _axes(first: int, others: int) -> tuple[int, int, int]:
    return first, others, others


def na3d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
    additional_keys: Tensor | None = None,
) -> Tensor:
    """Unscaled scores of windows `kernel_size_d` deep and `kernel_size` high and wide."""
    sizes, dilations = _axes(kernel_size_d, kernel_size), _axes(dilation_d, dilation)
    return split.qk(3, query, key, sizes, dilations, additional_keys=additional_keys)


def na3d_qk_with_bias(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
    additional_keys: Tensor | None = None,
) -> Tensor:
    """Unscaled scores with a relative position bias `[heads, 2 * kernel_size_d - 1, ...]`."""
    sizes, dilations = _axes(kernel_size_d, kernel_size), _axes(dilation_d, dilation)
    return split.qk(3, query, key, sizes, dilations, False, bias, additional_keys)


def na3d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
    additional_values: Tensor | None = None,
) -> Tensor:
    """Values summed with weights as the scores are laid out."""
    sizes, dilations = _axes(kernel_size_d, kernel_size), _axes(dilation_d, dilation)
    return split.av(3, attn, value, sizes, dilations, additional_values=additional_values)


def natten3dqkrpb(
    query: Tensor,
    key: Tensor,
    rpb: Tensor | None,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
) -> Tensor:
    """`na3d_qk_with_bias` by its older name."""
    return na3d_qk_with_bias(query, key, rpb, kernel_size_d, kernel_size, dilation_d, dilation)


na1d_qk, na1d_qk_with_bias, na1d_av = _functions(1)
na2d_qk, na2d_qk_with_bias, na2d_av = _functions(2)
natten1dqk, natten2dqk, natten3dqk = na1d_qk, na2d_qk, na3d_qk
natten1dav, natten2dav, natten3dav = na1d_av, na2d_av, na3d_av
