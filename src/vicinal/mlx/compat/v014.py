"""NATTEN 0.14: heads first, no scale, odd windows given as one integer, relative position bias by default."""

from vicinal.compat.eras import v014

from .flops import add_natten_handle
from .front import FRONT
from .padded import NeighborhoodAttention1D, NeighborhoodAttention2D

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "add_natten_handle",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
]

natten1dqkrpb, natten1dqk, natten1dav = v014.functions(FRONT, 1, __name__)
natten2dqkrpb, natten2dqk, natten2dav = v014.functions(FRONT, 2, __name__)
