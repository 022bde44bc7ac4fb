"""Attention and its gradients written out over the three walks; they keep the weights of every window.

The `reference` backend is this module over gathers. Second derivatives and forward mode are MLX's own of
this module, over the walks of whichever backend runs. All arrays are in the dtype that accumulates.
"""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from .operands import Operands


class Walks(NamedTuple):
    """The walks of one window; weights of additional tokens follow the window's slots."""

    dot_window: Callable[[mx.array, mx.array, float], mx.array]
    mix_window: Callable[[mx.array, mx.array], mx.array]
    mix_back_window: Callable[[mx.array, mx.array], mx.array]
    spread: Callable[[mx.array], mx.array]
    tally: Callable[[mx.array], mx.array]
    slots: int

    def dot(self, x: mx.array, y: mx.array, extra: mx.array | None, fill: float) -> mx.array:
        """Products of every row with its keys, `[batch, *outputs, heads, slots + extra]`."""
        weights = self.dot_window(x, y, fill)
        return weights if extra is None else mx.concatenate([weights, dot_extra(x, extra)], -1)

    def mix(self, weights: mx.array, y: mx.array, extra: mx.array | None) -> mx.array:
        """Weighted sums of every row's values."""
        out = self.mix_window(weights[..., : self.slots], y)
        return out if extra is None else out + mix_extra(weights[..., self.slots :], extra)

    def mix_back(
        self, weights: mx.array, x: mx.array, extra: mx.array | None
    ) -> tuple[mx.array, mx.array | None]:
        """Weighted sums of the rows that see each key, and each additional one."""
        window = self.mix_back_window(weights[..., : self.slots], x)
        if extra is None:
            return window, None
        rows, tail = (grouped(t, extra.shape[-2]) for t in (x, weights[..., self.slots :]))
        return window, mx.einsum("bnhge,bnhgd->behd", tail, rows)


def attend(walks: Walks, at: Operands, scale: float) -> tuple[mx.array, mx.array]:
    """Output and log-sum-exp."""
    scores = _scores(walks, at, scale)
    return walks.mix(mx.softmax(scores, -1), at.value, at.extra_value), mx.logsumexp(scores, -1)


def attend_back(walks: Walks, at: Operands, grad_out: mx.array, grad_lse: mx.array, scale: float) -> Operands:
    """Gradients of `<out, grad_out> + <lse, grad_lse>`."""
    p = mx.softmax(_scores(walks, at, scale), -1)
    gain = walks.dot(grad_out, at.value, at.extra_value, 0.0)
    slope = p * (gain - (p * gain).sum(-1, keepdims=True) + grad_lse[..., None])
    scaled = slope * scale
    query = walks.mix(scaled, at.key, at.extra_key)
    key, extra_key = walks.mix_back(scaled, at.query, at.extra_key)
    value, extra_value = walks.mix_back(p, grad_out, at.extra_value)
    bias = None if at.bias is None else walks.tally(slope[..., : walks.slots])
    return Operands(query, key, value, bias, extra_key, extra_value)


def dot_extra(x: mx.array, extra: mx.array) -> mx.array:
    """Products of `[batch, *outputs, heads, dim]` with additional tokens `[batch, extra, kv_heads, dim]`."""
    weights = mx.einsum("bnhgd,behd->bnhge", grouped(x, extra.shape[-2]), extra)
    return weights.reshape(*x.shape[:-1], extra.shape[1])


def mix_extra(weights: mx.array, extra: mx.array) -> mx.array:
    """Sums of additional tokens with weights `[batch, *outputs, heads, extra]`."""
    out = mx.einsum("bnhge,behd->bnhgd", grouped(weights, extra.shape[-2]), extra)
    return out.reshape(*weights.shape[:-1], extra.shape[-1])


def grouped(x: mx.array, kv_heads: int) -> mx.array:
    """`[batch, *outputs, heads, width]` to `[batch, tokens, kv_heads, group, width]`."""
    flat = x.flatten(1, -3)
    return flat.reshape(*flat.shape[:2], kv_heads, flat.shape[-2] // max(kv_heads, 1), flat.shape[-1])


def _scores(walks: Walks, at: Operands, scale: float) -> mx.array:
    fill = -float("inf")
    if at.bias is None:
        return walks.dot(at.query * scale, at.key, at.extra_key, fill)
    scores = walks.dot(at.query * scale, at.key, None, fill) + walks.spread(at.bias)
    return (
        scores
        if at.extra_key is None
        else mx.concatenate([scores, dot_extra(at.query * scale, at.extra_key)], -1)
    )
