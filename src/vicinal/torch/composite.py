"""Attention and its derivatives written out over the three walks. Every window's weights are kept in memory.

The `reference` backend is this module over gathers; second derivatives and forward mode are this module over
the walks of whichever backend runs. All tensors are in the dtype that accumulates; every function is
differentiable again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Pair(NamedTuple):
    """Keys or values: those of the windows, and the additional ones."""

    window: Tensor
    extra: Tensor | None


class Parts(NamedTuple):
    """Operands of an attention, or what belongs to each of them: gradients, tangents."""

    query: Tensor
    key: Pair
    value: Pair
    bias: Tensor | None


def accumulating(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(x: Tensor | None) -> Any:
    """`x` in the dtype that accumulates."""
    return None if x is None else x.to(accumulating(x.dtype))


def parts(query, key, value, bias=None, extra_key=None, extra_value=None) -> Parts:
    """The operands of an attention, or what belongs to each, in the dtype that accumulates."""
    keys, values = Pair(wide(key), wide(extra_key)), Pair(wide(value), wide(extra_value))
    return Parts(wide(query), keys, values, wide(bias))


class Walks(NamedTuple):
    """The walks of one window, extended to additional tokens: their weights follow the window's slots."""

    dot_window: Callable[[Tensor, Tensor, float], Tensor]
    mix_window: Callable[[Tensor, Tensor], Tensor]
    mix_back_window: Callable[[Tensor, Tensor], Tensor]
    spread: Callable[[Tensor], Tensor]
    tally_window: Callable[[Tensor], Tensor]
    slots: int

    def dot(self, x: Tensor, y: Pair, bias: Tensor | None = None, fill: float = 0.0) -> Tensor:
        """Products of every row with its keys, `[batch, *outputs, heads, slots + extra]`."""
        weights = self.dot_window(x, y.window, fill)
        if bias is not None:
            weights = weights + self.spread(bias)
        if y.extra is None:
            return weights
        return torch.cat([weights, dot_extra(x, y.extra)], -1)

    def mix(self, weights: Tensor, y: Pair) -> Tensor:
        """Weighted sums of every row's values."""
        out = self.mix_window(weights[..., : self.slots], y.window)
        return out if y.extra is None else out + mix_extra(weights[..., self.slots :], y.extra)

    def mix_back(self, weights: Tensor, x: Tensor, like: Pair) -> Pair:
        """Weighted sums of the rows that see each key; `like` says whether there are additional ones."""
        window = self.mix_back_window(weights[..., : self.slots], x)
        if like.extra is None:
            return Pair(window, None)
        rows, tail = (_grouped(t, like.extra.shape[-2]) for t in (x, weights[..., self.slots :]))
        return Pair(window, torch.einsum("bnhge,bnhgd->behd", tail, rows))

    def tally(self, weights: Tensor, bias: Tensor | None) -> Tensor | None:
        """Sum of the weights at each entry of the relative position table."""
        return None if bias is None else self.tally_window(weights[..., : self.slots])


def dot_extra(x: Tensor, extra: Tensor) -> Tensor:
    """Products of `[batch, *outputs, heads, dim]` with additional tokens `[batch, extra, kv_heads, dim]`."""
    weights = torch.einsum("bnhgd,behd->bnhge", _grouped(x, extra.shape[-2]), extra)
    return weights.reshape(*x.shape[:-1], extra.shape[1])


def mix_extra(weights: Tensor, extra: Tensor) -> Tensor:
    """Sums of additional tokens with weights `[batch, *outputs, heads, extra]`."""
    out = torch.einsum("bnhge,behd->bnhgd", _grouped(weights, extra.shape[-2]), extra)
    return out.reshape(*weights.shape[:-1], extra.shape[-1])


