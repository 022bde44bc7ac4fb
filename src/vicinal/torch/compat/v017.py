"""NATTEN 0.17: windows per axis, causality; split operations heads first and unscaled, fused heads last."""

from collections.abc import Callable

from torch import Tensor

import vicinal.torch as na

from . import split, switches
from .flops import add_natten_handle, fna_flop_count, get_flops, na_av_flop_count, na_qk_flop_count
from .layers import Layer
from .split import Flags, Sizes, given
from .switches import *  # noqa: F403
from .v014 import natten1dqkrpb, natten2dqkrpb

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "add_natten_handle",
    "fna_flop_count",
    "get_flops",
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "na_av_flop_count",
    "na_qk_flop_count",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "natten3dav",
    "natten3dqk",
    "natten3dqkrpb",
]
__all__ += switches.__all__

_FUSED = {1: na.na1d, 2: na.na2d, 3: na.na3d}


def _refuse_causal_bias(is_causal, bias: object) -> None:
    causal = any(is_causal) if isinstance(is_causal, (tuple, list)) else is_causal
    if causal and bias is not None and bias is not False:
        raise NotImplementedError(
            "NATTEN 0.17 has no causal attention with relative position bias; `vicinal.torch` does, as `bias`"
        )


class _Layer(Layer):
    """Layer of NATTEN 0.17: no padding of small inputs, relative position bias only if `rel_pos_bias`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        is_causal: Flags | None = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_experimental_ops: bool = False,
    ) -> None:
        _refuse_causal_bias(is_causal, rel_pos_bias)
        super().__init__(
            dim,
            num_heads,
            kernel_size,
            dilation=given(dilation, 1),
            is_causal=given(is_causal, False),
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            rel_pos_bias=rel_pos_bias,
        )
        self.attn_drop_rate, self.use_experimental_ops = attn_drop, use_experimental_ops


class NeighborhoodAttention1D(_Layer, na.NeighborhoodAttention1D):
    __doc__ = _Layer.__doc__


class NeighborhoodAttention2D(_Layer, na.NeighborhoodAttention2D):
    __doc__ = _Layer.__doc__


class NeighborhoodAttention3D(_Layer, na.NeighborhoodAttention3D):
    __doc__ = _Layer.__doc__


def _functions(rank: int) -> tuple[Callable, ...]:
    def qk(
        query: Tensor,
        key: Tensor,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        additional_keys: Tensor | None = None,
        is_causal: Flags | None = False,
        rpb: Tensor | None = None,
    ) -> Tensor:
        """Unscaled scores `[batch, heads, *spatial, slots + tokens]`, those of `additional_keys` last."""
        _refuse_causal_bias(is_causal, rpb)
        return split.qk(rank, query, key, kernel_size, dilation, is_causal, rpb, additional_keys)

    def av(
        attn: Tensor,
        value: Tensor,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        additional_values: Tensor | None = None,
        is_causal: Flags | None = False,
    ) -> Tensor:
        """Values summed with weights as the scores are laid out, `[batch, heads, *spatial, dim]`."""
        return split.av(rank, attn, value, kernel_size, dilation, is_causal, additional_values)

    def fused(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        is_causal: Flags | None = False,
        rpb: Tensor | None = None,
        scale: float | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        xformers_kwargs: dict | None = None,
    ) -> Tensor:
        """Neighborhood attention of heads-last tensors; `xformers_kwargs` has no use here."""
        _refuse_causal_bias(is_causal, rpb)
        return _FUSED[rank](
            query,
            key,
            value,
            kernel_size,
            dilation=given(dilation, 1),
            is_causal=given(is_causal, False),
            scale=scale,
            bias=rpb,
            additional_keys=additional_keys,
            additional_values=additional_values,
        )

    names = (f"na{rank}d_qk", f"na{rank}d_av", f"na{rank}d")
    return split.named(__name__, names, (qk, av, fused))


na1d_qk, na1d_av, na1d = _functions(1)
na2d_qk, na2d_av, na2d = _functions(2)
na3d_qk, na3d_av, na3d = _functions(3)
natten1dqk, natten2dqk, natten3dqk = na1d_qk, na2d_qk, na3d_qk
natten1dav, natten2dav, natten3dav = na1d_av, na2d_av, na3d_av


def natten3dqkrpb(
    query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: Sizes, dilation: Sizes | None = 1
) -> Tensor:
    """`na3d_qk` by its older name and order."""
    return na3d_qk(query, key, kernel_size, dilation, rpb=rpb)
