"""Calls like one before: from the geometry of operands to what runs, in one lookup.

Checks, `Problem`, backend and plan follow from shapes, strides, dtypes, device, arguments and settings, and
so does a `Ready` function. It takes operands of that geometry, and reads addresses and stream itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .. import settings
from . import autograd, known, packed_derivatives
from .backends.base import Ready
from .known import READY
from .ops import sampled
from .watching import autocast_dtype, is_recorded, is_watched

# Operators whose first tensor has the tokens of all queries until it is sampled.
QUERIES = ("attend", "dot")
FUNCTIONS = autograd.FUNCTIONS | packed_derivatives.FUNCTIONS


def call(name: str, operands: tuple[Any, ...], asked: tuple[Any, ...], check: Callable[..., tuple]) -> Any:
    """The operator `name` for a caller's operands and arguments, as they came.

    `check` makes of both, or refuses, what the operator takes: its tensors, where the query is not yet
    sampled, and its other arguments.
    """
    key = _key(name, operands, asked)
    ready = _find(key)
    if ready is not None:
        return ready(*operands)
    tensors, rest = check(*operands, *asked)
    is_cast = any(x is not y for x, y in zip(tensors, operands, strict=True))
    if key is None or tensors[0].is_meta or is_cast:
        return getattr(torch.ops.vicinal, name)(*_first_sampled(name, tensors, rest), *rest)
    return known.keep(key, _ready(name, tensors, rest))(*operands)


def _key(name: str, operands: tuple[Any, ...], asked: tuple[Any, ...]) -> tuple | None:
    """What decides about a call, or None where something else sees it too.

    Equal numbers of other types are other arguments.
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
    return (name, *found, asked, kinds, narrow, current.backend, current.tf32)


def _find(key: tuple | None) -> Ready | None:
    """What was kept for `key`, if so."""
    try:
        return None if key is None else known.find(key)
    except TypeError:
        # Checks refuse an argument that no dictionary takes.
        return None


def _ready(name: str, operands: tuple, rest: tuple) -> Ready:
    """What computes the operator for operands like these, recorded if these are."""
    ready = READY[name](_first_sampled(name, operands, rest), rest)
    if is_recorded(operands):
        ready = partial(FUNCTIONS[name].apply, autograd.Call(ready, rest))
    steps = rest[4]
    if name in QUERIES and any(step > 1 for step in steps):
        run = ready
        ready = lambda query, *others: run(sampled(query, steps), *others)  # noqa: E731
    return ready


def _first_sampled(name: str, tensors: tuple, rest: tuple) -> tuple:
    """`tensors`, with a query sampled as the window, at the head of `rest`, says."""
    return (sampled(tensors[0], rest[4]), *tensors[1:]) if name in QUERIES else tensors
