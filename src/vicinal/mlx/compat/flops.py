"""NATTEN's formulas for operations; fvcore, whose counter older NATTEN fills, counts PyTorch alone."""

from typing import Any

from vicinal.compat.eras.counts import fna_flop_count, na_av_flop_count, na_qk_flop_count

__all__ = ["add_natten_handle", "fna_flop_count", "na_av_flop_count", "na_qk_flop_count"]


def add_natten_handle(flop_ctr: Any) -> Any:
    """Return the counter as it is, as natten-mlx does: it never meets an operation of MLX."""
    return flop_ctr
