"""A repeated launch hands a compiled kernel what Triton's own launch does; needs no GPU.

In a process of its own: kernels remember what they were compiled with.
"""

from itertools import pairwise

import torch
from triton import knobs

from tests.triton import absent, offline
from vicinal import Axis
from vicinal.triton import support

CALLS = []


def record(*arguments):
    CALLS.append([plain(argument) for argument in arguments])


def plain(argument):
    """Tensors as their addresses; nothing for a chain of no hooks, and for what only hooks are told."""
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    unheard = type(argument).__name__ == "LazyDict" or getattr(argument, "calls", True) == []
    return None if unheard else argument


def main():
    absent.install(record)
    p = offline.problem((Axis(23, 5),), 16, "float16", bias=True, extra=3, kv_heads=2)
    for _, launch, dtypes in offline.kernels(p):
        tensors = [None if dtype is None else torch.empty(16, dtype=dtype) for dtype in dtypes]
        launch(*tensors)
        launch(*tensors)
    assert len(CALLS) >= 16
    for first, again in list(pairwise(CALLS))[::2]:
        assert first == again
    if support.installed() == support.GLUON:
        check_hooks(launch, tensors)


def check_hooks(launch, tensors):
    """A repeated launch names itself to a hook that was added since."""
    for hooks in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        hooks.add(print)
        launch(*tensors)
        assert hooks in CALLS[-1]
        hooks.remove(print)
        launch(*tensors)
        assert hooks not in CALLS[-1]


if __name__ == "__main__":
    main()
