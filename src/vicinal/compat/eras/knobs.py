"""Knobs of NATTEN 0.20 and 0.21, backends by name and tiles: checked, then left aside.

Plans here come from the problem, so there is nothing to choose: the lists of configurations are empty, as
NATTEN's are where no kernel fits.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any

from .front import Array

__all__ = [
    "get_bwd_configs_for_cutlass_blackwell_fmha",
    "get_bwd_configs_for_cutlass_blackwell_fna",
    "get_bwd_configs_for_cutlass_fmha",
    "get_bwd_configs_for_cutlass_fna",
    "get_bwd_configs_for_cutlass_hopper_fmha",
    "get_bwd_configs_for_cutlass_hopper_fna",
    "get_configs_for_cutlass_blackwell_fmha",
    "get_configs_for_cutlass_blackwell_fna",
    "get_configs_for_cutlass_fmha",
    "get_configs_for_cutlass_fna",
    "get_configs_for_cutlass_hopper_fmha",
    "get_configs_for_cutlass_hopper_fna",
    "get_configs_for_flex_fmha",
    "get_configs_for_flex_fna",
]

_KERNELS = ("cutlass", "hopper", "blackwell", "flex")
_SCHEDULES = ("non", "coop", "pp")
_TILES = ("q_tile", "kv_tile", "backward_q_tile", "backward_kv_tile")
_FLAGS = ("backward_use_pt_reduction", "run_persistent_kernel", "torch_compile")


class KernelSchedule(Enum):
    """Schedules of NATTEN's Hopper kernels."""

    NonPersistent = 0
    WarpSpecializedCooperative = 1
    WarpSpecializedPingpong = 2


def check(
    rank: int | None, backend: Any, schedule: Any, tiles: Sequence[Any], splits: Any, flags: Sequence[Any]
) -> None:
    """Check the knobs of a call.

    Args:
        rank: of a neighborhood attention, whose tiles hold as many integers; None if dense, with one.
        tiles: of queries, keys, and of both again for the backward pass.

    Raises:
        NotImplementedError: NATTEN knows no backend of that name.
        ValueError, TypeError: another knob is not what NATTEN takes.
    """
    family, unit = ("fmha", "size") if rank is None else ("fna", "shape")
    known = [f"{kernel}-{family}" for kernel in _KERNELS]
    if backend is not None and backend not in known:
        raise NotImplementedError(
            f"backend {backend!r} is unknown to NATTEN; pass None or {', '.join(known)}"
        )
    if schedule is not None and schedule not in _SCHEDULES and not isinstance(schedule, KernelSchedule):
        names = ", ".join(_SCHEDULES)
        raise ValueError(f"kernel_schedule is {schedule!r}; pass None, {names} or a KernelSchedule")
    names = [f"{tile}_{unit}" for tile in _TILES]
    for first in (0, 2):
        pair = tiles[first : first + 2]
        if (pair[0] is None) != (pair[1] is None):
            both = " and ".join(names[first : first + 2])
            raise ValueError(f"{both} are {pair[0]} and {pair[1]}; pass both or neither")
    for name, value in zip(names, tiles, strict=True):
        _check_tile(name, value, rank)
    _check_tile("backward_kv_splits", splits, None if isinstance(splits, int) else rank)
    for name, value in zip(_FLAGS, flags, strict=True):
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; pass True or False")


def _check_tile(name: str, value: Any, rank: int | None) -> None:
    if value is None:
        return
    entries = (value,) if rank is None else value
    shaped = isinstance(entries, (tuple, list)) and len(entries) == (rank or 1)
    if not shaped or not all(isinstance(entry, int) and entry > 0 for entry in entries):
        wanted = "a positive integer" if rank is None else f"{rank} positive integers"
        raise ValueError(f"{name} is {value!r}; pass None or {wanted}")


def get_configs_for_cutlass_fna(query: Array, key: Array, value: Array) -> list:
    """Tile configurations to choose from: none."""
    return []


def get_configs_for_flex_fna(query: Array, key: Array, value: Array, torch_compile: bool = False) -> list:
    """Tile configurations to choose from: none."""
    return []


get_configs_for_flex_fmha = get_configs_for_flex_fna
get_configs_for_cutlass_fmha = get_configs_for_cutlass_fna
get_configs_for_cutlass_hopper_fna = get_configs_for_cutlass_hopper_fmha = get_configs_for_cutlass_fna
get_configs_for_cutlass_blackwell_fna = get_configs_for_cutlass_blackwell_fmha = get_configs_for_cutlass_fna
get_bwd_configs_for_cutlass_fna = get_bwd_configs_for_cutlass_fmha = get_configs_for_cutlass_fna
get_bwd_configs_for_cutlass_hopper_fna = get_bwd_configs_for_cutlass_hopper_fmha = get_configs_for_cutlass_fna
get_bwd_configs_for_cutlass_blackwell_fna = get_configs_for_cutlass_fna
get_bwd_configs_for_cutlass_blackwell_fmha = get_configs_for_cutlass_fna
