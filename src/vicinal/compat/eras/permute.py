"""`natten.token_permute`: tokens of a dilation group, and in it of a tile, put together."""

from collections.abc import Callable
from math import prod

from .front import Array, Front, named


def functions(front: Front, module: str) -> tuple[Callable, ...]:
    """`token_permute_operation` and `token_unpermute_operation`."""

    def permute(
        tensor: Array,
        tile_shape: tuple[int, ...],
        dilation: tuple[int, ...] | None = None,
        flip_tiled_dims: bool = True,
        use_torch: bool = True,
    ) -> tuple[Array, tuple[int, ...], tuple[int, ...]]:
        """Tokens of `[batch, *spatial, heads, dim]` by dilation group and tile, zeros filling the last tiles.

        Args:
            flip_tiled_dims: put the first axis fastest, among groups, tiles and the tokens of a tile.

        Returns:
            `[batch * groups, tokens, heads, dim]`, the spatial shape before, and that of one group.
        """
        apart = _apart(tile_shape, dilation)
        batch, layout, rest = tensor.shape[0], tuple(tensor.shape[1:-2]), tensor.shape[-2:]
        tiles = _tiles(layout, tile_shape, apart)
        axes = tuple(zip(tiles, tile_shape, apart, strict=True))
        missing = [prod(axis) - length for axis, length in zip(axes, layout, strict=True)]
        folded = front.pad(tensor, (0, *missing, 0, 0))
        # [batch, (tiles, tile, dilation) of each axis, heads, dim]
        folded = folded.reshape(batch, *(extent for axis in axes for extent in axis), *rest)
        folded = front.permute(folded, _order(len(layout), flip_tiled_dims))
        out = folded.reshape(batch * prod(apart), prod(tiles) * prod(tile_shape), *rest)
        return out, layout, tuple(n * t for n, t, _ in axes)

    def unpermute(
        tensor: Array,
        token_layout_shape: tuple[int, ...],
        tile_shape: tuple[int, ...],
        dilation: tuple[int, ...] | None = None,
        flip_tiled_dims: bool = True,
        use_torch: bool = True,
    ) -> Array:
        """The inverse of `token_permute_operation`, for the spatial shape `token_layout_shape`."""
        apart, rank = _apart(tile_shape, dilation), len(tile_shape)
        axes = tuple(zip(_tiles(token_layout_shape, tile_shape, apart), tile_shape, apart, strict=True))
        order = _order(rank, flip_tiled_dims)
        shape = [extent for axis in axes for extent in axis]
        permuted = [shape[place - 1] for place in order[1 : 3 * rank + 1]]
        batch, rest = tensor.shape[0] // prod(apart), tensor.shape[-2:]
        back = sorted(range(len(order)), key=order.__getitem__)
        folded = front.permute(tensor.reshape(batch, *permuted, *rest), back)
        out = folded.reshape(batch, *map(prod, axes), *rest)
        return out[(slice(None), *map(slice, token_layout_shape))]

    names = ("token_permute_operation", "token_unpermute_operation")
    return named(module, names, (permute, unpermute))


def _apart(tile_shape: tuple[int, ...], dilation: tuple[int, ...] | None) -> tuple[int, ...]:
    return (1,) * len(tile_shape) if dilation is None else tuple(dilation)


def _tiles(layout: tuple[int, ...], tile_shape: tuple[int, ...], apart: tuple[int, ...]) -> tuple[int, ...]:
    """Tiles of each axis of a dilation group."""
    return tuple(-(-length // (t * d)) for length, t, d in zip(layout, tile_shape, apart, strict=True))


def _order(rank: int, flip: bool) -> list[int]:
    """Batch, dilations, tiles, tile, heads, dim, from batch, (tiles, tile, dilation) per axis, heads, dim."""
    axes = list(range(rank))[:: -1 if flip else 1]
    places = [1 + 3 * axis + part for part in (2, 0, 1) for axis in axes]
    return [0, *places, 3 * rank + 1, 3 * rank + 2]
