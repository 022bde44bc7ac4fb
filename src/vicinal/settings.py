"""Settings of the current context: `VICINAL_*` variables, and `with vicinal.using(...)` over them."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache

from . import arguments


@dataclass(frozen=True, slots=True)
class Settings:
    """What applies to every call that does not say otherwise.

    Args:
        backend: name of the backend that every call must use, or None for the first that does not refuse.
        tf32: whether float32 products on NVIDIA tensor cores may round their inputs to TF32.
    """

    backend: str | None = None
    tf32: bool = False


_current: ContextVar[Settings | None] = ContextVar("vicinal_settings", default=None)


def current() -> Settings:
    """Settings in force here: the innermost `using`, or else the environment."""
    return _current.get() or _environment()


@contextmanager
def using(*, backend: str | None = None, tf32: bool | None = None) -> Generator[Settings, None, None]:
    """Change settings inside a `with` block, in this thread or task alone; what is None stays as it is.

    Args:
        backend: run every call on this backend, or raise if it refuses (environment: `VICINAL_BACKEND`).
        tf32: let float32 products on NVIDIA tensor cores round inputs to TF32 (environment: `VICINAL_TF32`).

    Raises:
        TypeError: `backend` is not a string, or `tf32` not a bool. A name that no table holds is a ValueError
            of the first call inside the block.
    """
    arguments.backend(backend)
    if tf32 is not None and not isinstance(tf32, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"tf32 is {tf32!r}; pass True, False or None")
    changes = {name: value for name, value in (("backend", backend), ("tf32", tf32)) if value is not None}
    settings = replace(current(), **changes)
    token = _current.set(settings)
    try:
        yield settings
    finally:
        _current.reset(token)


@cache
def workspace() -> bool:
    """Whether gradients may take as much memory as their operands, to be faster.

    Environment: `VICINAL_WORKSPACE`, 1 (default) or 0, for the whole process.
    """
    return _flag("VICINAL_WORKSPACE", "1")


def _flag(name: str, default: str) -> bool:
    flag = os.environ.get(name, default)
    if flag not in ("0", "1"):
        raise ValueError(f"{name} is {flag!r}; set it to 0 or 1")
    return flag == "1"


@cache
def _environment() -> Settings:
    """The `VICINAL_*` variables, read once."""
    return Settings(backend=os.environ.get("VICINAL_BACKEND") or None, tf32=_flag("VICINAL_TF32", "0"))
