"""Memory for results. Large tensors are mapped anew in every call, and a huge page is touched first at a
small part of the cost of the pages that it stands for."""

import ctypes
import sys
from functools import lru_cache
from mmap import PAGESIZE
from typing import Any

import torch
from torch import Tensor

LARGE = 32 << 20
"""Bytes from which on the C library maps memory anew, unless it holds as much that was freed."""
HUGE = 2 << 20
"""Bytes of a huge page."""
MADV_DONTNEED = 4
MADV_HUGEPAGE = 14


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, huge: bool = True) -> Tensor:
    """An uninitialised tensor, of `huge` pages where it is large."""
    made = torch.empty(shape, dtype=dtype, device=device)
    if huge and _is_mapped(made):
        # Advice that a system does not take changes nothing.
        _advised(made, HUGE, MADV_HUGEPAGE)
    return made


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    made = empty(shape, dtype, device)
    return made if drop(made) else made.zero_()


def drop(made: Tensor, count: int = 1) -> bool:
    """Have the system take back the pages of a large tensor of `empty`, or of one of `count` that are large
    together: others, which are zero, come as they are touched. False where that is not possible."""
    if not _is_mapped(made, count):
        return False
    inside = _advised(made, PAGESIZE, MADV_DONTNEED)
    if inside is None:
        return False
    flat, (before, after) = made.view(-1), inside
    for edge in (flat[:before], flat[after:]):
        edge.zero_()
    return True


def _is_mapped(made: Tensor, count: int = 1) -> bool:
    return made.nbytes * count >= LARGE and made.device.type == "cpu"


def _advised(made: Tensor, unit: int, advice: int) -> tuple[int, int] | None:
    """Advise on the whole units of memory that a tensor holds; the elements in which they start and stop, or
    None where the system does not take the advice."""
    advise, first = _madvise(), made.data_ptr()
    start, stop = -(-first // unit) * unit, (first + made.nbytes) // unit * unit
    if advise is None or advise(start, stop - start, advice):
        return None
    return (start - first) // made.itemsize, (stop - first) // made.itemsize


@lru_cache(1)
def _madvise() -> Any:
    """The system call, where there is one."""
    if sys.platform != "linux":
        return None
    found = ctypes.CDLL(None).madvise
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return found
