"""natten-mps 0.3: heads last, `stride` computes every stride-th query only, batches padded to one size."""

import torch
from torch import Tensor

import vicinal.torch as na
from vicinal.compat.eras import apple, tiers

from .front import FRONT

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

na1d, na1d_qk, na1d_av = apple.functions(FRONT, 1, __name__, 1.0)
na2d, na2d_qk, na2d_av = apple.functions(FRONT, 2, __name__, 1.0)
na3d, na3d_qk, na3d_av = apple.functions(FRONT, 3, __name__, 1.0)
na1d_varlen, na2d_varlen, na3d_varlen = (apple.padded(FRONT, rank, __name__) for rank in (1, 2, 3))


class _Layer(apple.Layer):
    __doc__ = apple.Layer.__doc__

    def forward(self, x: Tensor, spatial_sizes: Tensor | None = None) -> Tensor:
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


get_backend, set_backend, get_support_matrix = tiers.functions(
    "natten-mps", {"pure": lambda: True, "metal": has_metal}, "an Apple GPU that PyTorch sees"
)
