"""Memory for results. Large tensors are mapped anew in every call, and a huge page is touched first at a
small part of the cost of the pages that it stands for."""

import ctypes
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LARGE = 32 << 20
"""Bytes from which on the C library always maps memory anew."""
HUGE = 2 << 20
"""Bytes of a huge page."""
MADV_HUGEPAGE = 14


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor."""
    made = torch.empty(shape, dtype=dtype, device=device)
    if made.nbytes >= LARGE and device.type == "cpu":
        advise = _madvise()
        if advise is not None:
            start = -(-made.data_ptr() // HUGE) * HUGE
            stop = (made.data_ptr() + made.nbytes) // HUGE * HUGE
            # Advice that a system does not take changes nothing.
            advise(start, stop - start, MADV_HUGEPAGE)
    return made


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return empty(shape, dtype, device).zero_()


@lru_cache(1)
def _madvise() -> Any:
    """The system call, where there is one."""
    if sys.platform != "linux":
        return None
    found = ctypes.CDLL(None).madvise
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return found
