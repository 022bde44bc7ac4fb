"""Forward passes in bfloat16 on strips, through PyTorch's fused kernel: for CPUs with a matrix unit (AMX).

Elsewhere bfloat16 products are no faster than float32 ones, which round less. The kernel's log-sum-exp
is good to about 1e-4, so a backward pass never builds on it.
"""

import torch
from torch import Tensor

from ...problem import Problem
from .arena import Like, take
from .call import Call, chunk, columns_of, rows_of
from .costs import saved
from .layout import chunks, cut
from .plan import Part
from .products import fewest
from .tiles import gather, scatter, tiles

NARROW = torch.bfloat16


def faster(problem: Problem, part: Part) -> bool:
    """Whether the fused kernel can run the tiles of a part of `problem`, and wins."""
    keys = part.measure(0, 0, 0).keys
    return len(part.pieces) == 1 and saved(problem, part.rows, keys) > 0


def run_pass(call: Call, batch: int, slab: int, results: tuple[Tensor, Tensor]) -> None:
    part, wide, like = call.part, call.like, Like(NARROW, call.like.device)
    assert len(part.pieces) == 1
    work = part.measure(batch, slab, 0)
    queries = gather(part, work, rows_of(part, call.query, batch), "query", like)
    keys = cut(part, work, columns_of(part, call.key, batch), "key", like)
    values = cut(part, work, columns_of(part, call.value, batch), "value", like)
    out = tiles(part, work, call.value.shape[-1], "out", like)
    lse = tiles(part, work, 1, "top", wide)
    mask = call.additive(work, batch)
    kinds = mask.kinds(work)
    span = work.keys
    for some in chunks(work, chunk(part.rows, span, wide), fewest(like.device)):
        operands = (x.unsqueeze(1) for x in (queries[some.all], keys.boxes(some), values.boxes(some)))
        hidden = take("scores", (some.all.stop - some.all.start, part.rows, span), wide)
        mask.fill(hidden, kinds[some.all])
        found, level = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *operands, 0.0, False, attn_mask=hidden.unsqueeze(1), scale=call.scale
        )
        out[some.all].copy_(found.squeeze(1))
        lse[some.all].copy_(level.view(-1, part.rows, 1))
    scatter(part, work, out, "out", rows_of(part, results[0], batch))
    scatter(part, work, lse, "top", rows_of(part, results[1], batch))
