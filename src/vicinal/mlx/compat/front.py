"""MLX, to the translations of `vicinal.compat.eras`."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import mlx.core as mx

import vicinal.mlx as na
from vicinal.compat.eras.front import Front


def _pad(x: mx.array, ends: Sequence[int]) -> mx.array:
    return mx.pad(x, [(0, end) for end in ends])


def _integers(values: list[int], like: mx.array) -> mx.array:
    return mx.array(values, mx.int32)


def _packed(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    shapes: Sequence[Sequence[int]],
    window: dict[str, Any],
    scale: float | None,
) -> tuple[mx.array, mx.array]:
    parts = []
    for (start, stop), shape in zip(pairwise(accumulate(map(prod, shapes), initial=0)), shapes, strict=True):
        q, k, v = (x[start:stop].reshape(1, *shape, *x.shape[1:]) for x in (query, key, value))
        found = na.neighborhood_attention(q, k, v, **window, scale=scale, return_lse=True)
        parts.append([x.flatten(0, len(shape)) for x in found])
    out, lse = (mx.concatenate(list(found)) for found in zip(*parts, strict=True))
    return out, lse


FRONT = Front(na, mx.moveaxis, mx.transpose, mx.concatenate, _pad, _integers, _packed)
