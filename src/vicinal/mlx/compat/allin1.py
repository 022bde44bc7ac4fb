"""`extras.allin1` of natten-mlx: split operations with relative position bias; oldest names heads first."""

from vicinal.compat.eras import allin1

from . import v014
from .front import FRONT

na1d_qk_rpb, na1d_av_fused = allin1.functions(FRONT, 1, __name__)
na2d_qk_rpb, na2d_av_fused = allin1.functions(FRONT, 2, __name__)
natten1dqkrpb, natten1dav = allin1.older(1, v014.natten1dqkrpb, v014.natten1dav, __name__)
natten2dqkrpb, natten2dav = allin1.older(2, v014.natten2dqkrpb, v014.natten2dav, __name__)
