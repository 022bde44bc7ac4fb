"""Attention of tiles of queries on boxes of keys, some units at a time.

Pieces of work run one after another, each waiting for the one before, so that what they need lives once.
Scores are in units of log 2.
"""

import sys
from math import e, log, log2
from typing import NamedTuple

import mlx.core as mx

from ..problem import Problem
from . import layout, tiles
from .layout import Layout
from .operands import Operands, wide
from .order import after

# Bytes of a piece of work; the best of powers of two, forward and backward. MLX holds several at a time.
BUDGET = 1 << 23

# Powers below 2 ** LEAST count as zero, which spares the slow subnormal numbers.
LEAST = -100.0


class Piece(NamedTuple):
    """Volumes, and of each the units, that are worked on together."""

    volumes: slice
    units: slice

    @property
    def extent(self) -> int:
        return self.volumes.stop - self.volumes.start

    def of(self, x: mx.array, found: Layout) -> mx.array:
        """Its part of `[units of all volumes, ...]`."""
        start = self.volumes.start * found.units + self.units.start
        stop = (self.volumes.stop - 1) * found.units + self.units.stop
        return x if stop - start == x.shape[0] else x[start:stop]


class Begun(NamedTuple):
    """What a piece starts from: its rows of what was asked for, its boxes, and what to add to its scores.

    Boxes are `[units, tiles, columns, width]`.
    """

    rows: list[mx.array]
    key: mx.array
    value: mx.array
    added: mx.array | None


