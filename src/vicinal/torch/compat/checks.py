"""What `natten.utils` offers clients: windows made into tuples, what a GPU can do, a logger."""

from collections.abc import Sequence
from logging import Logger, getLogger
from math import prod
from typing import Any

import torch


def create_dim_from_int(na_dim: int, value: int) -> tuple[int, ...]:
    """One number for each axis."""
    return (value,) * na_dim


def create_causal_arg_from_bool(na_dim: int, value: bool) -> tuple[bool, ...]:
    """One flag for each axis."""
    return (value,) * na_dim


def _per_axis(name: str, na_dim: int, value: Any, least: int) -> tuple[int, ...]:
    entries = tuple(value) if isinstance(value, Sequence) else (value,) * na_dim
    whole = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in entries)
    if len(entries) != na_dim or not whole or min(entries) < least:
        raise ValueError(f"{name} is {value!r}; pass an integer of {least} or more, or {na_dim} of them")
    return entries


def check_input_size_arg(na_dim: int, input_size: Any) -> tuple[int, ...]:
    """Spatial extents, one for each axis."""
    return _per_axis("input_size", na_dim, input_size, 1)


def check_kernel_size_arg(na_dim: int, kernel_size: Any) -> tuple[int, ...]:
    """Keys of a window, one number for each axis."""
    return _per_axis("kernel_size", na_dim, kernel_size, 1)


def check_stride_arg(na_dim: int, stride: Any) -> tuple[int, ...]:
    """Strides, one for each axis; None is 1."""
    return _per_axis("stride", na_dim, 1 if stride is None else stride, 1)


def check_dilation_arg(na_dim: int, dilation: Any) -> tuple[int, ...]:
    """Dilations, one for each axis; None is 1."""
    return _per_axis("dilation", na_dim, 1 if dilation is None else dilation, 1)


def check_causal_arg(na_dim: int, is_causal: Any) -> tuple[bool, ...]:
    """Causality, one flag for each axis; None is False."""
    flags = False if is_causal is None else is_causal
    entries = tuple(flags) if isinstance(flags, Sequence) else (flags,) * na_dim
    if len(entries) != na_dim or not all(isinstance(entry, bool) for entry in entries):
        raise ValueError(f"is_causal is {is_causal!r}; pass True or False, or {na_dim} of them")
    return entries


def check_all_args(na_dim: int, kernel_size: Any, dilation: Any, is_causal: Any) -> tuple:
    """Kernel size, dilation and causality as tuples, as 0.17 checked them."""
    return (
        check_kernel_size_arg(na_dim, kernel_size),
        check_dilation_arg(na_dim, dilation),
        check_causal_arg(na_dim, is_causal),
    )


def check_all_args_with_stride(
    na_dim: int, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any
) -> tuple:
    """Kernel size, stride, dilation and causality as tuples: `check_all_args` since 0.20."""
    size, apart, causal = check_all_args(na_dim, kernel_size, dilation, is_causal)
    return size, check_stride_arg(na_dim, stride), apart, causal


def get_num_na_weights(kernel_size: Sequence[int]) -> int:
    """Keys of a window."""
    return prod(kernel_size)


def get_device_cc(device_index: Any = None) -> int:
    """Compute capability of a CUDA device, such as 90; 0 where there is none."""
    if not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability(device_index)
    return 10 * major + minor


def get_logger(name: str) -> Logger:
    """The standard library's logger of that name."""
    return getLogger(name)
