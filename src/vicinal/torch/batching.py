"""`torch.func.vmap`: a batched axis becomes more heads, which every operator treats independently.

Heads rather than batch, because a bias has heads and no batch. Grouped queries stay with their keys: head
`v * H + h` of `V * H` heads belongs to key/value head `v * kv_heads + h // group`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import packed  # noqa: F401  (defines operators)
from .sections import BIAS, OPERANDS, RESULTS, TOKENS

ops = torch.ops.vicinal


def _fold(x: Tensor | None, batched: int | None, heads: int, size: int) -> Tensor | None:
    """Move the batched axis, or a new one, next to the heads and merge them."""
    if x is None:
        return None
    x = x.unsqueeze(0).expand(size, *x.shape) if batched is None else x.movedim(batched, 0)
    place = heads % (x.dim() - 1)
    return x.movedim(0, place).flatten(place, place + 1)


def _unfold(x: Tensor, heads: int, size: int) -> Tensor:
    if x.dim() == 1 and x.numel() == 0:
        return x.unsqueeze(0).expand(size, 0)
    return x.unflatten(heads, (size, -1)).movedim(heads % x.dim(), 0)


def _rule(name: str, inputs: Sequence[int], outputs: Sequence[int], adjust: Callable | None = None) -> None:
    operator = getattr(ops, name)

    def batched(info, in_dims, *args):
        size, count = info.batch_size, len(inputs)
        if any(isinstance(dim, int) for dim in in_dims[count:]):
            raise ValueError(
                "sizes are mapped over by vmap; map over operands alone, and give documents of other sizes "
                "to the batch"
            )
        if not size:
            # Shapes are those of one example, and a sum over none is one of zeros.
            given = zip(args[:count], in_dims[:count], strict=True)
            found = operator(*(x if dim is None else x.sum(dim) for x, dim in given), *args[count:])
            if len(outputs) == 1:
                return found.expand(0, *found.shape), 0
            return tuple(x.expand(0, *x.shape) for x in found), (0,) * len(outputs)
        folded = [
            _fold(x, dim, heads, size)
            for x, dim, heads in zip(args[:count], in_dims[:count], inputs, strict=True)
        ]
        rest = args[count:] if adjust is None else adjust(args[count:], size)
        found = operator(*folded, *rest)
        if len(outputs) == 1:
            return _unfold(found, outputs[0], size), 0
        unfolded = tuple(_unfold(x, heads, size) for x, heads in zip(found, outputs, strict=True))
        return unfolded, (0,) * len(outputs)

    torch.library.register_vmap(f"vicinal::{name}", batched)


_rule("attend", OPERANDS, RESULTS)
_rule("attend_back", OPERANDS + RESULTS * 2, OPERANDS)
_rule("attend_varlen", OPERANDS, RESULTS)
_rule("attend_varlen_back", OPERANDS + RESULTS * 2, OPERANDS)
_rule("dot", (TOKENS, TOKENS, BIAS), (TOKENS,))
_rule("mix", (TOKENS, TOKENS), (TOKENS,))
_rule("mix_back", (TOKENS, TOKENS), (TOKENS,), lambda rest, size: (rest[0], rest[1] * size, *rest[2:]))
_rule("spread", (BIAS,), (TOKENS,))
_rule("tally", (TOKENS,), (BIAS,))
_rule("dense", (TOKENS,) * 3, RESULTS)
_rule("dense_back", (TOKENS,) * 3 + RESULTS * 2, (TOKENS,) * 3)
