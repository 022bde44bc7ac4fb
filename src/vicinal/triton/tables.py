"""Tables of documents on a device, made once for each batch of shapes."""

from functools import lru_cache

import torch
from torch import Tensor

from ..problem import Documents, Problem
from . import documents
from .documents import EACH, Spacing, Tiling


def table(problem: Problem, device: torch.device, rows: Tiling = EACH) -> Tensor | None:
    """int32 `documents.rows`, which kernels take before what they write; None without documents."""
    if problem.documents is None:
        return None
    found = _table(problem.documents, documents.spacing(problem), rows, device)
    if found.is_cuda:
        # The memory belongs to the stream that wrote it.
        found.record_stream(torch.cuda.current_stream(device))
    return found


@lru_cache(1024)
def _table(given: Documents, apart: Spacing, tiling: Tiling, device: torch.device) -> Tensor:
    rows = documents.rows(given, apart, tiling)
    found = torch.frombuffer(rows, dtype=torch.int32) if rows else torch.empty(0, dtype=torch.int32)
    if device.type != "cuda":
        return found
    # On a stream of its own: the copy waits for no kernel, and is complete for every stream.
    with torch.cuda.stream(_uploads(device)):
        return found.to(device)


@lru_cache(64)
def _uploads(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
