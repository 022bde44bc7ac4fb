"""NATTEN 0.14: heads first, no scale, odd windows given as one integer; layers pad small inputs."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

from . import split
from .front import Array, Front, Sizes, given, named


def functions(front: Front, rank: int, module: str) -> tuple[Callable, ...]:
    """`natten#dqkrpb`, `natten#dqk` and `natten#dav`."""
    dot, mix = split.operations(front, rank)

    @_sized_by(lambda rpb: (rpb.shape[-1] + 1) // 2, 2)
    def qkrpb(query: Array, key: Array, rpb: Array | None, kernel_size: int, dilation: int) -> Array:
        """Unscaled scores `[batch, heads, *spatial, kernel_size ** rank]`, biased if `rpb` is not None."""
        return dot(query, key, kernel_size, dilation, bias=rpb)

    def qk(query: Array, key: Array, kernel_size: int, dilation: int) -> Array:
        """Unscaled scores `[batch, heads, *spatial, kernel_size ** rank]`."""
        return dot(query, key, kernel_size, dilation)

    @_sized_by(lambda attn: round(attn.shape[-1] ** (1 / rank)), 0)
    def av(attn: Array, value: Array, kernel_size: int, dilation: int) -> Array:
        """Values of every window, `[batch, heads, *spatial, dim]`, summed with the weights `attn`."""
        return mix(attn, value, kernel_size, dilation)

    names = (f"natten{rank}dqkrpb", f"natten{rank}dqk", f"natten{rank}dav")
    return named(module, names, (qkrpb, qk, av))


def _sized_by(size: Callable[[Array], int], place: int) -> Callable[[Callable], Callable]:
    """Also take calls of releases before 0.14.6, which left `kernel_size` to the shape of one argument."""

    def widen(function: Callable) -> Callable:
        arguments = function.__code__.co_argcount

        @wraps(function)
        def either(*given, **named):
            if len(given) + len(named) == arguments - 1 and named.keys() <= {"dilation"}:
                *arrays, dilation = (*given, *named.values())
                return function(*arrays, size(arrays[place]), dilation)
            return function(*given, **named)

        return either

    return widen


# What stands before a layer in the order of bases is that layer's to a type checker, whatever the framework.
Base: Any = object


class Padded(Base):
    """Before a layer in the order of bases: its constructor and call as 0.14 had them.

    Where an axis is shorter than `kernel_size * dilation`, zeros are added at its end before the projections,
    take part as keys, and are cut off again.
    """

    front: ClassVar[Front]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            kernel_size,
            dilation=given(dilation, 1),
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            rel_pos_bias=bias,
        )
        # Clients of this era read integers; a tuple is no parameter to either framework.
        self._window = tuple(super().window.items())
        self.kernel_size, self.dilation = (self.window[name][-1] for name in ("kernel_size", "dilation"))
        self.window_size = self.kernel_size * self.dilation

    @property
    def window(self) -> dict[str, Any]:
        """The window, as keyword arguments of `neighborhood_attention`."""
        return dict(self._window)

    def padded(self, x: Array, attend: Callable[[Array], Array]) -> Array:
        """`attend(x)`, with zeros in place of what `x` lacks of a window."""
        lengths, window = x.shape[1:-1], self.window
        windows = zip(window["kernel_size"], window["dilation"], strict=True)
        # An input of another rank is the layer's to refuse.
        missing = [
            max(0, size * apart - length) for (size, apart), length in zip(windows, lengths, strict=False)
        ]
        if not any(missing):
            return attend(x)
        out = attend(self.front.pad(x, (0, *missing, 0)))
        return out[(slice(None), *map(slice, lengths))]
