"""The functions whose names carry a rank."""

from ..ranks import pinned
from .functional import av, neighborhood_attention, qk
from .varlen import neighborhood_attention_varlen

na1d = pinned(1, "na1d", neighborhood_attention, "query")
na2d = pinned(2, "na2d", neighborhood_attention, "query")
na3d = pinned(3, "na3d", neighborhood_attention, "query")
na1d_qk = pinned(1, "na1d_qk", qk, "query")
na2d_qk = pinned(2, "na2d_qk", qk, "query")
na3d_qk = pinned(3, "na3d_qk", qk, "query")
na1d_av = pinned(1, "na1d_av", av, "attention_weights")
na2d_av = pinned(2, "na2d_av", av, "attention_weights")
na3d_av = pinned(3, "na3d_av", av, "attention_weights")
na1d_varlen = pinned(1, "na1d_varlen", neighborhood_attention_varlen, "query")
na2d_varlen = pinned(2, "na2d_varlen", neighborhood_attention_varlen, "query")
na3d_varlen = pinned(3, "na3d_varlen", neighborhood_attention_varlen, "query")
