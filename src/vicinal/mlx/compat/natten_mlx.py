"""natten-mlx 0.3: heads last, `stride` computes every stride-th query only, batches padded to one size."""

import mlx.core as mx

import vicinal.mlx as na
from vicinal.compat.eras import apple, tiers

from .front import FRONT

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "get_backend",
    "get_support_matrix",
    "has_metal",
    "has_nanobind",
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

na1d, na1d_qk, na1d_av = apple.functions(FRONT, 1, __name__, None)
na2d, na2d_qk, na2d_av = apple.functions(FRONT, 2, __name__, None)
na3d, na3d_qk, na3d_av = apple.functions(FRONT, 3, __name__, None)
na1d_varlen, na2d_varlen, na3d_varlen = (apple.padded(FRONT, rank, __name__) for rank in (1, 2, 3))


class _Layer(apple.Layer):
    __doc__ = apple.Layer.__doc__

    def __call__(self, x: mx.array, spatial_sizes: mx.array | None = None) -> mx.array:
        """`[batch, *spatial, embed_dim]` to `[batch, *outputs, embed_dim]`."""
        return super().__call__(x, spatial_sizes)


class NeighborhoodAttention1D(_Layer, na.NeighborhoodAttention1D):
    __doc__ = _Layer.__doc__

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: mx.array, seq_lens: mx.array | None = None
    ) -> mx.array:
        """`[batch, length, embed_dim]` to `[batch, outputs, embed_dim]`."""
        return super().__call__(x, seq_lens)


class NeighborhoodAttention2D(_Layer, na.NeighborhoodAttention2D):
    __doc__ = _Layer.__doc__


class NeighborhoodAttention3D(_Layer, na.NeighborhoodAttention3D):
    __doc__ = _Layer.__doc__


def merge_attentions(outputs: list[mx.array], lse_tensors: list[mx.array]) -> tuple[mx.array, mx.array]:
    """The attention over all keys from attentions over parts of them."""
    return na.merge_attentions(outputs, lse_tensors)


def has_metal() -> bool:
    """Whether MLX sees an Apple GPU."""
    return mx.metal.is_available()


def has_nanobind() -> bool:
    """Whether natten-mlx's compiled extension is there: never."""
    return False


get_backend, set_backend, get_support_matrix = tiers.functions(
    "natten-mlx",
    {"pure": lambda: True, "fast_metal": has_metal, "nanobind": has_nanobind},
    "an Apple GPU, or an extension that is not part of this",
)
