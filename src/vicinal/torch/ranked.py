"""The functions whose names carry a rank. They check it, and are the rank-generic functions otherwise."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from .. import arguments
from .functional import av, neighborhood_attention, qk

F = TypeVar("F", bound=Callable)


def _pin(rank: int, name: str, function: F, first: str) -> F:
    @wraps(function)
    def pinned(*args, **kwargs):
        tensor = args[0] if args else kwargs.get(first)
        shape = getattr(tensor, "shape", None)
        if shape is not None:
            arguments.pinned(rank, first, shape)
        return function(*args, **kwargs)

    pinned.__name__ = pinned.__qualname__ = name
    pinned.__module__ = "vicinal.torch"
    summary = (function.__doc__ or "").split("\n", 1)
    pinned.__doc__ = "\n".join([f"{rank}-D only. {summary[0]}", *summary[1:]])
    return pinned  # pyright: ignore[reportReturnType]


na1d = _pin(1, "na1d", neighborhood_attention, "query")
na2d = _pin(2, "na2d", neighborhood_attention, "query")
na3d = _pin(3, "na3d", neighborhood_attention, "query")
na1d_qk = _pin(1, "na1d_qk", qk, "query")
na2d_qk = _pin(2, "na2d_qk", qk, "query")
na3d_qk = _pin(3, "na3d_qk", qk, "query")
na1d_av = _pin(1, "na1d_av", av, "attention_weights")
na2d_av = _pin(2, "na2d_av", av, "attention_weights")
na3d_av = _pin(3, "na3d_av", av, "attention_weights")
