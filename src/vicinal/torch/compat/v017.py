"""NATTEN 0.17: windows per axis, causality; split operations heads first and unscaled, fused heads last."""

import vicinal.torch as na
from vicinal.compat.eras import v017

from . import switches
from .flops import add_natten_handle, fna_flop_count, get_flops, na_av_flop_count, na_qk_flop_count
from .front import FRONT
from .switches import *  # noqa: F403
from .v014 import natten1dqkrpb, natten2dqkrpb

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "add_natten_handle",
    "fna_flop_count",
    "get_flops",
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "na_av_flop_count",
    "na_qk_flop_count",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "natten3dav",
    "natten3dqk",
    "natten3dqkrpb",
]
__all__ += switches.__all__


class NeighborhoodAttention1D(v017.Layer, na.NeighborhoodAttention1D):
    __doc__ = v017.Layer.__doc__


class NeighborhoodAttention2D(v017.Layer, na.NeighborhoodAttention2D):
    __doc__ = v017.Layer.__doc__


class NeighborhoodAttention3D(v017.Layer, na.NeighborhoodAttention3D):
    __doc__ = v017.Layer.__doc__


na1d_qk, na1d_av, na1d = v017.functions(FRONT, 1, __name__)
na2d_qk, na2d_av, na2d = v017.functions(FRONT, 2, __name__)
na3d_qk, na3d_av, na3d = v017.functions(FRONT, 3, __name__)
natten1dqk, natten2dqk, natten3dqk = na1d_qk, na2d_qk, na3d_qk
natten1dav, natten2dav, natten3dav = na1d_av, na2d_av, na3d_av
natten3dqkrpb = v017.deep_bias(na3d_qk, __name__)
