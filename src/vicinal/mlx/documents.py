"""Documents of different shapes inside one array: parts of it, and arrays put together from parts."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx

from .. import layout
from ..arguments import Window
from ..layout import Group, Shape, VarlenLayout
from ..problem import Documents
from . import ops
from .operands import Operands
from .ops import Call


class Placement(NamedTuple):
    """Where documents lie: packed, in `[tokens, ...]`, or each in the first corner of its entry of a padded
    `[batch, *frame, ...]`."""

    layout: VarlenLayout
    frame: Shape | None

    def split(self, x: mx.array, groups: tuple[Group, ...]) -> Sequence[mx.array]:
        """Documents of each group, `[documents, *shape, ...]`."""
        return _split(self, groups)(x) if groups else ()

    def some(self, x: mx.array, group: Group) -> mx.array:
        """Those of one."""
        first, count = group.documents[0], len(group.documents)
        shape = self.layout.shapes[first]
        if self.frame is not None:
            return members(x, group)[(slice(None), *map(slice, shape))]
        offsets = self.layout.offsets
        if group.neighbors:
            return x[offsets[first] : offsets[first + count]].reshape(count, *shape, *x.shape[1:])
        found = [x[offsets[one] : offsets[one + 1]].reshape(*shape, *x.shape[1:]) for one in group.documents]
        return mx.stack(found)

    def joined(self, groups: Sequence[Group], parts: Sequence[mx.array], blank: mx.array) -> mx.array:
        """One array of parts `[documents, *shape, ...]`; `blank` is a token of what lies outside of them."""
        if self.frame is None:
            return self._packed(groups, parts, blank)
        fill = blank.flatten()[0]
        framed = []
        for part in parts:
            gaps = [(0, room - extent) for room, extent in zip(self.frame, part.shape[1:], strict=False)]
            framed.append(mx.pad(part, [(0, 0), *gaps, *[(0, 0)] * blank.ndim], constant_values=fill))
        order = [document for group in groups for document in group.documents]
        empty = [document for document in range(len(self.layout)) if document not in set(order)]
        if empty:
            framed.append(mx.broadcast_to(blank, (len(empty), *self.frame, *blank.shape)))
        if not framed:
            return mx.zeros((0, *self.frame, *blank.shape), blank.dtype)
        return _in_order(mx.concatenate(framed), order + empty)

    def _packed(self, groups: Sequence[Group], parts: Sequence[mx.array], blank: mx.array) -> mx.array:
        rank = self.layout.rank
        if not groups:
            return mx.zeros((0, *blank.shape), blank.dtype)
        order = [document for group in groups for document in group.documents]
        if order == sorted(order):
            return mx.concatenate([part.flatten(0, rank) for part in parts])
        found = {}
        for group, part in zip(groups, parts, strict=True):
            found.update(zip(group.documents, part, strict=True))
        return mx.concatenate([found[document].flatten(0, rank - 1) for document in sorted(found)])


class Batch(NamedTuple):
    """Documents of one call: where their tokens and their outputs lie, and which are of one shape.

    `lengths` and `documents` are those of a problem that holds them all.
    """

    tokens: Placement
    outputs: Placement
    groups: tuple[Group, ...]
    steps: tuple[int, ...]
    lengths: Shape
    documents: Documents

    def operands(self, given: Operands) -> list[Operands]:
        """What the fixed-shape operation takes for each group."""
        found = []
        tokens = (self.tokens.split(x, self.groups) for x in given[:3])
        for group, query, key, value in zip(self.groups, *tokens, strict=True):
            bias = None if given.bias is None else central(given.bias, group.window[0])
            extras = (None if x is None else members(x, group) for x in given[4:])
            found.append(Operands(sampled(query, self.steps), key, value, bias, *extras))
        return found

    def attend(self, call: Call, given: Operands, with_lse: bool) -> tuple[mx.array, mx.array | None]:
        """Attention of all documents, and the log-sum-exp if asked for: in one launch where a backend has one
        and there are several shapes."""
        together = call._replace(batch=self)
        if len(self.groups) > 1 and ops.is_together(together, given):
            return ops.attend(together, given, with_lse)
        return self.by_shape(call, given, with_lse)

    def by_shape(self, call: Call, given: Operands, with_lse: bool) -> tuple[mx.array, mx.array | None]:
        """The same, documents of one shape after those of another."""
        found = [
            ops.attend(call._replace(window=group.window), mine, with_lse)
            for group, mine in zip(self.groups, self.operands(given), strict=True)
        ]
        heads = given.query.shape[-2]
        blank = mx.zeros((heads, given.value.shape[-1]), given.query.dtype)
        out = self.outputs.joined(self.groups, [out for out, _ in found], blank)
        if not with_lse:
            return out, None
        lses = [lse for _, lse in found if lse is not None]
        return out, self.outputs.joined(self.groups, lses, mx.full(heads, -float("inf")))


def batch(tokens: mx.array, shapes: tuple[Shape, ...], rank: int, window: Window, clip: bool) -> Batch:
    """How documents of `shapes` lie in `[tokens, heads, dim]` or a padded batch.

    Raises:
        ValueError: they do not fit in there, or the window does not fit them.
    """
    frame = None if tokens.ndim == 3 else tuple(tokens.shape[1:-2])
    return _batch(shapes, rank, frame, tokens.shape[0], window, clip)


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


@lru_cache(256)
def _split(places: Placement, groups: tuple[Group, ...]) -> Callable[[mx.array], Sequence[mx.array]]:
    """MLX makes the gradient of a part as large as the whole, for each; here, one is put together of all."""

    @mx.custom_function
    def split(x):
        return tuple(places.some(x, group) for group in groups)

    @split.vjp
    def back(primals, cotangents, _):
        (x,) = ops.several(primals)
        blank = mx.zeros(x.shape[-2:], x.dtype)
        return places.joined(groups, ops.several(cotangents), blank)

    return lambda x: ops.several(split(x))


def sampled(query: mx.array, steps: Sequence[int]) -> mx.array:
    """Every `steps`-th query of `[batch, *spatial, heads, dim]`."""
    if all(step == 1 for step in steps):
        return query
    # MLX 0.32.0 gets the gradient of a strided slice of one row wrong, so that one has no stride.
    slices = (
        slice(None, None, step) if step < length else slice(1)
        for step, length in zip(steps, query.shape[1:], strict=False)
    )
    return query[(slice(None), *slices)]


def central(bias: mx.array, sizes: Sequence[int]) -> mx.array:
    """The entries of a relative position bias that windows of `sizes` use."""
    middle = (
        slice(extent // 2 + 1 - size, extent // 2 + size)
        for size, extent in zip(sizes, bias.shape[1:], strict=True)
    )
    return bias[(slice(None), *middle)]


def members(x: mx.array, group: Group) -> mx.array:
    """Entries of the documents of a group in `[documents, ...]`."""
    if group.neighbors:
        return x[group.documents[0] : group.documents[-1] + 1]
    return mx.take(x, mx.array(group.documents), axis=0)


def _in_order(x: mx.array, documents: Sequence[int]) -> mx.array:
    """Entries of `x`, which are those of `documents`, in the order of the documents."""
    order = sorted(range(len(documents)), key=documents.__getitem__)
    return x if order == list(range(len(order))) else mx.take(x, mx.array(order), axis=0)
