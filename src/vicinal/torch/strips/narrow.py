"""Forward passes in bfloat16 on strips, through PyTorch's fused kernel: for CPUs with a matrix unit (AMX).

Elsewhere bfloat16 products are no faster than float32 ones, which round less. The kernel's log-sum-exp
is good to about 1e-4, so a backward pass never builds on it.
"""

from functools import lru_cache

import torch
from torch import Tensor

from ...problem import Problem
from .arena import Like, take
from .call import Call, chunk, columns_of, rows_of
from .layout import cut, gather, scatter, tiles

NARROW = torch.bfloat16


@lru_cache(1)
def available() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    return torch.cpu._is_amx_tile_supported()


def faster(problem: Problem) -> bool:
    """Whether the fused kernel can run the tiles of `problem`, and wins."""
    option = problem.gradients or problem.bias or problem.extra or problem.device != "cpu"
    if option or problem.dtype != "bfloat16" or problem.dim != problem.value_dim or problem.dim < 32:
        return False
    return available()


def run_pass(call: Call, batch: int, slab: int, results: tuple[Tensor, Tensor]) -> None:
    part, wide, like = call.part, call.like, Like(NARROW, call.like.device)
    assert len(part.pieces) == 1
    work = part.measure(batch, slab, 0)
    queries = gather(part, work, rows_of(part, call.query, batch), "query", like)
    keys = cut(part, work, columns_of(part, call.key, batch), "key", like).boxes
    values = cut(part, work, columns_of(part, call.value, batch), "value", like).boxes
    out = tiles(part, work, call.value.shape[-1], "out", like)
    lse = tiles(part, work, 1, "top", wide)
    mask = call.additive(work, batch)
    kinds = mask.kinds(work)
    step = chunk(part.rows, keys.shape[1], wide)
    for start in range(0, work.boxes, step):
        some = slice(start, min(start + step, work.boxes))
        hidden = take("scores", (some.stop - start, part.rows, keys.shape[1]), wide)
        mask.fill(hidden, kinds[some])
        operands = (x[some].unsqueeze(1) for x in (queries, keys, values))
        found, level = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *operands, 0.0, False, attn_mask=hidden.unsqueeze(1), scale=call.scale
        )
        out[some].copy_(found.squeeze(1))
        lse[some].copy_(level.view(-1, part.rows, 1))
    scatter(part, work, out, rows_of(part, results[0], batch))
    scatter(part, work, lse, rows_of(part, results[1], batch))
