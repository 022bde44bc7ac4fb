"""Attention of documents of different shapes: each writes its results where they belong."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from ... import arguments
from ...layout import Group
from ...problem import Problem
from ..backends.base import Grads, Needs, Operands
from ..composite import accumulating
from ..documents import Batch, Placement, arranged, central, members
from ..ops import sampled
from . import backward, forward, fresh, narrow
from .arena import trim
from .backward import Saved
from .bundle import bundles
from .call import Call
from .gradients import Gradients
from .moves import placed


def attend(problem: Problem, operands: Operands, scale: float) -> tuple[Tensor, Tensor]:
    batch, query = arranged(problem), operands.query
    rows = (*batch.outputs.extents, problem.heads)
    out = _zero_outside(batch.outputs, (*rows, problem.value_dim), query)
    lse = fresh.empty(rows, accumulating(query.dtype), query.device)
    if batch.outputs.frame is not None:
        lse.fill_(-torch.inf)
    together, groups = bundles(problem)
    for bundle in together:
        trim()
        run = narrow.run_pass if narrow.faster(problem, bundle) else forward.run_pass
        run(Call(bundle, operands, scale), 0, 0, (out, lse.unsqueeze(-1)))
    for group in _neighbors(groups):
        results = batch.outputs.some(out, group), batch.outputs.some(lse, group)
        forward.attend(_alone(problem, group), Operands(*batch.operands(operands, group)), scale, results)
    return out, lse


def attend_back(
    problem: Problem,
    operands: Operands,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    scale: float,
    needs: Needs,
) -> Grads:
    batch = arranged(problem)
    grads, (together, groups) = _blank(batch, operands, needs), bundles(problem, True)
    sums = Gradients(operands, grads, True)
    saved = Saved.of(out, lse, grad_out, grad_lse, operands.bias is not None)
    columns = [None if x is None else placed(x) for x in (grads.key, grads.value)]
    for bundle in together:
        trim()
        backward.run_pass(Call(bundle, operands, scale), 0, 0, saved, sums, columns)
        sums.finish(bundle)
    for group in _neighbors(groups):
        mine = Operands(*batch.operands(operands, group))
        results = batch.outputs.some(out, group), batch.outputs.some(lse, group)
        pull, slope = (None if x is None else batch.outputs.some(x, group) for x in (grad_out, grad_lse))
        into = _parts(batch, grads, group)
        backward.attend_back(_alone(problem, group), mine, *results, pull, slope, scale, needs, into)
    pairs = zip(grads, operands, strict=True)
    return Grads(*(None if x is None or y is None else x.to(y.dtype) for x, y in pairs))


def _neighbors(groups: Iterable[Group]) -> Iterator[Group]:
    """Documents of one shape that follow one another."""
    for group in groups:
        mine = group.documents
        cuts = [place for place, (one, other) in enumerate(pairwise(mine), 1) if other > one + 1]
        for start, stop in pairwise((0, *cuts, len(mine))):
            yield group._replace(documents=mine[start:stop])


def _alone(problem: Problem, group: Group) -> Problem:
    """The fixed shape of a group."""
    axes = arguments.axes(group.shape, group.window)
    return replace(problem, axes=axes, batch=len(group.documents), documents=None)


def _zero_outside(places: Placement, shape: tuple[int, ...], like: Tensor, count: int = 1) -> Tensor:
    """Memory that is zero outside of documents, one tensor of `count` like it."""
    # Where they fill little of it, most of a huge page would come for nothing.
    sparse = 2 * places.layout.total_tokens < prod(places.extents)
    made = fresh.empty(shape, like.dtype, like.device, huge=not sparse)
    if places.frame is not None and not fresh.drop(made, count):
        for part in places.outside(made):
            part.zero_()
    return made


def _blank(batch: Batch, operands: Operands, needs: Needs) -> Grads:
    """Gradients: zero where no document writes them, and where they are summed."""
    made: list[Tensor | None] = []
    for place, (x, need) in enumerate(zip(operands, needs, strict=True)):
        if x is None or not need:
            made.append(None)
        elif place > 2 or any(step > 1 for step in batch.steps):
            dtype = accumulating(x.dtype) if place > 2 else x.dtype
            made.append(fresh.zeros(tuple(x.shape), dtype, x.device))
        else:
            # Freed together they go back to the system, though each may be small.
            made.append(_zero_outside(batch.tokens, tuple(x.shape), x, sum(needs[:3])))
    return Grads(*made)


def _parts(batch: Batch, grads: Grads, group: Group) -> Grads:
    """Views of what a group writes."""
    query, key, value = (None if x is None else batch.tokens.some(x, group) for x in grads[:3])
    query = None if query is None else sampled(query, batch.steps)
    bias = None if grads.bias is None else central(grads.bias, group.window[0])
    return Grads(query, key, value, bias, *(None if x is None else members(x, group) for x in grads[4:]))
