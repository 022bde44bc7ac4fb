"""Copies between strided views: worked out once for a layout, repeated for every tensor that has it."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

Geometry = tuple[tuple[int, ...], tuple[int, ...], int]
"""Size, strides, and offset from where a tensor starts."""


class Place(NamedTuple):
    """Part of a tensor. Views of it are made where they are read: each costs as much as a small copy."""

    tensor: Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def view(self) -> Tensor:
        return self.tensor.as_strided(self.shape, self.strides, self.offset)


def placed(x: Tensor, where: Geometry | None = None) -> Place:
    """All of a tensor, or what is at `where` in it."""
    if where is None:
        return Place(x, *geometry(x))
    size, strides, offset = where
    return Place(x, size, strides, offset + int(x.storage_offset()))


def one_of(place: Place, number: int, axes: int) -> Place:
    """The one that has a number among those of the leading `axes`."""
    offset, shape = place.offset, place.shape
    for size, stride in zip(shape[axes - 1 :: -1], place.strides[axes - 1 :: -1], strict=True):
        number, at = divmod(number, size)
        offset += at * stride
    return Place(place.tensor, ((1,) * axes) + shape[axes:], place.strides, offset)


class Step(NamedTuple):
    """`copy_`, `add_` or `zero_` applied to a view of one tensor with a view of another; tensors go by
    number."""

    action: str
    sink: int
    view: Tensor
    source: int = -1
    other: Tensor | None = None


class Move(NamedTuple):
    """A step without its tensors."""

    action: str
    sink: int
    into: Geometry
    source: int
    outof: Geometry | None


def blank(shape: Iterable[int], strides: Iterable[int] | None = None) -> Tensor:
    """A tensor without memory, to take views of."""
    if strides is None:
        return torch.empty(tuple(shape), device="meta")
    return torch.empty_strided(tuple(shape), tuple(strides), device="meta")


def geometry(x: Tensor) -> Geometry:
    return tuple(x.shape), x.stride(), int(x.storage_offset())


def record(steps: Iterable[Step]) -> tuple[Move, ...]:
    """Steps on blanks as moves; those that move nothing are left out."""
    return tuple(
        Move(
            step.action,
            step.sink,
            geometry(step.view),
            step.source,
            None if step.other is None else geometry(step.other),
        )
        for step in steps
        if step.view.numel()
    )


def view(x: Tensor, where: Geometry) -> Tensor:
    size, strides, offset = where
    return x.as_strided(size, strides, offset + x.storage_offset())


class Held(NamedTuple):
    """A move whose first tensor is at hand: from there to `where` in another one, or the way round."""

    mine: Tensor
    where: Geometry | None
    out: bool


def hold(moves: tuple[Move, ...], mine: Tensor) -> list[Held]:
    """Copies between tensor 0, at hand, and tensor 1; and what is cleared of tensor 0."""
    found = []
    for action, sink, into, _, outof in moves:
        assert action != "add_"
        out = sink == 1
        here, there = (outof, into) if out else (into, outof)
        assert here is not None
        found.append(Held(view(mine, here), there, out))
    return found


def play(held: list[Held], other: Place) -> None:
    tensor, start = other.tensor, other.offset
    for mine, where, out in held:
        if where is None:
            mine.zero_()
            continue
        # What `_inside` does: calling it would take half as long as the view.
        size, strides, offset = where
        theirs = tensor.as_strided(size, strides, start + offset)
        if out:
            theirs.copy_(mine)
        else:
            mine.copy_(theirs)


def run(moves: tuple[Move, ...], *places: Place) -> None:
    for action, sink, into, source, outof in moves:
        target = _inside(places[sink], into)
        if outof is None:
            target.zero_()
        elif action == "copy_":
            target.copy_(_inside(places[source], outof))
        else:
            target.add_(_inside(places[source], outof))


def _inside(place: Place, where: Geometry) -> Tensor:
    size, strides, offset = where
    return place.tensor.as_strided(size, strides, place.offset + offset)
