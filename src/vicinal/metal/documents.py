"""Documents of different shapes in one launch: their layouts one after another, and where each one lies."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

from .. import arguments
from ..layout import VarlenLayout, groups
from ..problem import Documents, Problem
from . import geometry
from .geometry import Geometry, Layout

Extents = tuple[int, ...]


class Places(NamedTuple):
    """Extents of a tensor, before those of a token, and the first token of every entry of the batch."""

    extents: Extents
    starts: Sequence[int]


@lru_cache(256)
def tokens(problem: Problem) -> Places:
    """Where keys, values and their gradients lie."""
    return _places(problem, problem.lengths, (1,) * problem.rank)


@lru_cache(256)
def outputs(problem: Problem) -> Places:
    """Where results lie."""
    return _places(problem, problem.outputs, tuple(axis.output_stride for axis in problem.axes))


@lru_cache(256)
def layout(problem: Problem, inverse: bool = False) -> Layout:
    """`geometry.layout`, of documents too."""
    documents = problem.documents
    if documents is None:
        return geometry.layout(problem, inverse)
    results, operands = outputs(problem), tokens(problem)
    rooms = None if documents.frame is None else (results.extents[1:], operands.extents[1:])
    starts = (operands.starts, results.starts) if inverse else (results.starts, operands.starts)
    alone = lambda part: geometry.layout(part, inverse, rooms, problem.window)  # noqa: E731
    return _together(problem, documents, alone, *starts)


@lru_cache(256)
def whole(problem: Problem) -> Layout:
    """`geometry.whole`, of documents too."""
    documents, results = problem.documents, outputs(problem)
    if documents is None:
        return geometry.whole(problem)
    room = None if documents.frame is None else results.extents[1:]
    rows = [document * problem.extra for document in range(problem.batch)]
    return _together(problem, documents, lambda part: geometry.whole(part, room), rows, results.starts)


def sampling(
    problem: Problem, arange: Callable[[int], Any], concatenate: Callable[[list[Any]], Any]
) -> tuple[Any, ...] | None:
    """Index of the tokens of documents that have outputs; None where all have, or queries are sampled."""
    documents, steps = problem.documents, [axis.output_stride for axis in problem.axes]
    if documents is None or all(step == 1 for step in steps):
        return None
    slices = tuple(slice(None, None, step) for step in steps)
    if documents.frame is not None:
        return (slice(None), *slices)
    found = VarlenLayout(documents.shapes, problem.rank)
    parts = found.split(arange(found.total_tokens))
    return (concatenate([part[slices].flatten() for part in parts]),)


def _places(problem: Problem, lengths: Extents, steps: Extents) -> Places:
    documents = problem.documents
    frame, batch = lengths, problem.batch
    if documents is not None:
        if documents.frame is None:
            found = VarlenLayout(documents.shapes, problem.rank).sampled(steps)
            return Places((found.total_tokens,), found.offsets)
        frame = tuple(-(-room // step) for room, step in zip(documents.frame, steps, strict=True))
    return Places((batch, *frame), range(0, batch * prod(frame), max(prod(frame), 1)))


def _together(
    problem: Problem,
    documents: Documents,
    alone: Callable[[Problem], Layout],
    rows: Sequence[int],
    columns: Sequence[int],
) -> Layout:
    """One layout of documents whose rows and columns start there, made of the layouts of their shapes."""
    window = tuple(
        tuple(getattr(axis, name) for axis in problem.axes)
        for name in ("size", "stride", "dilation", "causal", "output_stride")
    )
    found = groups(documents.shapes, window, documents.clip)
    parts = [
        alone(replace(problem, axes=arguments.axes(group.shape, group.window), batch=1, documents=None))
        for group in found
    ]
    of = {document: number for number, group in enumerate(found) for document in group.documents}
    table: list[int] = []
    totals: list[int] = []
    for counts in ([part.tile_count for part in parts], [part.row_count for part in parts]):
        # Empty documents have no geometry, and nothing that would ask for it.
        firsts = [*accumulate((counts[of[i]] if i in of else 0 for i in range(problem.batch)), initial=0)]
        for document in range(problem.batch):
            table += (firsts[document], of.get(document, 0), rows[document], columns[document])
        table += (firsts[-1], 0, 0, 0)
        totals.append(firsts[-1])
    geometries: list[Geometry] = []
    for part in parts:
        geometries.append(_moved(part.geometry, len(table) // 4, problem.batch))
        table += part.table
    every = [parts[of[document]] for document in of]
    return Layout(
        geometries=tuple(geometries),
        table=tuple(table),
        heads=parts[0].heads,
        tile_count=totals[0],
        row_count=totals[1],
        batch=1,
        widest=tuple(map(max, zip(*(part.widest for part in parts), strict=True))),
        computed=sum(part.computed for part in every),
        visible=sum(part.visible for part in every),
    )


def _moved(found: Geometry, places: int, batch: int) -> Geometry:
    """The same for a table that starts `places` entries further on."""
    moved = lambda starts: tuple(start + places for start in starts)  # noqa: E731
    return found._replace(
        row_table=moved(found.row_table),
        output_table=moved(found.output_table),
        tile_table=moved(found.tile_table),
        batch=batch,
    )
