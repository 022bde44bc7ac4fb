"""Windows as tensors, built once per axis and device."""

from functools import lru_cache

import torch
from torch import Tensor

from .. import spans
from ..window import Axis


@lru_cache(256)
def keys(axis: Axis, device: torch.device) -> Tensor:
    """`[outputs, size]` key of every slot; a slot without a key repeats the last one."""
    first, count = (torch.tensor(table, device=device) for table in spans.windows(axis))
    slots = torch.arange(axis.size, device=device)
    return first[:, None] + axis.dilation * torch.minimum(slots, count[:, None] - 1)


@lru_cache(256)
def holds(axis: Axis, device: torch.device) -> Tensor:
    """`[outputs, size]` whether the slot holds a key."""
    count = torch.tensor(spans.windows(axis)[1], device=device)
    return torch.arange(axis.size, device=device) < count[:, None]


@lru_cache(256)
def relative(axis: Axis, device: torch.device) -> Tensor:
    """`[outputs]` entry of the relative position table that slot 0 uses."""
    return torch.tensor(spans.relative(axis), device=device)


def visible_slots(axes: tuple[Axis, ...], device: torch.device) -> Tensor | None:
    """`[*outputs, prod(size)]` whether each slot of each window holds a key; None if all do."""
    if not any(axis.causal for axis in axes):
        return None
    rank = len(axes)
    mask = torch.ones((1,) * 2 * rank, dtype=torch.bool, device=device)
    for place, axis in enumerate(axes):
        shape = [1] * 2 * rank
        shape[place], shape[rank + place] = axis.outputs, axis.size
        mask = mask & holds(axis, device).view(shape)
    return mask.flatten(rank)
