"""NATTEN 0.14: heads first, no scale, odd windows given as one integer, relative position bias by default."""

from collections.abc import Callable
from functools import wraps

from torch import Tensor

from . import split
from .flops import add_natten_handle, av_1d_flop, av_flop, get_flops, qk_1d_rpb_flop, qk_rpb_flop
from .layers import NeighborhoodAttention1D, NeighborhoodAttention2D

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "add_natten_handle",
    "av_1d_flop",
    "av_flop",
    "get_flops",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "qk_1d_rpb_flop",
    "qk_rpb_flop",
]


def _sized_by(size: Callable[[Tensor], int], place: int) -> Callable[[Callable], Callable]:
    """Also take calls of releases before 0.14.6, which left `kernel_size` to the shape of one argument."""

    def widen(function: Callable) -> Callable:
        arguments = function.__code__.co_argcount

        @wraps(function)
        def either(*given, **named):
            if len(given) + len(named) == arguments - 1 and named.keys() <= {"dilation"}:
                *tensors, dilation = (*given, *named.values())
                return function(*tensors, size(tensors[place]), dilation)
            return function(*given, **named)

        return either

    return widen


def _functions(rank: int) -> tuple[Callable, ...]:
    @_sized_by(lambda rpb: (rpb.shape[-1] + 1) // 2, 2)
    def qkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int) -> Tensor:
        """Unscaled scores `[batch, heads, *spatial, kernel_size ** rank]`, biased if `rpb` is not None."""
        return split.qk(rank, query, key, kernel_size, dilation, bias=rpb)

    def qk(query: Tensor, key: Tensor, kernel_size: int, dilation: int) -> Tensor:
        """Unscaled scores `[batch, heads, *spatial, kernel_size ** rank]`."""
        return split.qk(rank, query, key, kernel_size, dilation)

    @_sized_by(lambda attn: round(attn.shape[-1] ** (1 / rank)), 0)
    def av(attn: Tensor, value: Tensor, kernel_size: int, dilation: int) -> Tensor:
        """Values of every window, `[batch, heads, *spatial, dim]`, summed with the weights `attn`."""
        return split.av(rank, attn, value, kernel_size, dilation)

    names = (f"natten{rank}dqkrpb", f"natten{rank}dqk", f"natten{rank}dav")
    return split.named(__name__, names, (qkrpb, qk, av))


natten1dqkrpb, natten1dqk, natten1dav = _functions(1)
natten2dqkrpb, natten2dqk, natten2dav = _functions(2)
