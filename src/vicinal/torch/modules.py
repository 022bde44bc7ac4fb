"""Neighborhood attention layers. The rank is data; the three names pin it."""

from collections.abc import Callable
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from .. import arguments
from ..arguments import Flags, Sizes
from . import documents
from .backends.base import Operands
from .functional import av, neighborhood_attention, qk
from .varlen import Extents, inside, neighborhood_attention_varlen, table

ops = torch.ops.vicinal


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
            self.rpb = nn.Parameter(torch.empty(num_heads, *(2 * size - 1 for size in self.kernel_size)))
            nn.init.trunc_normal_(self.rpb, std=0.02)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    @property
    def window(self) -> dict:
        """The window, as keyword arguments of `neighborhood_attention`."""
        names = ("kernel_size", "stride", "dilation", "is_causal", "output_stride")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor, sizes: Extents | None = None, fit: str = "error") -> Tensor:
        """`[batch, *spatial, embed_dim]` to `[batch, *outputs, embed_dim]`.

        With `sizes` every entry of the batch holds a document of its own size; they and `fit` are those of
        `neighborhood_attention_varlen`. Padding changes nothing, whatever it holds, and its rows come out as
        zeros: the projection's bias is not added to them.
        """
        arguments.instance("input", x, Tensor, "a tensor")
        arguments.channels_last(self.rank, x.shape, self.embed_dim)
        if sizes is not None:
            return self._varlen(x, sizes, fit)
        query, key, value = self._project(x)
        window = self.window
        if self.training and self.attn_drop.p > 0:
            weights = self.attn_drop(qk(query, key, scale=self.scale, bias=self.rpb, **window).softmax(-1))
            out = av(weights, value, **window)
        else:
            out = neighborhood_attention(query, key, value, scale=self.scale, bias=self.rpb, **window)
        return self.proj_drop(self.proj(out.flatten(-2)))

    def _varlen(self, x: Tensor, sizes: Extents, fit: str) -> Tensor:
        shapes, frame = table(sizes, self.rank), x.shape[1:-1]
        arguments.sizes(shapes.shape, x.shape[0], self.rank)
        # Zeros, because a gradient of 0 times NaN would reach the weights of the projections.
        x = x.masked_fill(~inside(shapes, frame, (1,) * self.rank, x.device).unsqueeze(-1), 0)
        query, key, value = self._project(x)
        if self.training and self.attn_drop.p > 0:
            drop: Callable[..., Tensor] = self._drop_varlen
            if torch.compiler.is_compiling():
                # A graph of it would be one of these shapes.
                drop = cast("Callable[..., Tensor]", torch.compiler.disable(drop))
            out = drop(Operands(query, key, value, self.rpb), shapes, fit)
        else:
            out = neighborhood_attention_varlen(
                query, key, value, shapes, scale=self.scale, bias=self.rpb, fit=fit, **self.window
            )
        padding = ~inside(shapes, frame, self.output_stride, x.device).unsqueeze(-1)
        return self.proj_drop(self.proj(out.flatten(-2)).masked_fill(padding, 0))

    def _drop_varlen(self, operands: Operands, shapes: Tensor, fit: str) -> Tensor:
        batch = documents.batch(operands.query, shapes, tuple(self.window.values()), arguments.fit(fit))
        parts = []
        for group in batch.groups:
            query, key, value, bias, *_ = batch.operands(operands, group)
            scores = ops.dot(query, key, bias, *group.window, self.scale, -torch.inf, None, None)
            parts.append(ops.mix(self.attn_drop(scores.softmax(-1)), value, *group.window, None, None))
        token = operands.value.new_zeros(self.num_heads, self.head_dim)
        return batch.outputs.joined(batch.groups, parts, token)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.num_kv_heads == self.num_heads:
            query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
            return query, key, value
        query = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))
        key, value = self.kv_proj(x).unflatten(-1, (2, self.num_kv_heads, self.head_dim)).unbind(-3)
        return query, key, value

    def extra_repr(self) -> str:
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
