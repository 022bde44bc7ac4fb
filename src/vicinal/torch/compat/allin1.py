"""`extras.allin1` of natten-mps: split operations with relative position bias, heads last."""

from vicinal.compat.eras import allin1

from .front import FRONT

na1d_qk_rpb, na1d_av_fused = allin1.functions(FRONT, 1, __name__)
na2d_qk_rpb, na2d_av_fused = allin1.functions(FRONT, 2, __name__)
natten1dqkrpb, natten1dav = allin1.older(1, na1d_qk_rpb, na1d_av_fused, __name__)
natten2dqkrpb, natten2dav = allin1.older(2, na2d_qk_rpb, na2d_av_fused, __name__)
