"""NATTEN 0.20 and 0.21: heads last, `stride` shares windows, log-sum-exp, packed sequences, fused only."""

import vicinal.mlx as na
from vicinal.compat.eras import knobs, packed, permute, v020, varlen
from vicinal.compat.eras.knobs import *  # noqa: F403
from vicinal.compat.eras.varlen import configure_varlen

from . import switches
from .front import FRONT
from .switches import *  # noqa: F403

__all__ = [
    "HAS_LIBNATTEN",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "attention",
    "configure_varlen",
    "generate_varlen_parameters",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention_generic",
    "neighborhood_attention_varlen",
    "token_permute_operation",
    "token_unpermute_operation",
]
__all__ += knobs.__all__
__all__ += switches.__all__

HAS_LIBNATTEN = True


class NeighborhoodAttention1D(v020.Layer, na.NeighborhoodAttention1D):
    __doc__ = v020.Layer.__doc__


class NeighborhoodAttention2D(v020.Layer, na.NeighborhoodAttention2D):
    __doc__ = v020.Layer.__doc__


class NeighborhoodAttention3D(v020.Layer, na.NeighborhoodAttention3D):
    __doc__ = v020.Layer.__doc__


na1d, na2d, na3d, neighborhood_attention_generic = v020.functions(FRONT, __name__)
merge_attentions = v020.merging(FRONT, __name__)
attention, generate_varlen_parameters = packed.functions(FRONT, __name__)
neighborhood_attention_varlen = varlen.attending(FRONT, __name__)
token_permute_operation, token_unpermute_operation = permute.functions(FRONT, __name__)
