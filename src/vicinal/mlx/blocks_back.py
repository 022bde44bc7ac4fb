"""Gradients of attention of tiles of queries on boxes of keys, some units at a time."""

from functools import reduce
from math import e, log, log2

import mlx.core as mx

from ..problem import Problem
from . import layout
from .blocks import Begun, Piece, Work, per_volume, powers, together
from .operands import Operands, narrowed, wide


def attend_back(
    problem: Problem,
    operands: Operands,
    out: mx.array,
    lse: mx.array,
    grad_out: mx.array,
    grad_lse: mx.array,
    scale: float,
) -> Operands:
    """Gradients of every operand."""
    work = Work(problem, operands, scale, True)
    grad_out = wide(grad_out)
    delta = (grad_out * wide(out)).sum(-1, keepdims=True) - wide(grad_lse)[..., None]
    # Scores of rows that do not exist are the bias alone, and their weights times zeros must be zeros.
    level = work.rows(lse[..., None] * log2(e), -layout.HIDDEN)
    per_row = [work.query, level, work.rows(delta), work.rows(grad_out)]
    grads = _Grads(work)
    done: list[mx.array] = []
    for some in work.pieces():
        for piece in some:
            done = grads.add(piece, work.begin(piece, done, *per_row))
        done = [*done[:1], *grads.close(some)]
    return grads.result(operands, scale)


class _Grads:
    """Gradients as the pieces come in; all but the query's are added up volume by volume."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.query: list[mx.array] = []
        self.pieces: list[list[mx.array]] = []
        self.volumes: list[list[mx.array]] = []

    def add(self, piece: Piece, begun: Begun) -> list[mx.array]:
        """Take one piece; what comes back is done when the piece is."""
        work = self.work
        query, lse, delta, grad_out = begun.rows
        weights = powers(work.scores(piece, query, begun) - lse)
        slope = weights * (grad_out @ begun.value.swapaxes(-1, -2) - delta)
        grad_query = slope @ begun.key
        pairs = ((slope, query), (weights, grad_out))
        found = [
            layout.fold_first(
                work.layout, layout.fold_rest(work.layout, x.swapaxes(-1, -2) @ rows), piece.units
            )
            for x, rows in pairs
        ]
        if work.added is not None and work.problem.bias:
            apart = slope.reshape(
                piece.extent, -1, slope.shape[1], work.group, work.layout.rows, slope.shape[-1]
            )
            found.append(layout.per_kind(work.layout, apart, piece.units))
        extra = work.extra_of(piece)
        if extra is not None:
            extra_key, extra_value = extra
            weights = powers(per_volume(query, extra_key.swapaxes(-1, -2)) - lse)
            slope = weights * (per_volume(grad_out, extra_value.swapaxes(-1, -2)) - delta)
            grad_query = grad_query + per_volume(slope, extra_key)
            pairs = ((slope, query), (weights, grad_out))
            found += [_of_volumes(piece, x).swapaxes(-1, -2) @ _of_volumes(piece, rows) for x, rows in pairs]
        self.query.append(grad_query)
        self.pieces.append(found)
        return [grad_query, *found]

    def close(self, pieces: list[Piece]) -> list[mx.array]:
        """The volumes of `pieces` are complete; what comes back is done when they are added up."""
        units = [piece.units for piece in pieces]
        boxes, sums = 2, list(zip(*self.pieces, strict=True))
        found = [layout.fold_parts(self.work.layout, list(parts), units) for parts in sums[:boxes]]
        found += [reduce(mx.add, parts) for parts in sums[boxes:]]
        self.volumes.append(found)
        self.pieces = []
        return found

    def result(self, operands: Operands, scale: float) -> Operands:
        """Gradients in the shapes and dtypes of the operands."""
        work, problem = self.work, self.work.problem
        key, value, *rest = (together(list(parts)) for parts in zip(*self.volumes, strict=True))
        bias = layout.bias_gradient(work.layout, rest.pop(0), problem.heads) if problem.bias else None
        extra = (
            x.reshape(problem.batch, problem.kv_heads, *x.shape[1:]).swapaxes(1, 2) * factor
            for x, factor in zip(rest, (log(2), 1.0), strict=False)
        )
        found = Operands(
            work.unrows(self.query) * scale,
            layout.untokens(key, problem) * log(2),
            layout.untokens(value, problem),
            bias,
            *extra,
        )
        return narrowed(found, operands)


def _of_volumes(piece: Piece, x: mx.array) -> mx.array:
    """`[units, tiles, rows, width]` as `[volumes, all rows, width]`."""
    return x.reshape(piece.extent, -1, x.shape[-1])
