"""NATTEN 0.15: 0.14 with a third axis, additional tokens, and the names `na*d_qk`, `na*d_av`."""

from vicinal.compat.eras import v015

from . import switches
from .flops import (
    add_natten_handle,
    av_1d_flop,
    av_2d_flop,
    av_3d_flop,
    get_flops,
    qk_1d_rpb_flop,
    qk_2d_rpb_flop,
    qk_3d_rpb_flop,
)
from .front import FRONT
from .padded import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D
from .switches import *  # noqa: F403
from .v014 import natten1dqkrpb, natten2dqkrpb

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "add_natten_handle",
    "av_1d_flop",
    "av_2d_flop",
    "av_3d_flop",
    "get_flops",
    "na1d_av",
    "na1d_qk",
    "na1d_qk_with_bias",
    "na2d_av",
    "na2d_qk",
    "na2d_qk_with_bias",
    "na3d_av",
    "na3d_qk",
    "na3d_qk_with_bias",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "natten3dav",
    "natten3dqk",
    "natten3dqkrpb",
    "qk_1d_rpb_flop",
    "qk_2d_rpb_flop",
    "qk_3d_rpb_flop",
]
__all__ += switches.__all__

na1d_qk, na1d_qk_with_bias, na1d_av = v015.functions(FRONT, 1, __name__)
na2d_qk, na2d_qk_with_bias, na2d_av = v015.functions(FRONT, 2, __name__)
na3d_qk, na3d_qk_with_bias, na3d_av, natten3dqkrpb = v015.deep(FRONT, __name__)
natten1dqk, natten2dqk, natten3dqk = na1d_qk, na2d_qk, na3d_qk
natten1dav, natten2dav, natten3dav = na1d_av, na2d_av, na3d_av
