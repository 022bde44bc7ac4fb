"""Products of many matrices, of which no bit depends on threads."""

import torch
from torch import Tensor


def fewest(device: torch.device) -> int:
    """Matrices of a product at least: a BLAS shares one among threads that have none of their own, and what
    it cuts it rounds otherwise. It takes a single one by other routines than several."""
    return max(torch.get_num_threads(), 2) if device.type == "cpu" else 1


def turns(rows: int, device: torch.device) -> bool:
    """Whether scores had better lie `[keys, rows]` in memory: a BLAS is faster where it need not turn keys,
    and loops take 16 rows at a time."""
    return device.type == "cpu" and rows % 16 == 0


def multiply(out: Tensor, left: Tensor, right: Tensor, alpha: float = 1.0, beta: float = 1.0) -> None:
    """`out = beta * out + alpha * left @ right`. Fewer matrices than threads are computed several times, by
    threads that would idle."""
    if out.stride(-1) > 1:
        # A result that lies turned is the product of turned matrices.
        out, left, right = out.mT, right.mT, left.mT
    count, least = len(out), fewest(out.device)
    if count >= least:
        out.baddbmm_(left, right, alpha=alpha, beta=beta)
        return
    copies = -(-least // count)
    many = (x.expand(copies, *x.shape).reshape(-1, *x.shape[1:]) for x in (out, left, right))
    out.copy_(torch.baddbmm(*many, alpha=alpha, beta=beta)[:count])
