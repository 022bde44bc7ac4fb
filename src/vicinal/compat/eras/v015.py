"""NATTEN 0.15: 0.14 with a third axis, additional tokens, and the names `na*d_qk`, `na*d_av`."""

from collections.abc import Callable

from . import split
from .front import Array, Front, given, named
from .v014 import Padded


def functions(front: Front, rank: int, module: str) -> tuple[Callable, ...]:
    """`na#d_qk`, `na#d_qk_with_bias` and `na#d_av` of one and two axes."""
    dot, mix = split.operations(front, rank)

    def qk(
        query: Array, key: Array, kernel_size: int, dilation: int, additional_keys: Array | None = None
    ) -> Array:
        """Unscaled scores `[batch, heads, *spatial, slots + tokens]`, those of `additional_keys` last."""
        return dot(query, key, kernel_size, dilation, additional_keys=additional_keys)

    def qk_with_bias(
        query: Array,
        key: Array,
        bias: Array | None,
        kernel_size: int,
        dilation: int,
        additional_keys: Array | None = None,
    ) -> Array:
        """Unscaled scores with a relative position bias `[heads, *(2 * kernel_size - 1)]`."""
        return dot(query, key, kernel_size, dilation, False, bias, additional_keys)

    def av(
        attn: Array, value: Array, kernel_size: int, dilation: int, additional_values: Array | None = None
    ) -> Array:
        """Values summed with weights as the scores are laid out, `[batch, heads, *spatial, dim]`."""
        return mix(attn, value, kernel_size, dilation, additional_values=additional_values)

    return named(
        module, (f"na{rank}d_qk", f"na{rank}d_qk_with_bias", f"na{rank}d_av"), (qk, qk_with_bias, av)
    )


def deep(front: Front, module: str) -> tuple[Callable, ...]:
    """`na3d_qk`, `na3d_qk_with_bias`, `na3d_av` and `natten3dqkrpb`: the first axis has its own window."""
    dot, mix = split.operations(front, 3)

    def qk(
        query: Array,
        key: Array,
        kernel_size_d: int,
        kernel_size: int,
        dilation_d: int,
        dilation: int,
        additional_keys: Array | None = None,
    ) -> Array:
        """Unscaled scores of windows `kernel_size_d` deep and `kernel_size` high and wide."""
        sizes, dilations = _axes(kernel_size_d, kernel_size), _axes(dilation_d, dilation)
        return dot(query, key, sizes, dilations, additional_keys=additional_keys)

    def qk_with_bias(
        query: Array,
        key: Array,
        bias: Array | None,
        kernel_size_d: int,
        kernel_size: int,
        dilation_d: int,
        dilation: int,
        additional_keys: Array | None = None,
    ) -> Array:
        """Unscaled scores with a relative position bias `[heads, 2 * kernel_size_d - 1, ...]`."""
        sizes, dilations = _axes(kernel_size_d, kernel_size), _axes(dilation_d, dilation)
        return dot(query, key, sizes, dilations, False, bias, additional_keys)

    def av(
        attn: Array,
        value: Array,
        kernel_size_d: int,
        kernel_size: int,
        dilation_d: int,
        dilation: int,
        additional_values: Array | None = None,
    ) -> Array:
        """Values summed with weights as the scores are laid out."""
        sizes, dilations = _axes(kernel_size_d, kernel_size), _axes(dilation_d, dilation)
        return mix(attn, value, sizes, dilations, additional_values=additional_values)

    def qkrpb(
        query: Array,
        key: Array,
        rpb: Array | None,
        kernel_size_d: int,
        kernel_size: int,
        dilation_d: int,
        dilation: int,
    ) -> Array:
        """`na3d_qk_with_bias` by its older name."""
        return qk_with_bias(query, key, rpb, kernel_size_d, kernel_size, dilation_d, dilation)

    names = ("na3d_qk", "na3d_qk_with_bias", "na3d_av", "natten3dqkrpb")
    return named(module, names, (qk, qk_with_bias, av, qkrpb))


def _axes(first: int, others: int) -> tuple[int, int, int]:
    return first, others, others


class Deep(Padded):
    """`Padded` of three axes; `kernel_size_d` and `dilation_d` are for the first axis if not None."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        kernel_size_d: int | None = None,
        dilation: int | None = 1,
        dilation_d: int | None = None,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        depth, dilation = given(kernel_size_d, kernel_size), given(dilation, 1)
        apart = given(dilation_d, dilation)
        sizes, dilations = _axes(depth, kernel_size), _axes(apart, dilation)
        super().__init__(dim, num_heads, sizes, dilations, bias, qkv_bias, qk_scale, attn_drop, proj_drop)
        self.kernel_size_d, self.dilation_d = depth, apart
        self.window_size_d = depth * apart
