"""The public functions whose names carry a rank: they check it, and are rank-generic otherwise."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from . import arguments

F = TypeVar("F", bound=Callable[..., Any])


def pinned(rank: int, name: str, function: F, first: str) -> F:
    """`function` for inputs of one rank, called `name`; its argument `first` has a shape that shows it."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        shape = getattr(args[0] if args else kwargs.get(first), "shape", None)
        if shape is not None:
            arguments.pinned(rank, first, shape)
        return function(*args, **kwargs)

    wrapper.__name__ = wrapper.__qualname__ = name
    wrapper.__module__ = function.__module__.rpartition(".")[0]
    summary = (function.__doc__ or "").split("\n", 1)
    wrapper.__doc__ = "\n".join([f"{rank}-D only. {summary[0]}", *summary[1:]])
    return cast(F, wrapper)
