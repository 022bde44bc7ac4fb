"""Layers of 0.14 and 0.15: small inputs are padded, window attributes are plain integers."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import pad

import vicinal.torch as na

from .split import Sizes, given

# What stands before a layer in the order of bases is one to a type checker, whatever its rank.
if TYPE_CHECKING:
    Layer = na.NeighborhoodAttention2D
else:
    Layer = object


class Padded(Layer):
    """Before a layer of `vicinal.torch` in the order of bases: its constructor and forward as 0.14 had them.

    Where an axis is shorter than `kernel_size * dilation`, zeros are added at its end before the projections,
    take part as keys, and are cut off again.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            kernel_size,
            dilation=given(dilation, 1),
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            rel_pos_bias=bias,
        )
        self._window = super().window
        self.kernel_size, self.dilation = (self._window[name][-1] for name in ("kernel_size", "dilation"))
        self.window_size = self.kernel_size * self.dilation

    @property
    def window(self) -> dict:
        """The window, as keyword arguments of `neighborhood_attention`."""
        return self._window

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`[batch, *spatial, dim]` to the same shape."""
        lengths = x.shape[1:-1]
        windows = zip(self.window["kernel_size"], self.window["dilation"], strict=True)
        # An input of another rank is the layer's to refuse.
        missing = [
            max(0, size * apart - length) for (size, apart), length in zip(windows, lengths, strict=False)
        ]
        if not any(missing):
            return super().forward(x)
        ends = [extent for axis in reversed(missing) for extent in (0, axis)]
        out = super().forward(pad(x, (0, 0, *ends)))
        return out[(slice(None), *map(slice, lengths))]


class NeighborhoodAttention1D(  # pyright: ignore[reportIncompatibleMethodOverride]
    Padded, na.NeighborhoodAttention1D
):
    """1-D layer of NATTEN 0.14 and 0.15, relative position bias included unless `bias=False`."""


class NeighborhoodAttention2D(  # pyright: ignore[reportIncompatibleMethodOverride]
    Padded, na.NeighborhoodAttention2D
):
    """2-D layer of NATTEN 0.14 and 0.15, relative position bias included unless `bias=False`."""


class NeighborhoodAttention3D(  # pyright: ignore[reportIncompatibleMethodOverride]
    Padded, na.NeighborhoodAttention3D
):
    """3-D layer of NATTEN 0.15; `kernel_size_d` and `dilation_d` are for the first axis if not None."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        kernel_size_d: int | None = None,
        dilation: int | None = 1,
        dilation_d: int | None = None,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        depth = kernel_size if kernel_size_d is None else kernel_size_d
        dilation = given(dilation, 1)
        apart = dilation if dilation_d is None else dilation_d
        sizes, dilations = (depth, kernel_size, kernel_size), (apart, dilation, dilation)
        super().__init__(dim, num_heads, sizes, dilations, bias, qkv_bias, qk_scale, attn_drop, proj_drop)
        self.kernel_size_d, self.dilation_d = depth, apart
        self.window_size_d = depth * apart
