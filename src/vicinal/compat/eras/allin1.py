"""`extras.allin1` of natten-mps and natten-mlx: split operations with relative position bias, heads last."""

from collections.abc import Callable

from .front import Array, Front, named


def functions(front: Front, rank: int, module: str) -> tuple[Callable, ...]:
    """`na#d_qk_rpb` and `na#d_av_fused`."""
    dot, mix = front.ranked(rank, "_qk"), front.ranked(rank, "_av")

    def qk_rpb(
        query: Array,
        key: Array,
        rpb: Array | None,
        kernel_size: int,
        dilation: int = 1,
        *,
        scale: float | None = None,
    ) -> Array:
        """Scores `[batch, *spatial, heads, slots]` with the bias `rpb`; no scale if it is None."""
        scale = 1.0 if scale is None else scale
        return dot(query, key, kernel_size, dilation=dilation, scale=scale, bias=rpb)

    def av_fused(attn: Array, value: Array, kernel_size: int, dilation: int = 1) -> Array:
        """Values `[batch, *spatial, heads, dim]` of every window, summed with the weights `attn`."""
        return mix(attn, value, kernel_size, dilation=dilation)

    return named(module, (f"na{rank}d_qk_rpb", f"na{rank}d_av_fused"), (qk_rpb, av_fused))


def older(rank: int, qk: Callable, av: Callable, module: str) -> tuple[Callable, ...]:
    """`natten#dqkrpb` and `natten#dav` of `extras.allin1.functional`, in the layout of `qk` and `av`."""

    def qkrpb(query: Array, key: Array, rpb: Array | None, kernel_size: int, dilation: int) -> Array:
        """Scores with the bias `rpb`, unscaled."""
        return qk(query, key, rpb, kernel_size, dilation)

    def old_av(attention_probs: Array, value: Array, kernel_size: int, dilation: int) -> Array:
        """Values of every window, summed with weights as the scores are laid out."""
        return av(attention_probs, value, kernel_size, dilation)

    return named(module, (f"natten{rank}dqkrpb", f"natten{rank}dav"), (qkrpb, old_av))
