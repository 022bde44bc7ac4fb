"""PyTorch's compiled FlexAttention, a baseline whose mask is made before it is timed.

Tokens come in an order in which 128 of them are a compact box of the input, where such boxes divide it, which
leaves FlexAttention few blocks. The mask of blocks is made from 128 queries after another, so that no array
holds a number for each pair.
"""

from functools import partial
from math import prod

import torch

from vicinal import Problem

BLOCK = 128
# Boxes of 128 tokens by the number of axes.
BOXES = ((128,), (8, 16), (2, 8, 8))
# Tokens; making a mask takes a launch or two for every 128 of them.
MOST = 1 << 17


def runs(problem: Problem) -> bool:
    """Whether a mask of `Flex` is made in seconds."""
    return prod(problem.lengths) <= MOST and all(axis.output_stride == 1 for axis in problem.axes)


class Flex:
    """FlexAttention of `[batch, heads, tokens, dim]`, compiled at the first call."""

    def __init__(self, problem: Problem, device: str = "cuda") -> None:
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        self.problem, self.device = problem, device
        self.order = _order(problem).to(device)
        sees = _mask(problem, self.order, device)
        mask = BlockMask.from_kv_blocks(
            *_blocks(sees, len(self.order), device),
            BLOCK_SIZE=BLOCK,
            mask_mod=sees,
            seq_lengths=(len(self.order),) * 2,
        )
        compiled = torch.compile(flex_attention, dynamic=False)
        grouped = problem.heads != problem.kv_heads
        self.attend = partial(compiled, block_mask=mask, enable_gqa=grouped)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, *spatial, heads, dim]` as `attend` takes it."""
        return x.flatten(1, self.problem.rank)[:, self.order].transpose(1, 2).contiguous()

    def spatial(self, x: torch.Tensor) -> torch.Tensor:
        """What `attend` returns as `[batch, *spatial, heads, dim]`."""
        return x.transpose(1, 2)[:, self.order.argsort()].unflatten(1, self.problem.lengths)


def _order(problem: Problem) -> torch.Tensor:
    """Row-major numbers of tokens, box after box."""
    numbers, box = torch.arange(prod(problem.lengths)), BOXES[problem.rank - 1]
    if any(length % side for length, side in zip(problem.lengths, box, strict=True)):
        return numbers
    split = [x for length, side in zip(problem.lengths, box, strict=True) for x in (length // side, side)]
    outer, inner = range(0, 2 * problem.rank, 2), range(1, 2 * problem.rank, 2)
    return numbers.view(split).permute(*outer, *inner).flatten()


def _mask(problem: Problem, order: torch.Tensor, device: str):
    """Whether one token sees another: numbers in tensors, so that one compilation serves several masks."""
    tables, rest = [], order
    for axis in reversed(problem.axes):
        at, rest = rest % axis.length, rest // axis.length
        keys = [axis.keys(i) for i in range(axis.length)]
        first, stop = (
            torch.tensor(ends, device=device) for ends in zip(*((k[0], k[-1] + 1) for k in keys), strict=True)
        )
        tables.append([x.to(torch.int32) for x in (at, first[at], stop[at])] + [axis.dilation])

    def sees(_batch, _head, query, key):
        seen = query >= 0
        for at, first, stop, dilation in tables:
            place, start = at[key], first[query]
            seen = seen & (place >= start) & (place < stop[query])
            if dilation > 1:
                seen = seen & ((place - start) % dilation == 0)
        return seen

    return sees


def _blocks(sees, tokens: int, device: str) -> tuple[torch.Tensor, ...]:
    """Counts and numbers of blocks that each block of queries sees in part, then of those it sees whole."""
    count = -(-tokens // BLOCK)
    partly = torch.zeros(2, count, count, dtype=torch.bool, device=device)
    keys = torch.arange(count * BLOCK, device=device)
    exists = keys < tokens
    for row in range(count):
        queries = torch.arange(row * BLOCK, min((row + 1) * BLOCK, tokens), device=device)
        seen = sees(0, 0, queries[:, None], keys.clamp_max(tokens - 1)[None, :]) & exists
        seen = seen.view(len(queries), count, BLOCK)
        some, whole = seen.any(2).any(0), seen.all(2).all(0)
        partly[0, row], partly[1, row] = some & ~whole, whole
    found = []
    for blocks in partly:
        numbers = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        found += [blocks.sum(-1, dtype=torch.int32)[None, None], numbers.to(torch.int32)[None, None]]
    return tuple(found)
