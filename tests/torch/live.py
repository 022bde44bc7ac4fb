"""Memory that tensors take while a function runs."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts bytes of memory that operations return, until the last tensor that shares it is gone: `now`, and
    at most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.sizes = {}

    def __torch_dispatch__(self, function, _, args=(), options=None):
        made = function(*args, **(options or {}))
        given = {_memory(x)._cdata for x in _tensors((args, options))}
        for memory in map(_memory, _tensors(made)):
            key = memory._cdata
            if key not in given and key not in self.sizes:
                self.sizes[key] = memory.nbytes()
                self.now += memory.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(memory, self._forget, key)
        return made

    def _forget(self, key):
        self.now -= self.sizes.pop(key)


def _tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and not x.is_meta]


def _memory(x):
    return x.untyped_storage()


def beside_results(function):
    """Bytes that a function takes at most besides its results, and those."""
    with Live() as live:
        results = function()
    return live.most - sum(x.nbytes for x in _tensors(results)), results
