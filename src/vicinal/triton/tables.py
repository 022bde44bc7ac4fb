"""Tables of documents on a device, made once for each batch of shapes."""

from functools import lru_cache

import torch
from torch import Tensor

from ..problem import Problem
from . import documents
from .documents import Shape, Spacing


def table(
    problem: Problem, device: torch.device, boxes: Shape | None = None, inverse: bool = False
) -> Tensor | None:
    """int32 `documents.rows`, which kernels take before what they write; None without documents."""
    if problem.documents is None:
        return None
    found = _table(problem.documents.shapes, documents.spacing(problem), boxes, inverse, device)
    if found.is_cuda:
        # The memory belongs to the stream that wrote it.
        found.record_stream(torch.cuda.current_stream(device))
    return found


def cleared(problem: Problem, x: Tensor, fill: float = 0.0, *, sampled: bool) -> Tensor:
    """`x`, contiguous over tokens, or over outputs if `sampled`, filled where no document lies."""
    if documents.is_padded(problem) and x.numel():
        documents.blank_launch(problem, tuple(x.shape), fill, sampled)(x, table(problem, x.device))
    return x


@lru_cache(1024)
def _table(
    shapes: tuple[Shape, ...], apart: Spacing, boxes: Shape | None, inverse: bool, device: torch.device
) -> Tensor:
    rows = documents.rows(shapes, apart, boxes, inverse)
    found = torch.frombuffer(rows, dtype=torch.int32) if rows else torch.empty(0, dtype=torch.int32)
    if device.type != "cuda":
        return found
    # On a stream of its own: the copy waits for no kernel, and is complete for every stream.
    with torch.cuda.stream(_uploads(device)):
        return found.to(device)


@lru_cache(64)
def _uploads(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
