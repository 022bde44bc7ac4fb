"""Neighborhood attention by brute force in float64, from the definition; imports nothing of the library.

Layout is `[batch, *spatial, heads, dim]`. Everything goes through a dense table of visible pairs, so keep
inputs small.
"""

from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """A window, one entry per axis in each tuple."""

    kernel_size: tuple
    stride: tuple
    dilation: tuple
    is_causal: tuple
    output_stride: tuple


def window(rank, kernel_size, stride=1, dilation=1, is_causal=False, output_stride=1):
    spread = lambda value: tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank  # noqa: E731
    return Window(*map(spread, (kernel_size, stride, dilation, is_causal, output_stride)))


def visible(length, kernel_size, stride, dilation, is_causal, token):
    """Keys that the query at `token` sees on one axis, in order: slot `s` of its window is entry `s`."""
    siblings = [other for other in range(length) if other % dilation == token % dilation]
    at = siblings.index(token)
    # Queries come in blocks of `stride`; the leader is the block's middle, or its end where axes are causal.
    block = [at // stride * stride + step for step in range(stride)]
    leader = min(block[-1] if is_causal else block[stride // 2], len(siblings) - 1)
    if is_causal:
        return [key for place, key in enumerate(siblings) if leader - kernel_size < place <= at]
    left = leader - kernel_size // 2
    while left < 0:
        left += 1
    while left + kernel_size > len(siblings):
        left -= 1
    return siblings[left : left + kernel_size]


def pairs(lengths, win):
    """Flat output and key indices, slot and per-axis relative position of every visible pair."""
    outputs = [range(0, length, step) for length, step in zip(lengths, win.output_stride, strict=True)]
    found = []
    for flat, tokens in enumerate(product(*outputs)):
        per_axis = []
        for axis, token in enumerate(tokens):
            rule = [part[axis] for part in win[:4]]
            per_axis.append(list(enumerate(visible(lengths[axis], *rule, token))))
        for choice in product(*per_axis):
            slot = key = 0
            for axis, (place, index) in enumerate(choice):
                slot = slot * win.kernel_size[axis] + place
                key = key * lengths[axis] + index
            relative = tuple(
                (index - tokens[axis]) // win.dilation[axis] + win.kernel_size[axis] - 1
                for axis, (_, index) in enumerate(choice)
            )
            found.append((flat, key, slot, relative))
    return found


class Answer(NamedTuple):
    """Outputs and gradients; what was not asked for is None."""

    out: np.ndarray
    lse: np.ndarray
    query: np.ndarray | None = None
    key: np.ndarray | None = None
    value: np.ndarray | None = None
    bias: np.ndarray | None = None
    extra_key: np.ndarray | None = None
    extra_value: np.ndarray | None = None


def attend(
    query, key, value, win, scale, bias=None, extra_key=None, extra_value=None, grad_out=None, grad_lse=None
):
    """Fused attention. `query` holds all tokens; only those at multiples of `output_stride` give outputs.

    With `grad_out` (and `grad_lse`) the gradients of `sum(out * grad_out) + sum(lse * grad_lse)` come too.
    """
    arrays = [
        None if x is None else np.asarray(x, np.float64)
        for x in (query, key, value, bias, extra_key, extra_value)
    ]
    query, key, value, bias, extra_key, extra_value = arrays
    batch, *lengths, heads, dim = query.shape
    kv_heads, value_dim = value.shape[-2:]
    sampled = query[(slice(None), *(slice(None, None, step) for step in win.output_stride))]
    outputs = sampled.shape[1:-2]
    q = sampled.reshape(batch, -1, heads, dim).transpose(0, 2, 1, 3)
    k, v = (_whole(x, extra, heads) for x, extra in ((key, extra_key), (value, extra_value)))
    found = pairs(lengths, win)
    seen = np.zeros((prod(outputs), k.shape[2]), bool)
    seen[:, prod(lengths) :] = True
    added = np.zeros((heads, *seen.shape))
    for row, column, _, relative in found:
        seen[row, column] = True
        if bias is not None:
            added[:, row, column] = bias[(slice(None), *relative)]
    scores = np.where(seen, scale * (q @ k.swapaxes(-1, -2)) + added, -np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    weights /= total
    lse = (top + np.log(total))[..., 0]
    shape = lambda x: x.transpose(0, 2, 1, 3).reshape(batch, *outputs, heads, -1)  # noqa: E731
    out, lse_out = shape(weights @ v), lse.transpose(0, 2, 1).reshape(batch, *outputs, heads)
    if grad_out is None and grad_lse is None:
        return Answer(out, lse_out)
    do = np.zeros_like(out) if grad_out is None else np.asarray(grad_out, np.float64)
    do = do.reshape(batch, -1, heads, value_dim).transpose(0, 2, 1, 3)
    slope = weights * (do @ v.swapaxes(-1, -2))
    slope -= weights * slope.sum(-1, keepdims=True)
    if grad_lse is not None:
        slope += (
            weights * np.asarray(grad_lse, np.float64).reshape(batch, -1, heads).transpose(0, 2, 1)[..., None]
        )
    dq = np.zeros_like(query)
    dq[(slice(None), *(slice(None, None, step) for step in win.output_stride))] = shape(scale * (slope @ k))
    tokens = prod(lengths)
    dk = _grouped(scale * (slope.swapaxes(-1, -2) @ q), kv_heads)
    dv = _grouped(weights.swapaxes(-1, -2) @ do, kv_heads)
    dbias = None
    if bias is not None:
        dbias = np.zeros_like(bias)
        for row, column, _, relative in found:
            dbias[(slice(None), *relative)] += slope[:, :, row, column].sum(0)
    tail = (None, None) if extra_key is None else (dk[:, tokens:], dv[:, tokens:])
    return Answer(
        out, lse_out, dq, dk[:, :tokens].reshape(key.shape), dv[:, :tokens].reshape(value.shape), dbias, *tail
    )


def dot(x, y, win, scale=1.0, bias=None, fill=-np.inf):
    """`[batch, *outputs, heads, slots]`: scaled products of each row of `x` with the keys of its window."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    batch, *lengths, _, dim = y.shape
    outputs, heads = x.shape[1:-2], x.shape[-2]
    rows = x.reshape(batch, -1, heads, dim)
    columns = np.repeat(y, heads // y.shape[-2], -2).reshape(batch, -1, heads, dim)
    w = np.full((batch, prod(outputs), heads, prod(win.kernel_size)), float(fill))
    for row, column, slot, relative in pairs(lengths, win):
        w[:, row, :, slot] = scale * (rows[:, row] * columns[:, column]).sum(-1)
        if bias is not None:
            w[:, row, :, slot] += bias[(slice(None), *relative)]
    return w.reshape(batch, *outputs, heads, -1)


def mix(w, y, win):
    """`[batch, *outputs, heads, dim]`: values `y` of each window, summed with weights `w`."""
    w, y = np.asarray(w, np.float64), np.asarray(y, np.float64)
    batch, *lengths, _, dim = y.shape
    outputs, heads = w.shape[1:-2], w.shape[-2]
    columns = np.repeat(y, heads // y.shape[-2], -2).reshape(batch, -1, heads, dim)
    flat = w.reshape(batch, -1, heads, w.shape[-1])
    out = np.zeros((batch, prod(outputs), heads, dim))
    for row, column, slot, _ in pairs(lengths, win):
        out[:, row] += flat[:, row, :, slot, None] * columns[:, column]
    return out.reshape(batch, *outputs, heads, dim)


def mix_back(w, x, lengths, kv_heads, win):
    """`[batch, *spatial, kv_heads, dim]`: rows of `x` that see each key, summed with weights `w`."""
    w, x = np.asarray(w, np.float64), np.asarray(x, np.float64)
    batch, heads, dim = x.shape[0], x.shape[-2], x.shape[-1]
    rows, flat = x.reshape(batch, -1, heads, dim), w.reshape(batch, -1, heads, w.shape[-1])
    out = np.zeros((batch, prod(lengths), heads, dim))
    for row, column, slot, _ in pairs(lengths, win):
        out[:, column] += flat[:, row, :, slot, None] * rows[:, row]
    return out.reshape(batch, *lengths, kv_heads, heads // kv_heads, dim).sum(-2)


def _whole(x, extra, heads):
    flat = x.reshape(x.shape[0], -1, *x.shape[-2:])
    if extra is not None:
        flat = np.concatenate([flat, extra], 1)
    return np.repeat(flat, heads // x.shape[-2], -2).transpose(0, 2, 1, 3)


def _grouped(x, kv_heads):
    batch, heads, tokens, dim = x.shape
    return x.reshape(batch, kv_heads, heads // kv_heads, tokens, dim).sum(2).transpose(0, 2, 1, 3)
