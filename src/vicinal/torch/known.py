"""What was worked out for tensors of one geometry, so that it is worked out once."""

from typing import Any

import torch
from torch._C._functorch import is_legacy_batchedtensor

from .. import settings
from . import ops, packed
from .backends.base import Ready
from .watching import PLAIN, is_watched

# Many more geometries than a model has; a program that never repeats one must not grow forever.
MOST = 4096
_known: dict[tuple, Ready] = {}
READY = ops.READY | packed.READY


def geometry(tensors: tuple[Any, ...]) -> tuple[tuple, bool] | None:
    """Shapes, strides, dtypes and devices, and whether the call is recorded; None if some are not plain."""
    found: list[Any] = []
    gradients = False
    for x in tensors:
        if x is None:
            found.append(None)
        # What looks like a tensor may be a batch, of `torch.autograd.grad(is_grads_batched=True)`, zeros that
        # take no memory, or the negative of what is in memory.
        elif type(x) in PLAIN and not (is_legacy_batchedtensor(x) or x._is_zerotensor() or x.is_neg()):
            dtype = x.dtype
            found += (x.shape, x.stride(), dtype, x.device)
            if dtype is torch.int64:
                # Shapes of documents decide like those of tensors.
                found += x.flatten().tolist()
            gradients = gradients or x.requires_grad
        else:
            return None
    return tuple(found), gradients and torch.is_grad_enabled()


def find(key: tuple) -> Ready | None:
    """What `keep` was given for `key`, if so."""
    return _known.get(key)


def keep(key: tuple, ready: Ready) -> Ready:
    """`ready`, with which `find` answers from now on."""
    if len(_known) >= MOST:
        _known.clear()
    _known[key] = ready
    return ready


def call(name: str, tensors: tuple[Any, ...], *rest: Any) -> Any:
    """The operator `name`; beside the dispatcher where nobody watches, with None for an empty tensor."""
    found = None if is_watched() else geometry(tensors)
    if found is None or found[1]:
        return getattr(torch.ops.vicinal, name)(*tensors, *rest)
    key = (name, found[0], rest, settings.current().backend)
    ready = find(key)
    if ready is None:
        if tensors[0].is_meta:
            return getattr(torch.ops.vicinal, name)(*tensors, *rest)
        ready = keep(key, READY[name](tensors, rest))
    return ready(*tensors)
