"""MLX, to the translations of `vicinal.compat.eras`."""

from collections.abc import Sequence

import mlx.core as mx

import vicinal.mlx as na
from vicinal.compat.eras.front import Front


def _pad(x: mx.array, ends: Sequence[int]) -> mx.array:
    return mx.pad(x, [(0, end) for end in ends])


def _integers(values: list[int], like: mx.array) -> mx.array:
    return mx.array(values, mx.int32)


FRONT = Front(na, mx.moveaxis, mx.transpose, mx.concatenate, _pad, _integers)
