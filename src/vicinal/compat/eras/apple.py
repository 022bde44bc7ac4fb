"""natten-mps and natten-mlx 0.3: heads last, `stride` computes every stride-th query only, padded batches."""

from collections.abc import Callable
from typing import Any

from .front import Array, Flags, Front, Sizes, named
from .v014 import Base


def functions(front: Front, rank: int, module: str, split_scale: float | None) -> tuple[Callable, ...]:
    """`na#d`, `na#d_qk` and `na#d_av`; `split_scale` is the default of `na#d_qk`."""
    attend, dot, mix = (front.ranked(rank, kind) for kind in ("", "_qk", "_av"))

    def fused(
        query: Array,
        key: Array,
        value: Array,
        kernel_size: Sizes,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        is_causal: Flags = False,
        scale: float | None = None,
        return_lse: bool = False,
        additional_keys: Array | None = None,
        additional_values: Array | None = None,
    ):
        """Neighborhood attention of the queries at multiples of `stride`."""
        extras = {"additional_keys": additional_keys, "additional_values": additional_values}
        window = {"dilation": dilation, "is_causal": is_causal, "output_stride": stride}
        return attend(query, key, value, kernel_size, **window, scale=scale, **extras, return_lse=return_lse)

    def qk(
        query: Array,
        key: Array,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        *,
        stride: Sizes = 1,
        is_causal: Flags = False,
        scale: float | None = None,
    ) -> Array:
        """Scores of the queries at multiples of `stride`; without `scale`, of natten-mps unscaled."""
        scale = split_scale if scale is None else scale
        window = {"dilation": dilation, "is_causal": is_causal, "output_stride": stride}
        return dot(query, key, kernel_size, **window, scale=scale)

    def av(
        attn: Array,
        value: Array,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        *,
        stride: Sizes = 1,
        is_causal: Flags = False,
    ) -> Array:
        """Values summed with weights as the scores are laid out."""
        return mix(attn, value, kernel_size, dilation=dilation, is_causal=is_causal, output_stride=stride)

    return named(module, (f"na{rank}d", f"na{rank}d_qk", f"na{rank}d_av"), (fused, qk, av))


def padded(front: Front, rank: int, module: str) -> Callable:
    """`na#d_varlen`."""
    attend = front.ranked(rank, "_varlen")

    def varlen(
        query: Array,
        key: Array,
        value: Array,
        spatial_sizes: Array,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        scale: float | None = None,
    ) -> Array:
        """Attention in a padded batch; sample `b` has extents `spatial_sizes[b]`, the rest is zero."""
        return attend(query, key, value, spatial_sizes, kernel_size, dilation=dilation, scale=scale)

    def varlen_1d(
        query: Array,
        key: Array,
        value: Array,
        seq_lens: Array,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        scale: float | None = None,
    ) -> Array:
        """Attention in a padded batch; sample `b` has `seq_lens[b]` tokens, the rest is zero."""
        return varlen(query, key, value, seq_lens, kernel_size, dilation, scale)

    return named(module, (f"na{rank}d_varlen",), (varlen_1d if rank == 1 else varlen,))[0]


class Layer(Base):
    """Layer of natten-mps and natten-mlx.

    Samples of a padded batch come with their sizes, and their padding is zero.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        is_causal: Flags = False,
        num_kv_heads: int | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            kernel_size,
            dilation=dilation,
            is_causal=is_causal,
            num_kv_heads=num_kv_heads,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            output_stride=stride,
        )
        # A tuple is no parameter to either framework.
        self._window = tuple(super().window.items())
        self.stride = self.output_stride

    @property
    def window(self) -> dict[str, Any]:
        """The window, as keyword arguments of `neighborhood_attention`."""
        return dict(self._window)
