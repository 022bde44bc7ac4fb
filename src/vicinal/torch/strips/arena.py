"""Scratch memory that a thread keeps between calls: fresh pages cost more than the arithmetic on them."""

import threading
from collections.abc import Callable, Hashable
from math import prod
from typing import Any, ClassVar, NamedTuple, TypeVar
from weakref import ref

import torch
from torch import Tensor

HELD = 20 << 20
"""Bytes that a thread takes along into a call at most: a call that finds more gives all back. What it takes
besides is less than 44 MiB."""

MADE = 1024
"""Things made of views that a thread keeps at most."""
RECENT = 8 << 20
"""Bytes of what was worked out for the passes of a part that are kept."""
EVERYONE = 64 << 20
"""Bytes of the same for all parts of a process."""

T = TypeVar("T")

VECTOR = 64
"""Elements that PyTorch's loops take at a time divide this."""
SHARE = 32768
"""Elements that PyTorch gives a thread at least."""


class _Arena(threading.local):
    """One buffer a name and dtype, the views that earlier calls took of it, and what was made of views."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self.held = 0
        self.views: dict[tuple[str, torch.dtype, tuple[int, ...], int], Tensor] = {}
        self.made: dict[Hashable, Any] = {}


_arena = _Arena()


class Like(NamedTuple):
    """Dtype and device of the sums of a call."""

    dtype: torch.dtype
    device: torch.device


def take(name: str, shape: tuple[int, ...], like: Like, first: int = 0) -> Tensor:
    """An uninitialised tensor, valid until the same thread takes `name` again. It lies in its cache lines as
    if it came after the `first` numbers of a longer one. Only the CPU keeps memory here."""
    dtype, device = like
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    key = (name, dtype, shape, first % VECTOR)
    view = _arena.views.get(key)
    if view is None:
        view = _arena.views[key] = _view(*key)
    return view


def keep(key: Hashable, device: torch.device, make: Callable[[], T]) -> T:
    """What `make` makes of tensors taken here, made again once a buffer has grown."""
    if device.type != "cpu":
        return make()
    found = _arena.made.get(key)
    if found is None:
        if len(_arena.made) >= MADE:
            _arena.made.clear()
        with torch.inference_mode(False):
            made = make()
        found = _arena.made[key] = made
    return found


class Recent:
    """What was made last, for any thread."""

    total: ClassVar[int] = 0
    # Neither a set of weak references nor a lock: one may change while it is read, the other stay closed in
    # a forked process.
    everyone: ClassVar[dict[int, "ref[Recent]"]] = {}

    def __init__(self) -> None:
        self.made: dict[Hashable, Any] = {}
        self.bytes = 0
        self.everyone[id(self)] = ref(self)

    def __del__(self) -> None:
        self.everyone.pop(id(self), None)
        self.forget()

    def recall(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made again once much else was made."""
        found = self.made.get(key)
        if found is None:
            # A tensor made in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                found = make()
            if self.bytes > RECENT:
                self.forget()
            if self.total > EVERYONE:
                self.forget_all()
            self.made[key] = found
            weight = _weight(found)
            self.bytes += weight
            type(self).total += weight
        return found

    def forget(self) -> None:
        # At exit a module's names may be gone.
        type(self).total -= self.bytes
        self.made, self.bytes = {}, 0

    @classmethod
    def forget_all(cls) -> None:
        for one in list(cls.everyone.values()):
            found = one()
            if found is not None:
                found.forget()
        # Threads may have counted at a time.
        cls.total = 0


def _weight(x: Any) -> int:
    """Bytes that `x` takes, about."""
    if isinstance(x, Tensor):
        return x.nbytes + 512
    if isinstance(x, tuple):
        return sum(map(_weight, x)) + 64
    return sum(map(_weight, getattr(x, "__dict__", {}).values())) + 64


def sheet(
    name: str, shape: tuple[int, ...], like: Like, turned: bool = False, first: int = 0
) -> tuple[Tensor, Tensor]:
    """A tensor like `take`'s, and the flat buffer that it lies in, for exp2 and log2. A `turned` one has its
    last two axes the other way round in memory.

    `first` is the number of its first matrix among those of a longer tensor: each lies in its cache lines as
    it would there, because a BLAS rounds otherwise elsewhere.

    PyTorch computes what a thread's share has left over after whole vectors by another routine, which rounds
    differently. The buffer is so long that every share is whole vectors: bits do not depend on threads.
    """
    start, size = first * prod(shape[1:]) % VECTOR, prod(shape)
    buffer = take(name, (_whole(start + size, torch.get_num_threads()),), like)
    made = buffer[start : start + size]
    if not turned:
        return made.view(shape), buffer
    return made.view(*shape[:-2], shape[-1], shape[-2]).mT, buffer


def _whole(size: int, workers: int) -> int:
    whole = _rounded(size, workers)
    while True:
        shares = min(workers, -(-whole // SHARE))
        if whole % (shares * VECTOR) == 0:
            return whole
        whole = _rounded(whole, shares)


def _rounded(size: int, shares: int) -> int:
    return -(-size // (shares * VECTOR)) * shares * VECTOR


def trim() -> None:
    """Give back what this thread holds over the limit; views taken before stay valid for who has them."""
    if len(_arena.views) > 4 * MADE or _arena.held > HELD:
        clear()


def clear() -> None:
    """Give back all that this thread holds."""
    _arena.views.clear()
    _arena.made.clear()
    _arena.buffers.clear()
    _arena.held = 0


def held() -> int:
    """Bytes that this thread holds."""
    return _arena.held


def _view(name: str, dtype: torch.dtype, shape: tuple[int, ...], start: int) -> Tensor:
    # Room for any start: a tensor that is no larger finds the same buffer.
    size, stop = prod(shape) + VECTOR, start + prod(shape)
    buffer = _arena.buffers.get((name, dtype))
    if buffer is None or buffer.numel() < size:
        for key in [key for key in _arena.views if key[:2] == (name, dtype)]:
            del _arena.views[key]
        _arena.made.clear()
        _arena.held += size * dtype.itemsize - (0 if buffer is None else buffer.nbytes)
        # A tensor made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            buffer = _arena.buffers[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
    with torch.inference_mode(False):
        return buffer[start:stop].view(shape)
