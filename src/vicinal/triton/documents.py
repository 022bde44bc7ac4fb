"""Documents of different shapes: where they lie, which tiles each has, and what lies outside of them."""

# pyright: reportAttributeAccessIssue=false
from array import array
from functools import lru_cache
from itertools import pairwise
from math import ceil, prod

import triton
import triton.language as tl

from ..layout import VarlenLayout
from ..problem import Problem
from . import plan
from .launch import Launch

Shape = tuple[int, ...]
# Of each of three axes: dilation, period and output stride.
Spacing = tuple[tuple[int, int, int], ...]


def three(shape: Shape) -> Shape:
    """`shape` behind axes of one token."""
    return (*(1,) * (3 - len(shape)), *shape)


def extents(problem: Problem) -> tuple[Shape, Shape]:
    """Leading extents of tensors over tokens, and of those over outputs: batch and axes, or all packed."""
    documents = problem.documents
    if documents is None:
        return (problem.batch, *problem.lengths), (problem.batch, *problem.outputs)
    steps = tuple(axis.output_stride for axis in problem.axes)
    if documents.frame is None:
        tokens, outputs = _offsets(documents.shapes, steps)
        return tokens[-1:], outputs[-1:]
    outputs = (ceil(extent / step) for extent, step in zip(documents.frame, steps, strict=True))
    return (problem.batch, *documents.frame), (problem.batch, *outputs)


def most_outputs(problem: Problem) -> int:
    """Outputs of the largest entry of a batch, or document."""
    if problem.documents is None:
        return prod(problem.outputs)
    _, outputs = _offsets(problem.documents.shapes, tuple(axis.output_stride for axis in problem.axes))
    return max(stop - start for start, stop in pairwise(outputs))


def programs(problem: Problem, boxes: Shape, inverse: bool = False) -> int:
    """Tiles of `boxes` of all documents; of keys if `inverse`."""
    assert problem.documents is not None
    return sum(_tiles(problem.documents.shapes, spacing(problem), boxes, inverse))


def spacing(problem: Problem) -> Spacing:
    """What `rows` needs of the axes."""
    axes = plan.three_axes(problem.axes)
    return tuple((axis.dilation, axis.period, axis.output_stride) for axis in axes)


def rows(shapes: tuple[Shape, ...], apart: Spacing, boxes: Shape | None, inverse: bool) -> "array[int]":
    """Eight integers of 32 bits for each tile of `boxes`, or without them for each document.

    `tile.place_of` reads them.
    """
    steps = tuple(step for _, _, step in apart[3 - len(shapes[0]) :])
    counts = (1,) * len(shapes) if boxes is None else _tiles(shapes, apart, boxes, inverse)
    found = array("i")
    for document, before in enumerate(zip(*_offsets(shapes, steps), counts, strict=False)):
        *first, count = before
        mine = array("i", (document, 0, *three(shapes[document]), *first, 0)) * count
        mine[1::8] = array("i", range(count))
        found += mine
    return found


def is_padded(problem: Problem) -> bool:
    """Whether something of a padded batch lies outside of the documents."""
    documents = problem.documents
    if documents is None or documents.frame is None:
        return False
    return any(shape != documents.frame for shape in documents.shapes)


@lru_cache(4096)
def blank_launch(problem: Problem, shape: Shape, fill: float, sampled: bool) -> Launch:
    """Fills what lies outside of documents in a contiguous padded tensor, over outputs if `sampled`."""
    frame = shape[1 : 1 + problem.rank]
    steps = [axis.output_stride if sampled else 1 for axis in plan.three_axes(problem.axes)]
    tokens, columns = 16, 128
    numbers = (*three(frame), prod(shape[1 + problem.rank :]), fill)
    grid = problem.batch * ceil(prod(frame) / tokens)
    return Launch(blank, grid, numbers, (*steps, tokens, columns), num_warps=4)


@triton.jit
def blank(
    x, table, T, H, W, width, fill,
    T_STEP: tl.constexpr, H_STEP: tl.constexpr, W_STEP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Fill `M` rows of contiguous `[documents, T, H, W, width]` where they lie outside of their document."""
    blocks = tl.cdiv(T * H * W, M)
    document = (tl.program_id(0) // blocks).to(tl.int64)
    token = tl.program_id(0) % blocks * M + tl.arange(0, M)
    table += document * 8
    inside = token // (H * W) < tl.cdiv(tl.load(table + 2), T_STEP)
    inside = inside & (token // W % H < tl.cdiv(tl.load(table + 3), H_STEP))
    inside = inside & (token % W < tl.cdiv(tl.load(table + 4), W_STEP))
    outside = (token < T * H * W) & (inside == 0)
    if tl.max(outside.to(tl.int32), 0) == 0:
        return
    first = x + (document * T * H * W + token) * width
    value = tl.full([M, N], 0.0, tl.float32) + fill
    for start in range(0, width, N):
        column = start + tl.arange(0, N)
        mask = outside[:, None] & (column < width)[None, :]
        tl.store(first[:, None] + column[None, :], value.to(x.dtype.element_ty), mask=mask)


@lru_cache(1024)
def _offsets(shapes: tuple[Shape, ...], steps: Shape) -> tuple[Shape, Shape]:
    """Tokens before each document and after the last, and outputs."""
    found = VarlenLayout(shapes, len(steps))
    return found.offsets, found.sampled(steps).offsets


@lru_cache(1024)
def _tiles(shapes: tuple[Shape, ...], apart: Spacing, boxes: Shape, inverse: bool) -> tuple[int, ...]:
    """Tiles of every document: each dilation group has as many as the largest."""
    found = []
    for shape in shapes:
        tiles = 1
        for extent, (dilation, period, step), box in zip(three(shape), apart, boxes, strict=True):
            count, groups = (extent, dilation) if inverse else (ceil(extent / step), period)
            tiles *= groups * ceil(ceil(count / groups) / box)
        found.append(tiles)
    return tuple(found)
