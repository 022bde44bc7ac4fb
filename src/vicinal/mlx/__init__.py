"""Neighborhood attention for MLX: `import vicinal.mlx as na`."""

from ..dispatch import UnsupportedProblem
from ..settings import using
from .checkpoint import load_torch_state
from .functional import attention, av, neighborhood_attention, qk
from .merge import merge_attentions
from .modules import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D
from .ranked import (
    na1d,
    na1d_av,
    na1d_qk,
    na1d_varlen,
    na2d,
    na2d_av,
    na2d_qk,
    na2d_varlen,
    na3d,
    na3d_av,
    na3d_qk,
    na3d_varlen,
)
from .support import refusals
from .varlen import VarlenLayout, neighborhood_attention_packed, neighborhood_attention_varlen

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "UnsupportedProblem",
    "VarlenLayout",
    "attention",
    "av",
    "load_torch_state",
    "merge_attentions",
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na1d_varlen",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na2d_varlen",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "na3d_varlen",
    "neighborhood_attention",
    "neighborhood_attention_packed",
    "neighborhood_attention_varlen",
    "qk",
    "refusals",
    "using",
]
