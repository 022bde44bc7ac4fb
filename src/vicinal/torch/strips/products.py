"""Products of many matrices, of which no bit depends on threads."""

import torch
from torch import Tensor

from .arena import Like, take

LINE = 64
"""Bytes of a cache line."""


def fewest(device: torch.device) -> int:
    """Matrices of a product at least: a BLAS shares one among threads that have none of their own, and what
    it cuts it rounds otherwise. It takes a single one by other routines than several."""
    return max(torch.get_num_threads(), 2) if device.type == "cpu" else 1


def turns(rows: int, device: torch.device) -> bool:
    """Whether scores had better lie `[keys, rows]` in memory: a BLAS is faster where it need not turn keys,
    and loops take 16 rows at a time."""
    return device.type == "cpu" and rows % 16 == 0


def facing(out: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A product and its factors as they lie: a result that lies turned is the product of turned matrices."""
    return (out.mT, right.mT, left.mT) if out.stride(-1) > 1 else (out, left, right)


def multiply(out: Tensor, left: Tensor, right: Tensor, alpha: float = 1.0, beta: float = 1.0) -> None:
    """`out = beta * out + alpha * left @ right`. Fewer matrices than threads are computed one after another,
    each by all threads."""
    out, left, right = facing(out, left, right)
    least = fewest(out.device)
    if len(out) >= least:
        out.baddbmm_(left, right, alpha=alpha, beta=beta)
        return
    for one, *factors in zip(out, left, right, strict=True):
        same = _alike(one, least).copy_(one)
        same.baddbmm_(*(x.expand(least, *x.shape) for x in factors), alpha=alpha, beta=beta)
        one.copy_(same[0])


def _alike(x: Tensor, count: int) -> Tensor:
    """Uninitialised matrices, of which the first starts where `x` does in a line: a BLAS rounds otherwise
    elsewhere."""
    first = x.data_ptr() % LINE // x.itemsize
    return take("same", (count, *x.shape), Like(x.dtype, x.device), first)
