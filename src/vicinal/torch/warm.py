"""Calls like one before: from the geometry of operands to what runs, in one lookup.

Checks, `Problem`, backend and plan follow from shapes, strides, dtypes, device, arguments and settings, and
so does a `Ready` function. It takes operands of that geometry, and reads addresses and stream itself.
"""

from typing import Any

from torch import Tensor

from .. import settings
from ..arguments import Window
from . import known, ops
from .autograd import FUNCTIONS
from .backends.base import Ready
from .watching import autocast_dtype, is_watched


def key(operands: tuple[Tensor | None, ...], asked: tuple[Any, ...]) -> tuple | None:
    """What decides about a call, or None where something else sees it too.

    `asked` are the arguments as they came. Equal numbers of other types are other arguments.
    """
    found = None if is_watched() else known.geometry(operands)
    if found is None:
        return None
    kinds: tuple = tuple(map(type, asked))
    if tuple in kinds or list in kinds:
        asked = tuple([tuple(x) if type(x) in (tuple, list) else (x,) for x in asked])
        kinds += tuple([tuple(map(type, entries)) for entries in asked])
    current = settings.current()
    narrow = None if operands[0] is None else autocast_dtype(operands[0].device.type)
    return (*found, asked, kinds, narrow, current.backend, current.tf32)


def find(key: tuple | None) -> Ready | None:
    """What `keep` was given for `key`, if so."""
    try:
        return None if key is None else known.find(key)
    except TypeError:
        # Checks refuse an argument that no dictionary takes.
        return None


def keep(key: tuple, operands: tuple[Any, ...], window: Window, rest: tuple) -> Ready:
    """What computes attention of operands like these; `find` answers with it from now on.

    `rest` are the last arguments of the operator `attend`.
    """
    steps, gradients = window[4], rest[1]
    ready = ops.ready_attend((ops.sampled(operands[0], steps), *operands[1:]), (*window, *rest))
    if gradients:
        ready = _recorded(ready, (*window, *rest))
    if any(step > 1 for step in steps):
        ready = _of_samples(ready, steps)
    return known.keep(key, ready)


def _recorded(ready: Ready, rest: tuple) -> Ready:
    compute = lambda *given: ready(*given[:6])  # noqa: E731
    function = FUNCTIONS["attend"]
    return lambda *operands: function.apply(compute, *operands, *rest)


def _of_samples(ready: Ready, steps: tuple[int, ...]) -> Ready:
    return lambda query, *others: ready(ops.sampled(query, steps), *others)
