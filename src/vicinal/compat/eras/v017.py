"""NATTEN 0.17: windows per axis, causality; split operations heads first and unscaled, fused heads last."""

from collections.abc import Callable

from . import split
from .front import Array, Flags, Front, Sizes, given, named
from .v014 import Base


def functions(front: Front, rank: int, module: str) -> tuple[Callable, ...]:
    """`na#d_qk`, `na#d_av` and `na#d`."""
    (dot, mix), attend = split.operations(front, rank), front.ranked(rank)

    def qk(
        query: Array,
        key: Array,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        additional_keys: Array | None = None,
        is_causal: Flags | None = False,
        rpb: Array | None = None,
    ) -> Array:
        """Unscaled scores `[batch, heads, *spatial, slots + tokens]`, those of `additional_keys` last."""
        _refuse_causal_bias(is_causal, rpb is not None)
        return dot(query, key, kernel_size, dilation, is_causal, rpb, additional_keys)

    def av(
        attn: Array,
        value: Array,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        additional_values: Array | None = None,
        is_causal: Flags | None = False,
    ) -> Array:
        """Values summed with weights as the scores are laid out, `[batch, heads, *spatial, dim]`."""
        return mix(attn, value, kernel_size, dilation, is_causal, additional_values)

    def fused(
        query: Array,
        key: Array,
        value: Array,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        is_causal: Flags | None = False,
        rpb: Array | None = None,
        scale: float | None = None,
        additional_keys: Array | None = None,
        additional_values: Array | None = None,
        xformers_kwargs: dict | None = None,
    ) -> Array:
        """Neighborhood attention of heads-last arrays; `xformers_kwargs` has no use here."""
        _refuse_causal_bias(is_causal, rpb is not None)
        return attend(
            query,
            key,
            value,
            kernel_size,
            dilation=given(dilation, 1),
            is_causal=given(is_causal, False),
            scale=scale,
            bias=rpb,
            additional_keys=additional_keys,
            additional_values=additional_values,
        )

    return named(module, (f"na{rank}d_qk", f"na{rank}d_av", f"na{rank}d"), (qk, av, fused))


def deep_bias(na3d_qk: Callable, module: str) -> Callable:
    """`natten3dqkrpb`, which outlived 0.15 with one window argument."""

    def qkrpb(
        query: Array, key: Array, rpb: Array | None, kernel_size: Sizes, dilation: Sizes | None = 1
    ) -> Array:
        """`na3d_qk` by its older name and order."""
        return na3d_qk(query, key, kernel_size, dilation, rpb=rpb)

    return named(module, ("natten3dqkrpb",), (qkrpb,))[0]


def _refuse_causal_bias(is_causal: Flags | None, has_bias: bool) -> None:
    causal = any(is_causal) if isinstance(is_causal, (tuple, list)) else is_causal
    if causal and has_bias:
        raise NotImplementedError(
            "NATTEN 0.17 has no causal attention with relative position bias; vicinal has, as `bias`"
        )


class Layer(Base):
    """Layer of NATTEN 0.17: no padding of small inputs, relative position bias only if `rel_pos_bias`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        is_causal: Flags | None = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_experimental_ops: bool = False,
    ) -> None:
        _refuse_causal_bias(is_causal, rel_pos_bias)
        super().__init__(
            dim,
            num_heads,
            kernel_size,
            dilation=given(dilation, 1),
            is_causal=given(is_causal, False),
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            rel_pos_bias=rel_pos_bias,
        )
        self.attn_drop_rate, self.use_experimental_ops = attn_drop, use_experimental_ops
