"""Layers of 0.14 and 0.15."""

from torch import Tensor

import vicinal.torch as na
from vicinal.compat.eras import v014, v015

from .front import FRONT


class _Padded(v014.Padded):
    front = FRONT

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, *spatial, dim]` to the same shape."""
        return self.padded(x, super().forward)


class NeighborhoodAttention1D(  # pyright: ignore[reportIncompatibleMethodOverride]
    _Padded, na.NeighborhoodAttention1D
):
    """1-D layer of NATTEN 0.14 and 0.15, relative position bias included unless `bias=False`."""


class NeighborhoodAttention2D(  # pyright: ignore[reportIncompatibleMethodOverride]
    _Padded, na.NeighborhoodAttention2D
):
    """2-D layer of NATTEN 0.14 and 0.15, relative position bias included unless `bias=False`."""


class NeighborhoodAttention3D(  # pyright: ignore[reportIncompatibleMethodOverride]
    v015.Deep, _Padded, na.NeighborhoodAttention3D
):
    """3-D layer of NATTEN 0.15; `kernel_size_d` and `dilation_d` are for the first axis if not None."""
