"""NATTEN's formulas for operations, from 0.17 on: two a multiply-add unless asked otherwise.

Every window counts in full, also where causality hides keys.
"""

from collections.abc import Sequence
from math import prod


def _pairs(shape: Sequence[int], kernel_size: Sequence[int], is_heads_last: bool) -> int:
    """Scores of an input `[batch, *spatial, heads, dim]`, or heads first."""
    *spatial, heads = shape[1:-1] if is_heads_last else (*shape[2:-1], shape[1])
    if len(kernel_size) != len(spatial):
        raise ValueError(
            f"kernel_size {tuple(kernel_size)} has {len(kernel_size)} entries for {len(spatial)} spatial "
            f"axes of shape {tuple(shape)}; pass one per axis"
        )
    return shape[0] * heads * prod(spatial) * prod(kernel_size)


def na_qk_flop_count(
    q_shape: Sequence[int],
    k_shape: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Operations of the scores of a neighborhood attention."""
    return _pairs(q_shape, kernel_size, is_heads_last) * q_shape[-1] * (1 if return_macs else 2)


def na_av_flop_count(
    a_shape: Sequence[int],
    v_shape: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Operations of the weighted sums of a neighborhood attention."""
    return _pairs(v_shape, kernel_size, is_heads_last) * v_shape[-1] * (1 if return_macs else 2)


def fna_flop_count(
    q_shape: Sequence[int],
    k_shape: Sequence[int],
    v_shape: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Operations of a fused neighborhood attention."""
    rest = (kernel_size, dilation, is_causal, is_heads_last, return_macs)
    return na_qk_flop_count(q_shape, k_shape, *rest) + na_av_flop_count(q_shape, v_shape, *rest)
