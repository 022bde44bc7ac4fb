"""PyTorch, to the translations of `vicinal.compat.eras`."""

from collections.abc import Sequence

import torch
from torch import Tensor

import vicinal.torch as na
from vicinal.compat.eras.front import Front


def _pad(x: Tensor, ends: Sequence[int]) -> Tensor:
    return torch.nn.functional.pad(x, [extent for end in reversed(ends) for extent in (0, end)])


def _integers(values: list[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=like.device)


FRONT = Front(na, torch.movedim, torch.permute, torch.cat, _pad, _integers)
