"""Neighborhood attention layers. The rank is data; the three names pin it."""

from typing import Any, ClassVar

import mlx.core as mx
from mlx import nn

from .. import arguments
from ..arguments import Flags, Sizes
from . import documents, tables
from .functional import av, neighborhood_attention, qk
from .operands import Operands
from .varlen import Extents, extents, neighborhood_attention_varlen


class _NeighborhoodAttention(nn.Module):
    """Self attention over neighborhoods: projections to queries, keys and values, attention, projection out.

    Args:
        embed_dim: channels in and out, a multiple of `num_heads`.
        num_heads: query heads.
        kernel_size, stride, dilation, is_causal, output_stride: the window, as in `neighborhood_attention`.
        num_kv_heads: key/value heads, a divisor of `num_heads`; `num_heads` if None. If fewer, the
            projections are `q_proj` and `kv_proj` instead of `qkv`.
        qkv_bias: whether the input projections have a bias.
        qk_scale: factor on the products of queries and keys; `head_dim ** -0.5` if None.
        attn_drop: dropout of attention weights in training. It keeps the weights of every window, so memory
            grows with them.
        proj_drop: dropout of the output in training.
        rel_pos_bias: whether there is a learned relative position bias, the parameter `rpb`.

    Shape: `[batch, *spatial, embed_dim]` to `[batch, *outputs, embed_dim]`. Parameters load from NATTEN 0.20
    and later.

    Raises:
        TypeError, ValueError: an argument is not what is said above; windows are checked against the input in
            `forward`.
    """

    rank: ClassVar[int]

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        is_causal: Flags = False,
        *,
        num_kv_heads: int | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        rel_pos_bias: bool = False,
        output_stride: Sizes = 1,
    ) -> None:
        super().__init__()
        embed_dim, num_heads, kv_heads = arguments.layer(embed_dim, num_heads, num_kv_heads)
        attn_drop, proj_drop = arguments.drop("attn_drop", attn_drop), arguments.drop("proj_drop", proj_drop)
        window = arguments.window(
            None, kernel_size, stride, dilation, is_causal, output_stride, rank=self.rank
        )
        self.kernel_size, self.stride, self.dilation, self.is_causal, self.output_stride = window
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, kv_heads
        self.head_dim = embed_dim // num_heads
        self.scale = arguments.default_scale(qk_scale, self.head_dim)
        if kv_heads == num_heads:
            self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        else:
            self.q_proj = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
            self.kv_proj = nn.Linear(embed_dim, 2 * kv_heads * self.head_dim, bias=qkv_bias)
        self.rpb = None
        if rel_pos_bias:
            self.rpb = 0.02 * mx.random.normal((num_heads, *(2 * size - 1 for size in self.kernel_size)))
        self.attn_drop_rate = attn_drop
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    @property
    def window(self) -> dict[str, Any]:
        """The window, as keyword arguments of `neighborhood_attention`."""
        names = ("kernel_size", "stride", "dilation", "is_causal", "output_stride")
        return {name: getattr(self, name) for name in names}

    def __call__(self, x: mx.array, sizes: Extents | None = None, fit: str = "error") -> mx.array:
        """`[batch, *spatial, embed_dim]` to `[batch, *outputs, embed_dim]`.

        With `sizes` every entry of the batch holds a document of its own size; they and `fit` are those of
        `neighborhood_attention_varlen`. Padding changes nothing, whatever it holds, and its rows come out as
        zeros: the projection's bias is not added to them.
        """
        arguments.instance("input", x, mx.array, "an mlx.core.array")
        arguments.channels_last(self.rank, x.shape, self.embed_dim)
        if sizes is not None:
            return self._varlen(x, sizes, fit)
        query, key, value = self._project(x)
        if self.training and self.attn_drop_rate > 0:
            scores = qk(query, key, scale=self.scale, bias=self.rpb, **self.window)
            out = av(self.attn_drop(mx.softmax(scores, -1)), value, **self.window)
        else:
            out = neighborhood_attention(query, key, value, scale=self.scale, bias=self.rpb, **self.window)
        return self.proj_drop(self.proj(out.flatten(-2)))

    def _varlen(self, x: mx.array, sizes: Extents, fit: str) -> mx.array:
        shapes, frame = extents(sizes, x.shape[0], self.rank), x.shape[1:-1]
        # Zeros, because a gradient of 0 times NaN would reach the weights of the projections.
        x = mx.where(tables.inside(shapes, frame, (1,) * self.rank)[..., None], x, mx.zeros_like(x))
        query, key, value = self._project(x)
        if self.training and self.attn_drop_rate > 0:
            out = self._drop_varlen(Operands(query, key, value, self.rpb), shapes, fit)
        else:
            window: dict[str, Any] = {"scale": self.scale, "bias": self.rpb, "fit": fit, **self.window}
            out = neighborhood_attention_varlen(query, key, value, shapes, **window)
        out = self.proj(out.flatten(-2))
        mask = tables.inside(shapes, frame, self.output_stride)[..., None]
        out = mx.where(mask, out, mx.zeros_like(out))
        return self.proj_drop(out)

    def _drop_varlen(self, given: Operands, shapes: tuple, fit: str) -> mx.array:
        window, clip = tuple(self.window.values()), arguments.fit(fit)
        batch, parts = documents.batch(given.query, shapes, self.rank, window, clip), []
        tokens = (batch.tokens.split(x, batch.groups) for x in given[:3])
        for group, query, key, value in zip(batch.groups, *tokens, strict=True):
            bias = None if given.bias is None else documents.central(given.bias, group.window[0])
            named: dict[str, Any] = dict(zip(self.window, group.window, strict=True))
            weights = self.attn_drop(mx.softmax(qk(query, key, scale=self.scale, bias=bias, **named), -1))
            parts.append(av(weights, value, **named))
        blank = mx.zeros((self.num_heads, self.head_dim), given.value.dtype)
        return batch.outputs.joined(batch.groups, parts, blank)

    def _project(self, x: mx.array) -> list[mx.array]:
        """Query, key and value `[batch, *spatial, heads, head_dim]`."""
        if self.num_kv_heads == self.num_heads:
            parts = mx.split(self.qkv(x), 3, -1)
        else:
            parts = [self.q_proj(x), *mx.split(self.kv_proj(x), 2, -1)]
        return [part.reshape(*part.shape[:-1], -1, self.head_dim) for part in parts]

    def _extra_repr(self) -> str:
        window = f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"
        heads = f"{self.num_heads} heads" + (
            f" over {self.num_kv_heads}" * (self.num_kv_heads != self.num_heads)
        )
        return f"{heads}, {window}, is_causal={self.is_causal}, output_stride={self.output_stride}"


class NeighborhoodAttention1D(_NeighborhoodAttention):
    __doc__ = _NeighborhoodAttention.__doc__
    rank = 1


class NeighborhoodAttention2D(_NeighborhoodAttention):
    __doc__ = _NeighborhoodAttention.__doc__
    rank = 2


class NeighborhoodAttention3D(_NeighborhoodAttention):
    __doc__ = _NeighborhoodAttention.__doc__
    rank = 3