def attend(walks: Walks, at: Parts, scale: float) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp."""
    scores = walks.dot(at.query * scale, at.key, at.bias, -torch.inf)
    return walks.mix(scores.softmax(-1), at.value), scores.logsumexp(-1)


def attend_back(walks: Walks, at: Parts, grad_out: Tensor, grad_lse: Tensor, scale: float) -> Parts:
    """Gradients of `<out, grad_out> + <lse, grad_lse>`."""
    p = _probabilities(walks, at, scale)
    gain = walks.dot(grad_out, at.value)
    slope = p * (gain - _row_sum(p * gain) + grad_lse.unsqueeze(-1))
    return _score_grads(walks, at, slope, scale, walks.mix_back(p, grad_out, at.value))


def attend_jvp(walks: Walks, at: Parts, move: Parts, scale: float) -> tuple[Tensor, Tensor]:
    """Tangents of output and log-sum-exp along `move`."""
    p = _probabilities(walks, at, scale)
    scores = _score_tangent(walks, at, move, scale)
    mean = _row_sum(p * scores)
    out = walks.mix(p * (scores - mean), at.value) + walks.mix(p, move.value)
    return out, mean.squeeze(-1)


def attend_back_jvp(
    walks: Walks,
    at: Parts,
    grad_out: Tensor,
    grad_lse: Tensor,
    move: Parts,
    move_out: Tensor,
    move_lse: Tensor,
    scale: float,
) -> Parts:
    """Tangents of the gradients along `move` of the operands and `move_out`, `move_lse` of the cotangents."""
    p = _probabilities(walks, at, scale)
    scores = _score_tangent(walks, at, move, scale)
    p_move = p * (scores - _row_sum(p * scores))
    gain = walks.dot(grad_out, at.value)
    gain_move = walks.dot(move_out, at.value) + walks.dot(grad_out, move.value)
    delta = _row_sum(p * gain) - grad_lse.unsqueeze(-1)
    delta_move = _row_sum(p_move * gain + p * gain_move) - move_lse.unsqueeze(-1)
    slope = p * (gain - delta)
    slope_move = p_move * (gain - delta) + p * (gain_move - delta_move)
    values = _add(walks.mix_back(p_move, grad_out, at.value), walks.mix_back(p, move_out, at.value))
    along = _score_grads(walks, at, slope_move, scale, values)
    turned = _score_grads(walks, move._replace(bias=None), slope, scale, values)
    return along._replace(query=along.query + turned.query, key=_add(along.key, turned.key))


def attend_back_back(
    walks: Walks, at: Parts, grad_out: Tensor, grad_lse: Tensor, cotangents: Parts, scale: float
) -> tuple[Parts, Tensor, Tensor]:
    """Gradients of `<attend_back(...), cotangents>` for the operands, `grad_out` and `grad_lse`."""
    p = _probabilities(walks, at, scale)
    gain = walks.dot(grad_out, at.value)
    gain = gain - _row_sum(p * gain) + grad_lse.unsqueeze(-1)
    # What the gradients' cotangents ask of the slope is the score tangent along them.
    pull = _score_tangent(walks, at, cotangents, scale)
    mean = _row_sum(p * pull)
    pull = pull - mean
    # But for what is the same for all keys of a row: no score notices.
    p_grad = pull * gain + walks.dot(grad_out, cotangents.value)
    scores_grad = p * (p_grad - _row_sum(p * p_grad))
    slope, gain_grad = p * gain, p * pull
    del gain, pull, p_grad
    values = walks.mix_back(gain_grad, grad_out, at.value)
    through = _score_grads(walks, at, scores_grad, scale, values)
    turned = _score_grads(walks, cotangents._replace(bias=None), slope, scale, values)
    operands = through._replace(query=through.query + turned.query, key=_add(through.key, turned.key))
    return operands, walks.mix(gain_grad, at.value) + walks.mix(p, cotangents.value), mean.squeeze(-1)


def _probabilities(walks: Walks, at: Parts, scale: float) -> Tensor:
    return walks.dot(at.query * scale, at.key, at.bias, -torch.inf).softmax(-1)


def _score_tangent(walks: Walks, at: Parts, move: Parts, scale: float) -> Tensor:
    return walks.dot(move.query * scale, at.key, move.bias) + walks.dot(at.query * scale, move.key)


def _score_grads(walks: Walks, at: Parts, slope: Tensor, scale: float, values: Pair) -> Parts:
    """Gradients of `<scores, slope>`, with those of the values beside them."""
    slope_scaled = slope * scale
    return Parts(
        walks.mix(slope_scaled, at.key),
        walks.mix_back(slope_scaled, at.query, at.key),
        values,
        walks.tally(slope, at.bias),
    )


def _row_sum(weights: Tensor) -> Tensor:
    return weights.sum(-1, keepdim=True)


def _add(one: Pair, other: Pair) -> Pair:
    extra = None if one.extra is None or other.extra is None else one.extra + other.extra
    return Pair(one.window + other.window, extra)


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """`[batch, *outputs, heads, width]` to `[batch, tokens, kv_heads, group, width]`."""
    group = x.shape[-2] // kv_heads if kv_heads else 0
    return x.flatten(1, -3).unflatten(-2, (kv_heads, group))