class Work:
    """One call cut into tiles: its operands as rows, tokens and additions to the scores."""

    def __init__(self, problem: Problem, operands: Operands, scale: float, gradients: bool) -> None:
        self.problem = problem
        self.layout = layout.layout(problem.axes, tiles.rows(problem, gradients), problem.bias)
        self.gradients = gradients
        self.volumes = problem.batch * problem.kv_heads
        self.group = problem.heads // problem.kv_heads
        self.query = self.rows(wide(operands.query) * (scale * log2(e)))
        self.key, self.value = (layout.tokens(wide(x)) for x in (operands.key, operands.value))
        extra = operands.extra_key, operands.extra_value
        self.extra = None
        if extra[0] is not None and extra[1] is not None:
            # [batch, extra, kv_heads, width] as [volumes, extra, width]
            self.extra = tuple(wide(x).swapaxes(1, 2).flatten(0, 1) for x in extra if x is not None)
        bias = None if operands.bias is None else wide(operands.bias) * log2(e)
        self.added = layout.added(self.layout, bias)
        self.firsts = None if self.layout.whole else layout.firsts(self.layout, self.volumes)

    def rows(self, x: mx.array, blank: float = 0.0) -> mx.array:
        """`[batch, *outputs, heads, width]` as `[units, tiles, group * rows, width]`."""
        return layout.rows(self.layout, x, self.problem.kv_heads, blank)

    def unrows(self, parts: list[mx.array]) -> mx.array:
        """The way back, of the parts that the pieces found."""
        return layout.unrows(self.layout, together(parts), self.problem)

    def pieces(self) -> list[list[Piece]]:
        """All work, cut to the budget: lists of pieces of the same volumes."""
        problem, found = self.problem, self.layout
        rows = self.group * found.rows
        scores = rows * (found.columns + problem.extra) * (4 if self.gradients else 2)
        boxes = found.columns * (problem.dim + problem.value_dim) * (6 if self.gradients else 1)
        most = max(BUDGET // (4 * found.tiles * (scores + boxes)), 1)
        if most >= found.units:
            step, every = most // found.units, slice(0, found.units)
            starts = range(0, self.volumes, step)
            return [[Piece(slice(start, min(start + step, self.volumes)), every)] for start in starts]
        units = [slice(start, min(start + most, found.units)) for start in range(0, found.units, most)]
        return [[Piece(slice(volume, volume + 1), some) for some in units] for volume in range(self.volumes)]

    def begin(self, piece: Piece, done: list[mx.array], *rows: mx.array) -> Begun:
        """Start on a piece once `done` is: nothing of it can be there before."""
        found = self.layout
        index = [] if self.firsts is None else [piece.of(self.firsts, found)]
        index += [] if self.added is None else [layout.kinds(found, piece.units)]
        mine = [piece.of(x, found) for x in rows]
        if done:
            index = after(index, done)
            # Boxes come of the index, and what is large comes of boxes, or else of rows and all keys.
            mine = after(mine, done) if self.firsts is None else mine
        added = None if self.added is None else self._added(piece, index[-1])
        if self.firsts is None:
            both = (x.reshape(self.volumes, 1, -1, x.shape[-1]) for x in (self.key, self.value))
            key, value = (piece.of(x, found) for x in both)
        else:
            columns = layout.columns(found, index[0])
            key, value = (mx.take(x, columns, axis=0) for x in (self.key, self.value))
        return Begun(mine, key, value, added)

    def _added(self, piece: Piece, kinds: mx.array) -> mx.array:
        """`[volumes or 1, units, tiles, group or 1, rows * columns]` to add to scores."""
        assert self.added is not None
        if self.added.shape[0] > 1:
            heads = mx.arange(piece.volumes.start, piece.volumes.stop)[:, None] % self.problem.kv_heads
            heads = heads * self.group + mx.arange(self.group)
            kinds = kinds + heads.reshape(-1, 1, 1, self.group) * self.added.shape[1]
        return mx.take(self.added.flatten(0, 1), kinds, axis=0)

    def scores(self, piece: Piece, query: mx.array, begun: Begun) -> mx.array:
        """`[units, tiles, group * rows, columns]`, far below zero where a row does not see a column."""
        scores = query @ begun.key.swapaxes(-1, -2)
        if begun.added is None:
            return scores
        apart = scores.reshape(piece.extent, -1, scores.shape[1], self.group, begun.added.shape[-1])
        return (apart + begun.added).reshape(scores.shape)

    def extra_of(self, piece: Piece) -> tuple[mx.array, mx.array] | None:
        """Additional keys and values of a piece, `[volumes, extra, width]`."""
        if self.extra is None:
            return None
        key, value = self.extra
        return key[piece.volumes], value[piece.volumes]


def attend(problem: Problem, operands: Operands, scale: float) -> tuple[mx.array, mx.array]:
    """Output and log-sum-exp."""
    work = Work(problem, operands, scale, False)
    outs, lses = [], []
    for piece in (piece for some in work.pieces() for piece in some):
        out, lse = _attend(work, piece, outs[-1:])
        outs.append(out)
        lses.append(lse)
    out = work.unrows(outs).astype(operands.query.dtype)
    return out, work.unrows(lses)[..., 0] * log(2)


def _attend(work: Work, piece: Piece, done: list[mx.array]) -> tuple[mx.array, mx.array]:
    begun = work.begin(piece, done, work.query)
    (query,) = begun.rows
    scores, others = work.scores(piece, query, begun), None
    top = scores.max(-1, keepdims=True)
    extra = work.extra_of(piece)
    if extra is not None:
        others = per_volume(query, extra[0].swapaxes(-1, -2))
        top = mx.maximum(top, others.max(-1, keepdims=True))
    weights = powers(scores - top)
    total, out = weights.sum(-1, keepdims=True), weights @ begun.value
    if extra is not None and others is not None:
        weights = powers(others - top)
        total = total + weights.sum(-1, keepdims=True)
        out = out + per_volume(weights, extra[1])
    return out / total, top + mx.log2(total)


def per_volume(rows: mx.array, table: mx.array) -> mx.array:
    """All rows `[units, tiles, rows, width]` times the table of their volume, `[volumes, width, ...]`."""
    flat = rows.reshape(table.shape[0], -1, rows.shape[-1])
    return (flat @ table).reshape(*rows.shape[:-1], -1)


def together(parts: list[mx.array]) -> mx.array:
    """Parts along the first axis."""
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def powers(x: mx.array) -> mx.array:
    """`2 ** x`, and exactly zero from `2 ** LEAST` down."""
    x = mx.maximum(x, LEAST)
    # Off Apple's libraries `exp` takes almost three times as long as a power.
    found = mx.power(2.0, x) if sys.platform == "linux" else mx.exp(x * log(2))
    return found - 2.0**LEAST
