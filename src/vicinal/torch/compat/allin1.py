"""`extras.allin1` of natten-mps: split operations with relative position bias, heads last."""

from collections.abc import Callable

from torch import Tensor

import vicinal.torch as na

from . import split


def _functions(rank: int) -> tuple[Callable, ...]:
    dot, mix = ((na.na1d_qk, na.na1d_av), (na.na2d_qk, na.na2d_av))[rank - 1]

    def qk_rpb(
        query: Tensor,
        key: Tensor,
        rpb: Tensor | None,
        kernel_size: int,
        dilation: int = 1,
        *,
        scale: float | None = None,
    ) -> Tensor:
        """Scores `[batch, *spatial, heads, slots]` with the bias `rpb`; no scale if it is None."""
        scale = 1.0 if scale is None else scale
        return dot(query, key, kernel_size, dilation=dilation, scale=scale, bias=rpb)

    def av_fused(attn: Tensor, value: Tensor, kernel_size: int, dilation: int = 1) -> Tensor:
        """Values `[batch, *spatial, heads, dim]` of every window, summed with the weights `attn`."""
        return mix(attn, value, kernel_size, dilation=dilation)

    def qkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int) -> Tensor:
        """`qk_rpb` under the name of NATTEN 0.14, still heads last."""
        return qk_rpb(query, key, rpb, kernel_size, dilation)

    def old_av(attention_probs: Tensor, value: Tensor, kernel_size: int, dilation: int) -> Tensor:
        """`av_fused` under the name of NATTEN 0.14, still heads last."""
        return av_fused(attention_probs, value, kernel_size, dilation)

    names = (f"na{rank}d_qk_rpb", f"na{rank}d_av_fused", f"natten{rank}dqkrpb", f"natten{rank}dav")
    return split.named(__name__, names, (qk_rpb, av_fused, qkrpb, old_av))


na1d_qk_rpb, na1d_av_fused, natten1dqkrpb, natten1dav = _functions(1)
na2d_qk_rpb, na2d_av_fused, natten2dqkrpb, natten2dav = _functions(2)
