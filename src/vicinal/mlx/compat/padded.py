"""Layers of 0.14 and 0.15."""

import mlx.core as mx

import vicinal.mlx as na
from vicinal.compat.eras import v014, v015

from .front import FRONT


class _Padded(v014.Padded):
    front = FRONT

    def __call__(self, x: mx.array) -> mx.array:
        """`[batch, *spatial, dim]` to the same shape."""
        return self.padded(x, super().__call__)


class NeighborhoodAttention1D(_Padded, na.NeighborhoodAttention1D):
    """1-D layer of NATTEN 0.14 and 0.15, relative position bias included unless `bias=False`."""


class NeighborhoodAttention2D(_Padded, na.NeighborhoodAttention2D):
    """2-D layer of NATTEN 0.14 and 0.15, relative position bias included unless `bias=False`."""


class NeighborhoodAttention3D(v015.Deep, _Padded, na.NeighborhoodAttention3D):
    """3-D layer of NATTEN 0.15; `kernel_size_d` and `dilation_d` are for the first axis if not None."""
