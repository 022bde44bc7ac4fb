"""Split operations as NATTEN had them before 0.20: heads first, and no scale."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

import vicinal.torch as na

Sizes = int | tuple[int, ...] | list[int]
Flags = bool | tuple[bool, ...] | list[bool]
T = TypeVar("T")

_QK = {1: na.na1d_qk, 2: na.na2d_qk, 3: na.na3d_qk}
_AV = {1: na.na1d_av, 2: na.na2d_av, 3: na.na3d_av}


def heads_last(x: Tensor) -> Tensor:
    """`[batch, heads, *spatial, dim]` seen as `[batch, *spatial, heads, dim]`."""
    return x.movedim(1, -2)


def heads_first(x: Tensor) -> Tensor:
    """`[batch, *spatial, heads, dim]` seen as `[batch, heads, *spatial, dim]`."""
    return x.movedim(-2, 1)


def qk(
    rank: int,
    query: Tensor,
    key: Tensor,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    is_causal: Flags | None = False,
    bias: Tensor | None = None,
    additional_keys: Tensor | None = None,
) -> Tensor:
    """`[batch, heads, *spatial, slots + tokens]`."""
    scores = _QK[rank](
        heads_last(query),
        heads_last(key),
        kernel_size,
        dilation=given(dilation, 1),
        is_causal=given(is_causal, False),
        scale=1.0,
        bias=bias,
        additional_keys=None if additional_keys is None else heads_last(additional_keys),
    )
    return heads_first(scores)


def av(
    rank: int,
    attn: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    is_causal: Flags | None = False,
    additional_values: Tensor | None = None,
) -> Tensor:
    """`[batch, heads, *spatial, dim]`."""
    out = _AV[rank](
        heads_last(attn),
        heads_last(value),
        kernel_size,
        dilation=given(dilation, 1),
        is_causal=given(is_causal, False),
        additional_values=None if additional_values is None else heads_last(additional_values),
    )
    return heads_first(out)


def given(value: T | None, default: T) -> T:
    """`value`, or `default` for the None that older clients pass."""
    return default if value is None else value


def named(module: str, names: Sequence[str], functions: Sequence[Callable]) -> tuple[Callable, ...]:
    """`functions` under the names that their era gives them."""
    for name, function in zip(names, functions, strict=True):
        function.__name__ = function.__qualname__ = name
        function.__module__ = module
    return tuple(functions)
