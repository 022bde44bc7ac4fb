"""`mx.vmap`: a batched axis becomes more heads, which every operator treats independently.

Heads rather than batch, because a bias has heads and no batch. Grouped queries stay with their keys: head
`v * H + h` of `V * H` heads belongs to key/value head `v * kv_heads + h // group`.
"""

import mlx.core as mx

# Where each array has its heads, counted from the end if negative; bias has them first.
TOKENS, ROWS, BIAS = -2, -1, 0


def fold(x: mx.array, batched: int | None, heads: int, size: int) -> mx.array:
    """Move the batched axis, or a new one, next to the heads and merge them."""
    x = mx.broadcast_to(x, (size, *x.shape)) if batched is None else mx.moveaxis(x, batched, 0)
    place = heads % (x.ndim - 1)
    return mx.moveaxis(x, 0, place).flatten(place, place + 1)


def unfold(x: mx.array, heads: int, size: int) -> mx.array:
    """The batched axis in front again."""
    place = heads % x.ndim
    apart = x.reshape(*x.shape[:place], size, x.shape[place] // size, *x.shape[place + 1 :])
    return mx.moveaxis(apart, place, 0)


def extent(inputs: tuple[mx.array, ...], axes: tuple[int | None, ...]) -> int:
    """Length of the batched axis."""
    return next(x.shape[axis] for x, axis in zip(inputs, axes, strict=True) if axis is not None)
