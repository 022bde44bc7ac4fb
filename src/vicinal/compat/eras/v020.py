"""NATTEN 0.20 and 0.21: heads last, `stride` shares windows, log-sum-exp, fused only."""

from collections.abc import Callable

from . import knobs
from .front import Array, Flags, Front, Sizes, given, named
from .v014 import Base


def functions(front: Front, module: str) -> tuple[Callable, ...]:
    """`na1d`, `na2d`, `na3d` and `neighborhood_attention_generic`."""
    ranked = [_function(f"na{rank}d", front.ranked(rank), module) for rank in (1, 2, 3)]
    generic = _function("neighborhood_attention_generic", front.na.neighborhood_attention, module)
    return *ranked, generic


def _function(name: str, function: Callable, module: str) -> Callable:
    def attend(
        query: Array,
        key: Array,
        value: Array,
        kernel_size: Sizes,
        stride: Sizes | None = 1,
        dilation: Sizes | None = 1,
        is_causal: Flags | None = False,
        scale: float | None = None,
        additional_keys: Array | None = None,
        additional_values: Array | None = None,
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
        knobs.check(query.ndim - 3, backend, kernel_schedule, tiles, backward_kv_splits, flags)
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

    return named(module, (name,), (attend,))[0]


def merging(front: Front, module: str) -> Callable:
    """`merge_attentions`."""

    def merge(
        outputs: list[Array],
        lse_tensors: list[Array],
        torch_compile: bool = True,
        use_autograd_fix: bool = True,
    ) -> tuple[Array, Array]:
        """The attention over all keys from attentions over parts of them; the flags change nothing."""
        return front.na.merge_attentions(outputs, lse_tensors)

    return named(module, ("merge_attentions",), (merge,))[0]


def _defaults(stride: Sizes | None, dilation: Sizes | None, is_causal: Flags | None) -> dict:
    """Window arguments, where None is the default."""
    return {
        "stride": given(stride, 1),
        "dilation": given(dilation, 1),
        "is_causal": given(is_causal, False),
    }


class Layer(Base):
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
