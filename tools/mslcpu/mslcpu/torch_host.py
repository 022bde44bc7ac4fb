"""`torch.mps.compile_shader` for tensors of the CPU, with PyTorch's rules for arguments and grids."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch

from .library import FORWARD, Library, MSLError, Result

CASTS = {"fp16": "float16", "int32": "int32", "int16": "int16", "int8": "int8", "uint8": "uint8"}
MOST_THREADS = 1024


@dataclass
class Session:
    """How shaders compile and run, and what they did.

    Args:
        hooks, fast_math: as in `Library`.
        order, traffic: as in `Library.run`.
        edit: changes every source before it compiles.
        launches: kernel name and result of every launch.
    """

    hooks: bool = True
    fast_math: bool = False
    order: int = FORWARD
    traffic: bool = False
    edit: Callable[[str], str] = str
    launches: list[tuple[str, Result]] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        return [f"{name}: {finding}" for name, result in self.launches for finding in result.findings]

    def compile_shader(self, source: str) -> "ShaderLibrary":
        edited = self.edit(source)
        # PyTorch hands the source over as ASCII.
        edited.encode("ascii")
        return ShaderLibrary(self, Library(edited, hooks=self.hooks, fast_math=self.fast_math))


class ShaderLibrary:
    def __init__(self, session: Session, library: Library):
        self._session, self._library = session, library

    def __getattr__(self, name: str) -> "Shader":
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._library.names():
            raise RuntimeError(f"Failed to create function state object for: {name}")
        return Shader(self._session, self._library, name)

    def __dir__(self) -> list[str]:
        return self._library.names()


class Shader:
    thread_execution_width = 32

    def __init__(self, session: Session, library: Library, name: str):
        self._session, self._library, self._name = session, library, name
        self.max_threads_per_threadgroup = min(MOST_THREADS, library.most_threads(name))

    def __call__(self, *args, threads=None, group_size=None, arg_casts=None) -> None:
        buffers = {
            place: _buffer(given, arg_casts.get(place) if isinstance(arg_casts, dict) else arg_casts)
            for place, given in enumerate(args)
            if given is not None
        }
        if threads is None:
            threads = next(given.numel() for given in args if isinstance(given, torch.Tensor))
        grid = (threads,) if isinstance(threads, int) else tuple(threads)
        most = self.max_threads_per_threadgroup
        default = (min(grid[0], most),) if len(grid) == 1 else (most,) + (1,) * (len(grid) - 1)
        group = (group_size,) if isinstance(group_size, int) else tuple(group_size or default)
        if len(group) != len(grid):
            raise RuntimeError("threads and group_size must have the same number of dimensions")
        if prod(group) > most:
            raise ValueError(f"threadgroup size exceeds {most}")
        if prod(grid) == 0:
            return
        session = self._session
        result = self._library.run(
            self._name, buffers, grid=grid, group=group, order=session.order, traffic=session.traffic
        )
        session.launches.append((self._name, result))


def _buffer(given, cast: str | None) -> np.ndarray:
    if isinstance(given, torch.Tensor):
        if not given.is_contiguous():
            raise MSLError("a tensor is not contiguous: PyTorch binds its storage, and passes no strides")
        given = given.detach()
        return (given.view(torch.uint16) if given.dtype == torch.bfloat16 else given).numpy()
    first = given[0] if isinstance(given, list | tuple) else given
    if not isinstance(first, int | float):
        raise TypeError(f"unsupported argument type {type(given).__name__}")
    if cast == "bf16":
        return torch.tensor(given).to(torch.bfloat16).view(torch.uint16).numpy()
    # Unlike tensors, numbers come as 64-bit integers and 32-bit floats.
    return np.array(given, CASTS.get(cast or "", "int64" if isinstance(first, int) else "float32"))


@contextmanager
def installed(**options):
    """Gives `torch.mps.compile_shader` this module's meaning, and yields the `Session`."""
    session, real = Session(**options), torch.mps.compile_shader
    torch.mps.compile_shader = session.compile_shader
    try:
        yield session
    finally:
        torch.mps.compile_shader = real
