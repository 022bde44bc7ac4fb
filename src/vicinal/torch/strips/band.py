"""Forward passes over one axis: PyTorch's fused kernel on boxes of keys that are views of the operands, so
that no strip is copied.

The kernel rounds scores otherwise than strips do. A backward pass that takes weights from its log-sum-exp
would be less exact, so none builds on it.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import Problem
from ..backends.base import Operands, Ready
from ..composite import accumulating
from ..dense import unit_stride
from . import fresh, plan
from .direct import is_aligned
from .moves import Geometry, blank, geometry, view
from .plan import estimate
from .residues import Residue, columns_view, residues, rows_view
from .ring import FUSED, Ring, rings
from .scores import HIDDEN

SPAN = 4 << 20
"""Bytes of results of a call of the kernel: fewer than the C library maps anew, enough for all threads."""
TILES = 8, 16, 32
"""Rows of a tile; the kernel takes no more than 32 at a time."""
ROWS = 4
"""Rows that a cut-off tile is rounded up to, with rows of the tile before."""


class Run(NamedTuple):
    """Neighboring tiles that see their boxes of `width` columns alike.

    The first tile starts at row `row`, its box at column `box`, the next box `step` columns further.
    """

    row: int
    rows: int
    tiles: int
    box: int
    width: int
    step: int


class Launch(NamedTuple):
    """One call of the kernel: where its operands and results are, its mask, and whether it is of one tile of
    one head, which is then computed twice: PyTorch would leave a single one to the threads of the BLAS, and
    bits would depend on them."""

    query: Geometry
    key: Geometry
    value: Geometry
    out: Geometry
    lse: Geometry
    mask: Tensor
    alone: bool


@lru_cache(4096)
def faster(problem: Problem) -> bool:
    """Whether the kernel can run `problem`, and takes less time than strips."""
    exact = problem.device == "cpu" and problem.dtype in ("float32", "float64")
    option = problem.gradients or problem.bias or problem.extra or problem.dim != problem.value_dim
    if problem.rank > 1 or option or not exact or not problem.heads * problem.batch:
        return False
    return _cost(problem, _tile(problem)) < estimate(problem, False) and _fits(problem)


def prepare(problem: Problem, operands: Operands, scale: float) -> Ready:
    """What computes attention of operands like these."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    shape, dtype, device = operands.query.shape, operands.query.dtype, operands.query.device
    launches = _launches(problem, *(unit_stride(x).stride() for x in operands[:3]))

    def run(query: Tensor, key: Tensor, value: Tensor, *_: None) -> tuple[Tensor, Tensor]:
        query, key, value = unit_stride(query), unit_stride(key), unit_stride(value)
        out = fresh.empty(shape, dtype, device)
        lse = fresh.empty(shape[:-1], accumulating(dtype), device)
        for one in launches:
            boxes = view(query, one.query), view(key, one.key), view(value, one.value)
            found, level = kernel(*boxes, 0.0, False, attn_mask=one.mask, scale=scale)
            if one.alone:
                found, level = found[:1], level[:1]
            view(out, one.out).copy_(found)
            view(lse, one.lse).copy_(level)
        return out, lse

    return run


@lru_cache(4096)
def _tile(problem: Problem) -> int:
    least = min(len(residue.rows) for residue in residues(problem.axes[0]))
    return min([tile for tile in TILES if tile <= least] or [least], key=lambda tile: _cost(problem, tile))


def _cost(problem: Problem, tile: int) -> float:
    """Nanoseconds on one core."""
    (axis,), both, total = problem.axes, problem.dim + problem.value_dim, 0.0
    share = problem.heads // problem.kv_heads
    for residue, ring in zip(residues(axis), rings(axis, tile, FUSED), strict=True):
        row = 20 + ring.width * (0.7 + 0.02 * both) + 35 * (ring.width % 16 > 0)
        each = 350 + 0.115 * both * ring.width + ring.tile * row
        runs = len(_runs(residue, ring))
        count, heads = problem.batch * residue.groups, 1 if share == 1 else problem.kv_heads
        calls = heads * count * ring.tiles / max(problem.batch, residue.groups, ring.tiles / runs)
        total += problem.heads * count * ring.tiles * each + 25_000 * calls
    # Every operand and result comes from memory once.
    moved = problem.heads * axis.outputs + problem.kv_heads * axis.length
    return total + 0.7 * problem.batch * both * moved


@lru_cache(16)
def _windows(residue: Residue) -> tuple[Tensor, Tensor]:
    """First columns that rows see, and those after the last."""
    starts, stops = residue.axis.seen(residue.rows)
    return torch.tensor(starts, device="cpu"), torch.tensor(stops, device="cpu")


