"""NATTEN 0.20 and 0.21: heads last, `stride` shares windows, log-sum-exp, packed sequences, fused only."""

from collections.abc import Callable

from torch import Tensor

import vicinal.torch as na

from . import fused, split, switches
from .fused import *  # noqa: F403
from .layers import Layer
from .packed import attention, generate_varlen_parameters
from .permute import token_permute_operation, token_unpermute_operation
from .split import Flags, Sizes, given
from .switches import *  # noqa: F403
from .varlen import configure_varlen, neighborhood_attention_varlen

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
__all__ += fused.__all__
__all__ += switches.__all__

HAS_LIBNATTEN = True


class _Layer(Layer):
    """Layer of NATTEN 0.20 and later; parameters `qkv` and `proj`."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: Sizes,
        stride: Sizes | None = 1,
        dilation: Sizes | None = 1,
        is_causal: Flags | None = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            kernel_size,
            **_defaults(stride, dilation, is_causal),
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            proj_drop=proj_drop,
        )
        self.na_dim = self.rank


class NeighborhoodAttention1D(_Layer, na.NeighborhoodAttention1D):
    __doc__ = _Layer.__doc__


class NeighborhoodAttention2D(_Layer, na.NeighborhoodAttention2D):
    __doc__ = _Layer.__doc__


class NeighborhoodAttention3D(_Layer, na.NeighborhoodAttention3D):
    __doc__ = _Layer.__doc__


def _defaults(stride, dilation, is_causal) -> dict:
    """Window arguments, where None is the default."""
    return {
        "stride": given(stride, 1),
        "dilation": given(dilation, 1),
        "is_causal": given(is_causal, False),
    }


def _function(name: str, function: Callable) -> Callable:
    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: Sizes,
        stride: Sizes | None = 1,
        dilation: Sizes | None = 1,
        is_causal: Flags | None = False,
        scale: float | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        attention_kwargs: dict | None = None,
        backend: str | None = None,
        q_tile_shape=None,
        kv_tile_shape=None,
        backward_q_tile_shape=None,
        backward_kv_tile_shape=None,
        backward_kv_splits=None,
        backward_use_pt_reduction: bool = False,
        run_persistent_kernel: bool = True,
        kernel_schedule=None,
        torch_compile: bool = False,
        return_lse: bool = False,
    ):
        """Neighborhood attention; from `attention_kwargs` to `torch_compile` nothing changes a number."""
        tiles = (q_tile_shape, kv_tile_shape, backward_q_tile_shape, backward_kv_tile_shape)
        flags = (backward_use_pt_reduction, run_persistent_kernel, torch_compile)
        fused.check(query.dim() - 3, backend, kernel_schedule, tiles, backward_kv_splits, flags)
        return function(
            query,
            key,
            value,
            kernel_size,
            **_defaults(stride, dilation, is_causal),
            scale=scale,
            additional_keys=additional_keys,
            additional_values=additional_values,
            return_lse=return_lse,
        )

    return split.named(__name__, (name,), (attend,))[0]


neighborhood_attention_generic = _function("neighborhood_attention_generic", na.neighborhood_attention)
na1d, na2d, na3d = (_function(f.__name__, f) for f in (na.na1d, na.na2d, na.na3d))


def merge_attentions(
    outputs: list[Tensor],
    lse_tensors: list[Tensor],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[Tensor, Tensor]:
    """The attention over all keys from attentions over parts of them; the flags change nothing."""
    return na.merge_attentions(outputs, lse_tensors)
