"""natten-mps 0.3: heads last, `stride` computes every stride-th query only, batches padded to one size."""

from collections.abc import Callable

import torch
from torch import Tensor

import vicinal.torch as na

from . import split
from .layers import Layer
from .split import Flags, Sizes

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "get_backend",
    "get_support_matrix",
    "has_metal",
    "has_mps",
    "merge_attentions",
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na1d_varlen",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na2d_varlen",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "na3d_varlen",
    "set_backend",
]

_RANKED = {
    1: (na.na1d, na.na1d_qk, na.na1d_av, na.na1d_varlen),
    2: (na.na2d, na.na2d_qk, na.na2d_av, na.na2d_varlen),
    3: (na.na3d, na.na3d_qk, na.na3d_av, na.na3d_varlen),
}
_BACKENDS = ("auto", "metal", "pure")
_backend = ["auto"]


def _functions(rank: int) -> tuple[Callable, ...]:
    attend, dot, mix, padded = _RANKED[rank]

    def fused(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: Sizes,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        is_causal: Flags = False,
        scale: float | None = None,
        return_lse: bool = False,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
    ):
        """Neighborhood attention of the queries at multiples of `stride`."""
        return attend(
            query,
            key,
            value,
            kernel_size,
            dilation=dilation,
            is_causal=is_causal,
            scale=scale,
            output_stride=stride,
            additional_keys=additional_keys,
            additional_values=additional_values,
            return_lse=return_lse,
        )

    def qk(
        query: Tensor,
        key: Tensor,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        *,
        stride: Sizes = 1,
        is_causal: Flags = False,
        scale: float | None = None,
    ) -> Tensor:
        """Scores of the queries at multiples of `stride`; no scale if it is None."""
        scale = 1.0 if scale is None else scale
        return dot(
            query, key, kernel_size, dilation=dilation, is_causal=is_causal, scale=scale, output_stride=stride
        )

    def av(
        attn: Tensor,
        value: Tensor,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        *,
        stride: Sizes = 1,
        is_causal: Flags = False,
    ) -> Tensor:
        """Values summed with weights as the scores are laid out."""
        return mix(attn, value, kernel_size, dilation=dilation, is_causal=is_causal, output_stride=stride)

    def varlen(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spatial_sizes: Tensor,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        scale: float | None = None,
    ) -> Tensor:
        """Attention in a padded batch; sample `b` has extents `spatial_sizes[b]`, the rest is zero."""
        return padded(query, key, value, spatial_sizes, kernel_size, dilation=dilation, scale=scale)

    names = (f"na{rank}d", f"na{rank}d_qk", f"na{rank}d_av", f"na{rank}d_varlen")
    return split.named(__name__, names, (fused, qk, av, varlen))


na1d, na1d_qk, na1d_av, _varlen = _functions(1)
na2d, na2d_qk, na2d_av, na2d_varlen = _functions(2)
na3d, na3d_qk, na3d_av, na3d_varlen = _functions(3)


def na1d_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_lens: Tensor,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    scale: float | None = None,
) -> Tensor:
    """Attention in a padded batch; sample `b` has `seq_lens[b]` tokens, the rest is zero."""
    return _varlen(query, key, value, seq_lens, kernel_size, dilation, scale)


class _Layer(Layer):
    """Layer of natten-mps; samples of a padded batch come with their sizes, and their padding is zero."""

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
        self._window = super().window
        self.stride = self.output_stride

    @property
    def window(self) -> dict:
        """The window, as keyword arguments of `neighborhood_attention`."""
        return self._window

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, spatial_sizes: Tensor | None = None
    ) -> Tensor:
        """`[batch, *spatial, embed_dim]` to `[batch, *outputs, embed_dim]`."""
        return super().forward(x, spatial_sizes)


class NeighborhoodAttention1D(_Layer, na.NeighborhoodAttention1D):
    __doc__ = _Layer.__doc__

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, seq_lens: Tensor | None = None
    ) -> Tensor:
        """`[batch, length, embed_dim]` to `[batch, outputs, embed_dim]`."""
        return super().forward(x, seq_lens)


class NeighborhoodAttention2D(  # pyright: ignore[reportIncompatibleMethodOverride]
    _Layer, na.NeighborhoodAttention2D
):
    __doc__ = _Layer.__doc__


class NeighborhoodAttention3D(  # pyright: ignore[reportIncompatibleMethodOverride]
    _Layer, na.NeighborhoodAttention3D
):
    __doc__ = _Layer.__doc__


def merge_attentions(
    outputs: list[Tensor], lse_tensors: list[Tensor], use_autograd_fix: bool = True
) -> tuple[Tensor, Tensor]:
    """The attention over all keys from attentions over parts of them; the flag changes nothing."""
    return na.merge_attentions(outputs, lse_tensors)


def has_mps() -> bool:
    """Whether PyTorch sees an Apple GPU."""
    return torch.backends.mps.is_available()


has_metal = has_mps


def get_backend() -> str:
    """The backend last set: it is kept, and changes nothing."""
    return _backend[0]


def set_backend(name: str) -> None:
    """Keep the name of a backend: `auto`, `metal` or `pure`."""
    if name not in _BACKENDS:
        raise ValueError(f"backend {name!r} is unknown to natten-mps; pass {', '.join(_BACKENDS)}")
    if name == "metal" and not has_metal():
        raise NotImplementedError(
            "backend 'metal' needs an Apple GPU that PyTorch sees; pass 'auto' or 'pure'"
        )
    _backend[0] = name


def get_support_matrix() -> dict[str, dict]:
    """What each backend runs: everything."""
    fused = dict.fromkeys(("na1d", "na2d", "na3d"), True)
    operations = {**fused, "split_qk_av": True}
    columns = {
        "forward": operations,
        "backward": operations,
        "varlen": fused,
        "fusion": fused,
        "constraints": [],
    }
    return {"pure": {"available": True, **columns}, "metal": {"available": has_metal(), **columns}}
