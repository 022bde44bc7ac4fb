"""Dense attention, `[batch, tokens, heads, dim]`; if causal, square.

MLX's fused kernels return no log-sum-exp, and on a CPU MLX has a composition in their place that keeps the
scores of all pairs. What they do not do is done here, some queries after others, so that memory grows with
tokens. Scores are in units of log 2.
"""

from collections.abc import Callable
from functools import lru_cache
from math import e, log, log2
from typing import Any

import mlx.core as mx

from .blocks import powers
from .composite import grouped
from .operands import wide
from .order import after

# Bytes of scores at once, of which there are several: best on a CPU, and enough for a GPU to be busy.
CPU_BUDGET, GPU_BUDGET = 1 << 22, 1 << 26


def attend(
    query: mx.array, key: mx.array, value: mx.array, is_causal: bool, scale: float, with_lse: bool
) -> tuple[mx.array, mx.array | None]:
    """Output `[batch, tokens, heads, value_dim]`, and log-sum-exp `[batch, tokens, heads]` if asked for."""
    rows = grouped(wide(query) * (scale * log2(e)), key.shape[-2]).transpose(0, 2, 3, 1, 4)
    columns = [wide(x).swapaxes(1, 2) for x in (key, value)]
    # [batch, heads, tokens] in order, from [batch, kv_heads, group, tokens].
    back = lambda x: x.flatten(1, 2).swapaxes(1, 2)  # noqa: E731
    if mx.default_device().type == mx.cpu:
        out, lse = _by_pieces(is_causal, CPU_BUDGET)(rows, *columns)
        return back(out).astype(query.dtype), back(lse) if with_lse else None
    heads_first = [x.swapaxes(1, 2) for x in (query, key, value)]
    mask = "causal" if is_causal else None
    out = mx.fast.scaled_dot_product_attention(*heads_first, scale=scale, mask=mask).swapaxes(1, 2)
    return out, back(_by_pieces(is_causal, GPU_BUDGET)(rows, columns[0])[0]) if with_lse else None


@lru_cache
def _by_pieces(is_causal: bool, budget: int) -> Callable[..., Any]:
    """Attention of `[batch, kv_heads, group, rows, dim]` scaled queries to `[batch, kv_heads, columns, dim]`
    keys; without values, the log-sum-exp alone.

    Every piece waits for the one before, forward and backward, which keeps no scores.
    """

    @mx.custom_function
    def attend(query, key, *value):
        outs, lses = [], []
        for piece in _pieces(query, key, budget):
            (rows,) = after([query[..., piece, :]], [*outs[-1:], *lses[-1:]])
            scores = _scores(rows, key, piece.start if is_causal else None)
            # Of no consequence to results, and MLX knows no second derivative of a maximum.
            top = mx.stop_gradient(scores.max(-1, keepdims=True))
            weights = powers(scores - top)
            total = weights.sum(-1, keepdims=True)
            outs += [_rows(weights, value[0], rows.shape) / total for _ in value]
            lses.append((top + mx.log2(total))[..., 0] * log(2))
        lse = mx.concatenate(lses, -1)
        return (mx.concatenate(outs, -2), lse) if value else (lse,)

    @attend.vjp
    def back(primals, cotangents, _):
        query, key, *value = primals
        flows, grads, totals = tuple(cotangents), [], []
        for piece in _pieces(query, key, budget):
            rows, *flow = after(
                [query[..., piece, :], *(_part(x, piece) for x in flows)], [*grads[-1:], *totals]
            )
            scores = _scores(rows, key, piece.start if is_causal else None)
            weights = mx.softmax(scores * log(2), -1)
            slope = flow[-1][..., None]
            mine = []
            if value:
                gain = _scores(flow[0], value[0], None)
                slope = gain - (weights * gain).sum(-1, keepdims=True) + slope
                mine = [_columns(weights, flow[0])]
            # Of scores in units of log 2, as queries are scaled for.
            slope = weights * slope * log(2)
            grads.append(_rows(slope, key, rows.shape))
            mine = [_columns(slope, rows), *mine]
            totals = mine if not totals else [x + y for x, y in zip(totals, mine, strict=True)]
        return mx.concatenate(grads, -2), *totals

    return attend


def _pieces(query: mx.array, key: mx.array, budget: int) -> list[slice]:
    """Rows whose scores fit into the budget."""
    count, rows = query.shape[-2], query.size // max(query.shape[-1] * query.shape[-2], 1)
    step = max(1, budget // (4 * max(1, rows * key.shape[-2])))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)] or [slice(0, 0)]


def _part(flow: mx.array, piece: slice) -> mx.array:
    """Rows of what flows into an output, or a log-sum-exp, which has no last axis."""
    return flow[:, :, :, piece]


def _scores(rows: mx.array, columns: mx.array, first: int | None) -> mx.array:
    """`[batch, kv_heads, group, rows, columns]`; causal from row `first` on, if given."""
    flat = rows.flatten(2, 3) @ columns.swapaxes(-1, -2)
    scores = flat.reshape(*rows.shape[:-1], columns.shape[-2])
    if first is None:
        return scores
    hidden = mx.arange(columns.shape[-2]) > mx.arange(first, first + rows.shape[-2])[:, None]
    return mx.where(hidden, -float("inf"), scores)


def _rows(weights: mx.array, columns: mx.array, shape: tuple[int, ...]) -> mx.array:
    """Sums of columns for each row of a `[..., rows, width]` of `shape`."""
    return (weights.flatten(2, 3) @ columns).reshape(*shape[:-1], columns.shape[-1])


def _columns(weights: mx.array, rows: mx.array) -> mx.array:
    """Sums of rows for each column."""
    return weights.flatten(2, 3).swapaxes(-1, -2) @ rows.flatten(2, 3)
