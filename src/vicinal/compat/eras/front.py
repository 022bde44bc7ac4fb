"""What the translations know of a framework, and of one another."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

Array = Any
Sizes = int | tuple[int, ...] | list[int]
Flags = bool | tuple[bool, ...] | list[bool]
T = TypeVar("T")


class Front(NamedTuple):
    """A framework: its public functions, and the moves of arrays that older layouts need.

    Fields:
        na: `vicinal.torch` or `vicinal.mlx`.
        move: `(x, axis, place)`, a view with one axis elsewhere.
        permute: `(x, axes)`, a view with the axes in another order.
        join: `(parts, axis)`, one array of several.
        pad: `(x, ends)`, zeros after the end of each axis.
        integers: `(values, like)`, a 1-D int32 array, where `like` is.
    """

    na: Any
    move: Callable[..., Array]
    permute: Callable[..., Array]
    join: Callable[..., Array]
    pad: Callable[..., Array]
    integers: Callable[..., Array]

    def ranked(self, rank: int, kind: str = "") -> Callable[..., Any]:
        """`na2d` for rank 2, `na2d_qk` for the kind `_qk`."""
        return getattr(self.na, f"na{rank}d{kind}")


def given(value: T | None, default: T) -> T:
    """`value`, or `default` for the None that older clients pass."""
    return default if value is None else value


def named(module: str, names: Sequence[str], functions: Sequence[Callable]) -> tuple[Callable, ...]:
    """`functions` under the names that their era gives them."""
    for name, function in zip(names, functions, strict=True):
        function.__name__ = function.__qualname__ = name
        function.__module__ = module
    return tuple(functions)