@lru_cache(1024)
def _runs(residue: Residue, ring: Ring) -> tuple[Run, ...]:
    """The tiles of a ring. A box that would wrap around is one of the first or last columns: it holds the
    same."""
    whole, width = ring.rows // ring.tile, ring.width
    tiles = torch.arange(whole, device="cpu").unsqueeze(1)
    boxes = (tiles * ring.step - ring.shift).clamp_(0, ring.columns - width)
    ends = torch.cat([x[: whole * ring.tile].view(whole, -1) - boxes for x in _windows(residue)], 1)
    alike = [False, *(ends[1:] == ends[:-1]).all(1).tolist()]
    places, found, first = boxes.flatten().tolist(), [], 0
    while first < whole:
        stop = first + 1
        step = places[min(stop, whole - 1)] - places[first]
        while stop < whole and alike[stop] and places[stop] - places[stop - 1] == step:
            stop += 1
        found.append(Run(first * ring.tile, ring.tile, stop - first, places[first], width, step))
        first = stop
    if whole * ring.tile < ring.rows:
        rows = min(-(-(ring.rows - whole * ring.tile) // ROWS) * ROWS, ring.rows)
        starts, stops = residue.axis.seen(residue.rows[-rows:])
        found.append(Run(ring.rows - rows, rows, 1, starts[0], stops[-1] - starts[0], 0))
    return tuple(found)


def _fits(problem: Problem) -> bool:
    """Whether masks take little memory, and bits depend on no thread."""
    (axis,), masks = problem.axes, 0
    for residue, ring in zip(residues(axis), rings(axis, _tile(problem), FUSED), strict=True):
        for run in _runs(residue, ring):
            masks += run.rows * run.width * (8 if problem.dtype == "float64" else 4)
            if masks > plan.TABLE or not is_aligned(run.rows, run.width, problem.dim):
                return False
    return True


def _mask(residue: Residue, run: Run, dtype: str) -> Tensor:
    """`[1, 1, rows, width]`."""
    start, stop = (x[run.row : run.row + run.rows] for x in _windows(residue))
    column = torch.arange(run.box, run.box + run.width, device="cpu")
    hidden = (column < start.unsqueeze(1)) | (column >= stop.unsqueeze(1))
    # A tensor made in inference mode could not be used outside of it.
    with torch.inference_mode(False):
        mask = torch.zeros(hidden.shape, dtype=getattr(torch, dtype), device="cpu")
        return mask.masked_fill_(hidden, HIDDEN).view(1, 1, *hidden.shape)


@lru_cache(64)
def _launches(
    problem: Problem, query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]
) -> tuple[Launch, ...]:
    """The calls for operands of these strides."""
    (axis,) = problem.axes
    rows = problem.batch, axis.outputs, problem.heads, problem.dim
    columns = problem.batch, axis.length, problem.kv_heads, problem.dim
    sees = blank(rows, query), blank(rows), blank((*rows[:3], 1))
    seen = blank(columns, key), blank(columns, value)
    found = []
    for residue, ring in zip(residues(axis), rings(axis, _tile(problem), FUSED), strict=True):
        for run in _runs(residue, ring):
            first, out, lse = (_rows(problem, residue, run, x) for x in sees)
            keys, values = (_columns(problem, residue, run, x) for x in seen)
            mask = _mask(residue, run, problem.dtype)
            found += _split((first, keys, values, out, lse), mask)
    return tuple(found)


def _rows(problem: Problem, residue: Residue, run: Run, x: Tensor) -> Tensor:
    """`[kv_heads, share, batch, groups, tiles, rows, dim]`."""
    x = rows_view(x, (residue,), problem.kv_heads).movedim(3, 1)
    return _blocks(x, run.row, run.tiles, run.rows, run.rows)


def _columns(problem: Problem, residue: Residue, run: Run, x: Tensor) -> Tensor:
    """`[kv_heads, share, batch, groups, tiles, width, dim]`."""
    x = columns_view(x, (residue,)).unsqueeze(1)
    x = x.expand(-1, problem.heads // problem.kv_heads, *x.shape[2:])
    return _blocks(x, run.box, run.tiles, run.step, run.width)


def _blocks(x: Tensor, start: int, count: int, step: int, length: int) -> Tensor:
    """`[..., lines, dim]` as `[..., count, length, dim]`, blocks that start `step` lines apart."""
    *outer, line, last = x.stride()
    shape, steps = (*x.shape[:-2], count, length, x.shape[-1]), (*outer, step * line, line, last)
    return x.as_strided(shape, steps, x.storage_offset() + start * line)


def _split(blocks: tuple[Tensor, ...], mask: Tensor) -> Iterator[Launch]:
    """The calls of a run. The longest of batch, groups and tiles is the kernel's batch; key/value heads, or
    else the heads that share one, are its heads."""
    shape, itemsize = blocks[0].shape, mask.itemsize
    heads = 0 if shape[1] == 1 else 1
    along = max(2, 3, 4, key=shape.__getitem__)
    most = max(SPAN // (shape[heads] * shape[5] * shape[6] * itemsize), 1)
    ranges: list[Sequence[int | slice]] = [range(extent) for extent in shape[:5]]
    ranges[heads] = [slice(None)]
    ranges[along] = [slice(start, start + most) for start in range(0, shape[along], most)]
    for chosen in product(*ranges):
        query, key, value, out, lse = (x[chosen].transpose(0, 1) for x in blocks)
        alone = query.shape[:2] == (1, 1)
        if alone:
            query, key, value = (x.expand(2, *x.shape[1:]) for x in (query, key, value))
        operands = geometry(query), geometry(key), geometry(value)
        yield Launch(*operands, geometry(out), geometry(lse[..., 0]), mask, alone)
