"""What `natten.utils` offers clients: windows made into tuples, additional tokens checked, a logger."""

from collections.abc import Sequence
from logging import Logger, getLogger
from math import prod
from typing import Any

import torch
from torch import Tensor


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


def check_additional_keys(input_tensor: Tensor, additional_keys: Tensor | None) -> int:
    """Number of additional tokens of a heads-first input."""
    if additional_keys is None:
        return 0
    batch, heads, *_, dim = input_tensor.shape
    _like("additional_keys", additional_keys, (batch, heads, dim), input_tensor)
    return additional_keys.shape[2]


def check_additional_values(
    attn_tensor: Tensor, additional_values: Tensor | None, value: Tensor, expected_attn_weights: int
) -> int:
    """Number of additional tokens of heads-first weights, `expected_attn_weights` of them before theirs."""
    if additional_values is None:
        return 0
    batch, heads, *_, dim = value.shape
    _like("additional_values", additional_values, (batch, heads, dim), value)
    tokens = additional_values.shape[2]
    if attn_tensor.shape[-1] != expected_attn_weights + tokens:
        raise ValueError(
            f"attn has {attn_tensor.shape[-1]} weights; a window of {expected_attn_weights} and {tokens} "
            f"additional tokens need {expected_attn_weights + tokens}"
        )
    return tokens


def _like(name: str, tensor: Tensor, wanted: tuple, like: Tensor) -> None:
    shape, dtype, device = tuple(tensor.shape), like.dtype, like.device
    if (
        len(shape) != 4
        or (*shape[:2], shape[3]) != wanted
        or tensor.dtype != dtype
        or tensor.device != device
    ):
        raise ValueError(
            f"{name} is {list(shape)} {tensor.dtype} on {tensor.device}; pass "
            f"[{wanted[0]}, {wanted[1]}, tokens, {wanted[2]}] {dtype} on {device}"
        )


def make_attn_tensor_from_input(input_tensor: Tensor, attention_dim: int) -> Tensor:
    """An empty tensor of weights for a heads-first input."""
    return input_tensor.new_empty((*input_tensor.shape[:-1], attention_dim))


def get_device_cc(device_index: Any = None) -> int:
    """Compute capability of a CUDA device, such as 90; 0 where there is none."""
    if not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability(device_index)
    return 10 * major + minor


def get_logger(name: str) -> Logger:
    """The standard library's logger of that name."""
    return getLogger(name)
