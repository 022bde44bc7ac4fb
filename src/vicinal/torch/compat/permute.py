"""`natten.token_permute`: tokens of a dilation group, and in it of a tile, put together."""

from math import prod

from torch import Tensor
from torch.nn.functional import pad


def token_permute_operation(
    tensor: Tensor,
    tile_shape: tuple[int, ...],
    dilation: tuple[int, ...] | None = None,
    flip_tiled_dims: bool = True,
    use_torch: bool = True,
) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
    """Tokens of `[batch, *spatial, heads, dim]` by dilation group and tile, zeros filling the last tiles.

    Args:
        flip_tiled_dims: put the first axis fastest, among groups, tiles and the tokens of a tile.

    Returns:
        `[batch * groups, tokens, heads, dim]`, the spatial shape before, and that of one group.
    """
    apart = (1,) * len(tile_shape) if dilation is None else tuple(dilation)
    layout = tuple(tensor.shape[1:-2])
    tiles = _tiles(layout, tile_shape, apart)
    missing = [n * t * d - length for n, t, d, length in zip(tiles, tile_shape, apart, layout, strict=True)]
    ends = [extent for axis in reversed(missing) for extent in (0, axis)]
    folded = pad(tensor, (0, 0, 0, 0, *ends))
    shape = [extent for axis in zip(tiles, tile_shape, apart, strict=True) for extent in axis]
    # [batch, (tiles, tile, dilation) of each axis, heads, dim]
    folded = folded.reshape(tensor.shape[0], *shape, *tensor.shape[-2:]).permute(
        _order(len(layout), flip_tiled_dims)
    )
    out = folded.reshape(tensor.shape[0] * prod(apart), prod(tiles) * prod(tile_shape), *tensor.shape[-2:])
    return out, layout, tuple(n * t for n, t in zip(tiles, tile_shape, strict=True))


def token_unpermute_operation(
    tensor: Tensor,
    token_layout_shape: tuple[int, ...],
    tile_shape: tuple[int, ...],
    dilation: tuple[int, ...] | None = None,
    flip_tiled_dims: bool = True,
    use_torch: bool = True,
) -> Tensor:
    """The inverse of `token_permute_operation`, for the spatial shape `token_layout_shape`."""
    rank = len(tile_shape)
    apart = (1,) * rank if dilation is None else tuple(dilation)
    tiles = _tiles(token_layout_shape, tile_shape, apart)
    order = _order(rank, flip_tiled_dims)
    shape = [extent for axis in zip(tiles, tile_shape, apart, strict=True) for extent in axis]
    permuted = [shape[place - 1] for place in order[1 : 3 * rank + 1]]
    back = sorted(range(len(order)), key=order.__getitem__)
    folded = tensor.reshape(-1, *permuted, *tensor.shape[-2:]).permute(back)
    whole = [n * t * d for n, t, d in zip(tiles, tile_shape, apart, strict=True)]
    out = folded.reshape(folded.shape[0], *whole, *tensor.shape[-2:])
    return out[(slice(None), *map(slice, token_layout_shape))].contiguous()


def _tiles(layout, tile_shape, apart) -> tuple[int, ...]:
    """Tiles of each axis of a dilation group."""
    return tuple(-(-length // (t * d)) for length, t, d in zip(layout, tile_shape, apart, strict=True))


def _order(rank: int, flip: bool) -> list[int]:
    """Batch, dilations, tiles, tile, heads, dim, from batch, (tiles, tile, dilation) per axis, heads, dim."""
    axes = list(range(rank))[:: -1 if flip else 1]
    places = [1 + 3 * axis + part for part in (2, 0, 1) for axis in axes]
    return [0, *places, 3 * rank + 1, 3 * rank + 2]
