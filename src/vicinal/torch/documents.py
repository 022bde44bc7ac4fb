"""Documents of different shapes inside one tensor: views of them, and tensors put together from them."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import layout
from ..arguments import Window
from ..layout import Group, Shape, VarlenLayout
from ..problem import Documents, Problem
from .ops import sampled


class Placement(NamedTuple):
    """Where documents lie: packed, in `[tokens, ...]`, or each in the first corner of its entry of a padded
    `[batch, *frame, ...]`."""

    layout: VarlenLayout
    frame: Shape | None

    @property
    def extents(self) -> tuple[int, ...]:
        """Extents of a tensor with these documents, before those of a token."""
        return (self.layout.total_tokens,) if self.frame is None else (len(self.layout), *self.frame)

    def one(self, x: Tensor, document: int) -> Tensor:
        """`[*shape, ...]`, a view."""
        shape = self.layout.shapes[document]
        if self.frame is not None:
            return x[(document, *map(slice, shape))]
        start, stop = self.layout.offsets[document : document + 2]
        return x[start:stop].unflatten(0, shape)

    def some(self, x: Tensor, group: Group) -> Tensor:
        """`[documents, *shape, ...]`, a view if they are neighbors."""
        if not group.neighbors:
            return torch.stack([self.one(x, document) for document in group.documents])
        first, count = group.documents[0], len(group.documents)
        shape, offsets = self.layout.shapes[first], self.layout.offsets
        if self.frame is not None:
            return x[(slice(first, first + count), *map(slice, shape))]
        return x[offsets[first] : offsets[first + count]].unflatten(0, (count, *shape))

    def put(self, x: Tensor, group: Group, part: Tensor, steps: Sequence[int] = (1,)) -> None:
        """Write `[documents, *rows, ...]` to every `steps`-th token of the documents."""
        if group.neighbors:
            sampled(self.some(x, group), steps).copy_(part)
            return
        for document, rows in zip(group.documents, part.split(1), strict=True):
            sampled(self.one(x, document).unsqueeze(0), steps).copy_(rows)

    def outside(self, x: Tensor) -> Iterator[Tensor]:
        """Views that are all of `x` but the documents."""
        if self.frame is None:
            return
        for entry, shape in zip(x, self.layout.shapes, strict=True):
            for axis, (extent, room) in enumerate(zip(shape, self.frame, strict=True)):
                if extent < room:
                    yield entry[(*map(slice, shape[:axis]), slice(extent, None))]

    def joined(self, groups: Sequence[Group], parts: Sequence[Tensor], token: Tensor) -> Tensor:
        """One tensor of parts `[documents, *shape, ...]`, differentiable; `token` is one that is zero."""
        rank, frame, found = self.layout.rank, self.frame, _by_document(groups, parts)
        if frame is None:
            flat = [found[document].flatten(0, rank - 1) for document in sorted(found)]
            return torch.cat([token.new_empty(0, *token.shape), *flat])
        padded = [token.new_empty(0, *frame, *token.shape)]
        for document in range(len(self.layout)):
            x = found.get(document, token.expand(*(1,) * rank, *token.shape))
            gaps = [room - extent for room, extent in zip(frame, x.shape, strict=False)]
            blanks = [edge for gap in reversed(gaps) for edge in (0, gap)]
            padded.append(pad(x, [0, 0] * token.dim() + blanks).unsqueeze(0))
        return torch.cat(padded)


class Batch(NamedTuple):
    """Documents of one call: where their tokens and their outputs lie, and which are of one shape.

    `lengths` and `documents` are those of a problem that holds them all. Operands are those of
    `backends/base.py`, over documents; any of them may be None.
    """

    tokens: Placement
    outputs: Placement
    groups: tuple[Group, ...]
    steps: tuple[int, ...]
    lengths: Shape
    documents: Documents

    def operands(self, given: Sequence[Tensor | None], group: Group) -> tuple[Any, ...]:
        """What the fixed-shape operation takes for one group; differentiable."""
        query, key, value = (None if x is None else self.tokens.some(x, group) for x in given[:3])
        query = None if query is None else sampled(query, self.steps)
        bias = None if given[3] is None else central(given[3], group.window[0])
        return query, key, value, bias, *(None if x is None else members(x, group) for x in given[4:])

    def gathered(self, parts: Sequence[Sequence[Tensor]], like: Sequence[Tensor | None]) -> tuple[Any, ...]:
        """The adjoint of `operands`, from what every group gives; differentiable. `like` are the operands."""
        groups, found = self.groups, list(zip(*parts, strict=True)) or [()] * len(like)
        found[0] = tuple(spaced(x, self.steps, g.shape) for x, g in zip(found[0], groups, strict=True))
        made: list[Tensor | None] = []
        for place, (x, column) in enumerate(zip(like, found, strict=True)):
            if x is None:
                made.append(None)
            elif place < 3:
                made.append(self.tokens.joined(groups, column, x.new_zeros(x.shape[-2:])))
            elif place == 3:
                made.append(sum((surrounded(part, x.shape) for part in column), torch.zeros_like(x)))
            else:
                rows, blank = _by_document(groups, column), x.new_zeros(x.shape[1:])
                made.append(torch.stack([rows.get(document, blank) for document in range(len(x))]))
        return tuple(made)


def batch(tokens: Tensor, shapes: Tensor, window: Sequence, clip: bool) -> Batch:
    """How documents of `shapes`, `[documents, axes]`, lie in `[tokens, heads, dim]` or a padded batch.

    Raises:
        ValueError: they do not fit in there, or the window does not fit them.
    """
    frame = None if tokens.dim() == 3 else tuple(tokens.shape[1:-2])
    entries = tuple(map(tuple, shapes.tolist()))
    return _batch(entries, shapes.shape[1], frame, tokens.shape[0], tuple(map(tuple, window)), clip)


def arranged(problem: Problem) -> Batch:
    """How the documents of a problem lie."""
    assert problem.documents is not None
    shapes, frame, clip = problem.documents
    tokens = sum(map(prod, shapes)) if frame is None else len(shapes)
    window = zip(
        *((a.size, a.stride, a.dilation, a.causal, a.output_stride) for a in problem.axes), strict=True
    )
    return _batch(shapes, problem.rank, frame, tokens, tuple(window), clip)


@lru_cache(256)
def _batch(
    shapes: tuple[Shape, ...], rank: int, frame: Shape | None, extent: int, window: Window, clip: bool
) -> Batch:
    places, steps = VarlenLayout(shapes, rank), window[4]
    outputs = layout.output_frame(places, frame, extent, steps)
    found = layout.groups(shapes, window, clip)
    lengths, documents = layout.together(shapes, frame, window, clip)
    tokens, results = Placement(places, frame), Placement(places.sampled(steps), outputs)
    return Batch(tokens, results, found, steps, lengths, documents)


def spaced(x: Tensor, steps: Sequence[int], shape: Shape) -> Tensor:
    """The adjoint of `sampled`: `[documents, *shape, ...]` with zeros between."""
    for axis, (step, extent) in enumerate(zip(steps, shape, strict=True), 1):
        gaps = [0, 0] * (x.dim() - axis - 1) + [0, step - 1]
        x = pad(x.unsqueeze(axis + 1), gaps).flatten(axis, axis + 1).narrow(axis, 0, extent)
    return x


def central(bias: Tensor, sizes: Sequence[int]) -> Tensor:
    """The entries of a relative position bias that windows of `sizes` use, a view."""
    for axis, size in enumerate(sizes, 1):
        bias = bias.narrow(axis, bias.shape[axis] // 2 + 1 - size, 2 * size - 1)
    return bias


def surrounded(bias: Tensor, shape: Sequence[int]) -> Tensor:
    """The adjoint of `central`: zeros around."""
    edges = ((extent - mine) // 2 for extent, mine in zip(reversed(shape), reversed(bias.shape), strict=True))
    return pad(bias, [edge for gap in edges for edge in (gap, gap)])


def members(x: Tensor, group: Group) -> Tensor:
    """Entries of the documents of a group in `[documents, ...]`; a view if they are neighbors."""
    if group.neighbors:
        return x[group.documents[0] : group.documents[-1] + 1]
    return torch.stack([x[document] for document in group.documents])


def put_members(x: Tensor, group: Group, part: Tensor) -> None:
    """Write the entries of the documents of a group to `[documents, ...]`."""
    for document, entry in zip(group.documents, part, strict=True):
        x[document].copy_(entry)


def _by_document(groups: Sequence[Group], parts: Sequence[Tensor]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for group, part in zip(groups, parts, strict=True):
        found.update(zip(group.documents, part.unbind(), strict=True))
    return found
