"""What runs for a problem and the strides of its tensors: kernels, grids, numbers and constants.

No tensors and no framework: each host allocates what the kernels write, and launches.
"""

from functools import lru_cache
from math import ceil, e, log2, prod
from typing import NamedTuple

from ..problem import Problem
from . import backward, documents, forward, plan, small, walks
from . import bias as bias_kernels
from .launch import Launch, spatial_strides
from .window import rule

Strides = tuple[tuple[int, ...], ...]
# Bytes of score gradients that a bias gradient may hold at once.
SCORES_LIMIT = 1 << 30
# Programs that keep a large device busy.
BUSY = 2048


def _rules(problem: Problem) -> tuple:
    clip = problem.documents is not None and problem.documents.clip
    return tuple(rule(axis, clip) for axis in plan.three_axes(problem.axes))


def _lengths(problem: Problem) -> tuple[int, ...]:
    """Extents of the entries of a batch; packed documents have theirs in the table."""
    return documents.three(documents.extents(problem)[0][1:])


def _placing(problem: Problem) -> tuple[int, bool, bool]:
    """How documents lie, for kernels: their axes, whether they are packed, and whether there is padding."""
    is_padded = documents.is_padded(problem)
    return problem.rank, problem.documents is not None and not is_padded, is_padded


def _precision(problem: Problem) -> str:
    """How `tl.dot` treats float32 operands."""
    return "tf32" if problem.tf32 else "ieee"


def _group(problem: Problem) -> int:
    """Query heads that share one key head."""
    return problem.heads // problem.kv_heads


class Layout(NamedTuple):
    """What the strides of all tensors of a kernel have in common."""

    is_wide: bool
    is_dense: bool


def layout(problem: Problem, rows: Strides, columns: Strides) -> Layout:
    """Whether an offset inside one batch entry needs 64 bits, and whether tokens lie evenly.

    Evenly means that in every tensor the stride of the last axis gives those of the others. `rows` are
    strides of tensors over outputs, `columns` of those over keys. Packed documents are one entry.
    """
    width = max(problem.dim, problem.value_dim)
    tokens, outputs = (found[1:] or found for found in documents.extents(problem))
    furthest = max(prod(outputs) * problem.heads, prod(tokens) * problem.kv_heads) * width
    is_dense = True
    for tensors, extents in ((rows, outputs), (columns, tokens)):
        for batch, *spatial, head, _ in tensors:
            steps = spatial or [batch]
            spread = zip((*extents, problem.heads), (*steps, head), strict=True)
            furthest = max(furthest, width + sum((extent - 1) * step for extent, step in spread))
            even = [steps[-1] * prod(extents[place + 1 :]) for place in range(len(extents))]
            is_dense &= all(
                extent == 1 or step == wanted
                for extent, step, wanted in zip(extents, steps, even, strict=True)
            )
    return Layout(furthest > 2**31 - 1, is_dense)


def _attention_layout(problem: Problem, given: Strides) -> Layout:
    """`layout` of query, key, value and, where there is a seventh, of the output's gradient."""
    if problem.documents is None:
        return layout(problem, (given[0], *given[6:]), given[1:3])
    return layout(problem, given[6:], given[:3])


def _programs(problem: Problem, shape: plan.Shape, rows: documents.Tiling) -> int:
    """Tiles of one head of all entries of a batch, or rows of a table of documents."""
    if problem.documents is None:
        return problem.batch * shape.tiles
    return documents.programs(problem, rows)


def _dims(problem: Problem) -> tuple[int, ...]:
    dim, value_dim = problem.dim, problem.value_dim
    return dim, plan.padded(dim), value_dim, plan.padded(value_dim)


def _boxes(shape: plan.Shape) -> tuple:
    return shape.rows, shape.columns, shape.row_count, shape.column_count


def _options(shape: plan.Shape) -> dict[str, int]:
    return {"num_warps": shape.warps, "num_stages": shape.stages}


def _is_small(problem: Problem, shape: plan.Shape) -> bool:
    """Whether several programs, four of attention, share a multiprocessor."""
    is_narrow = max(_dims(problem)) <= 64 and problem.dtype != "float32"
    is_plain = not problem.bias and not problem.extra
    return is_narrow and is_plain and (shape.row_count, shape.column_count, shape.warps) == (64, 64, 4)


def _bounds(problem: Problem, shape: plan.Shape) -> dict[str, int]:
    """The registers that let four programs share a multiprocessor, where the compiler takes a few more."""
    return {"maxnreg": 128} if _is_small(problem, shape) else {}


def _ahead(problem: Problem, shape: plan.Shape) -> dict[str, int]:
    """Loads run two boxes ahead of products where as many programs then still fit."""
    return {"hopper_stages": 3} if _is_small(problem, shape) else {}


def _extra_strides(stride: tuple[int, ...]) -> tuple[int, ...]:
    return stride[:3] if stride else (0, 0, 0)


def _numbers(problem: Problem, scale: float) -> tuple:
    """Leading numbers of an attention kernel."""
    return scale * log2(e), problem.heads, _group(problem), *_lengths(problem)


def _scaled(problem: Problem, scale: float) -> bool:
    """Whether scores are scaled before they are masked: for a bias, or a scale that is not positive."""
    return problem.bias or scale <= 0


@lru_cache(4096)
def forward_launch(problem: Problem, scale: float, given: Strides) -> Launch:
    shape = plan.forward(problem)
    grid = _programs(problem, shape, documents.forward(problem)) * problem.heads
    numbers = (
        *(*_numbers(problem, scale), problem.extra),
        *(step for stride in given[:3] for step in spatial_strides(stride)),
        *(step for stride in given[4:6] for step in _extra_strides(stride)),
    )
    common = (*_attention_layout(problem, given), _precision(problem), _placing(problem))
    constants = (*_rules(problem), *_boxes(shape), *_dims(problem))
    constants = (*constants, shape.heads_first, _scaled(problem, scale), *common)
    options = {**_options(shape), **_bounds(problem, shape), **_ahead(problem, shape)}
    return Launch(forward.attend, grid, numbers, constants, **options)


@lru_cache(4096)
def small_forward_launch(problem: Problem, scale: float, given: Strides) -> Launch:
    shape = plan.forward(problem)
    heads = plan.turns(problem)
    numbers = (
        *_numbers(problem, scale),
        *(step for stride in given[:3] for step in spatial_strides(stride)),
    )
    common = (*layout(problem, given[:1], given[1:3]), _precision(problem))
    constants = (*_rules(problem), *_boxes(shape), *_dims(problem))
    constants = (*constants, heads, shape.stages, _scaled(problem, scale), *common)
    grid = problem.batch * problem.heads // heads * shape.tiles
    return Launch(small.attend, grid, numbers, constants, num_warps=shape.warps)


@lru_cache(4096)
def delta_launch(problem: Problem, given: tuple[int, ...]) -> Launch:
    outputs, shape = documents.extents(problem)[1], plan.query_gradient(problem)
    rows, value_pad = prod(outputs) * problem.heads, plan.padded(problem.value_dim)
    if documents.is_padded(problem):
        # Tiles leave padding out.
        lengths, block, warps = _lengths(problem), shape.row_count, shape.warps
        grid = _programs(problem, shape, documents.query_gradient(problem)) * problem.heads
    else:
        lengths, block, warps = documents.three(outputs[1:] or outputs), max(16, 4096 // value_pad), 4
        grid = ceil(rows / block)
    numbers = (rows, problem.heads, *lengths, *spatial_strides(given))
    common = (layout(problem, (given,), ()).is_wide, _placing(problem))
    constants = (*_rules(problem), shape.rows, block, problem.value_dim, value_pad, *common)
    return Launch(backward.delta_of, grid, numbers, constants, num_warps=warps)


@lru_cache(4096)
def query_gradient_launch(problem: Problem, scale: float, given: Strides) -> Launch:
    shape = plan.query_gradient(problem)
    grid = _programs(problem, shape, documents.query_gradient(problem)) * problem.heads
    numbers = (
        *(*_numbers(problem, scale), problem.extra),
        *(step for stride in given[:3] for step in spatial_strides(stride)),
        *(step for stride in given[4:6] for step in _extra_strides(stride)),
        *spatial_strides(given[6]),
    )
    common = (*_attention_layout(problem, given), _precision(problem), _placing(problem))
    flags = (shape.heads_first, _scaled(problem, scale), *common)
    constants = (*_rules(problem), *_boxes(shape), *_dims(problem), *flags)
    options = {**_options(shape), **_ahead(problem, shape)}
    return Launch(backward.query_gradient, grid, numbers, constants, **options)


@lru_cache(4096)
def key_gradient_launch(problem: Problem, scale: float, given: Strides) -> Launch:
    shape = plan.key_gradient(problem)
    grid = _programs(problem, shape, documents.key_gradient(problem)) * problem.kv_heads
    numbers = (
        *_numbers(problem, scale),
        *(step for stride in (*given[:3], given[6]) for step in spatial_strides(stride)),
    )
    common = (*_attention_layout(problem, given), _precision(problem), _placing(problem))
    flags = (shape.heads_first, _scaled(problem, scale), *common)
    constants = (*_rules(problem), *_boxes(shape), *_dims(problem), *flags)
    return Launch(backward.key_gradient, grid, numbers, constants, **_options(shape))


@lru_cache(4096)
def extra_gradient_launch(problem: Problem, scale: float, given: Strides) -> tuple[Launch, int]:
    """The launch, and the parts into which it splits its sums."""
    size = plan.extra_gradient(problem)
    tiles = problem.batch * problem.kv_heads * ceil(problem.extra / size.rows)
    rows = _group(problem) * documents.most_outputs(problem)
    part = size.columns * ceil(rows / size.columns / max(1, BUSY // tiles))
    parts = ceil(rows / part)
    numbers = (
        *(*_numbers(problem, scale), problem.extra, part, parts),
        *spatial_strides(given[0]),
        *(step for stride in given[4:6] for step in _extra_strides(stride)),
        *spatial_strides(given[6]),
    )
    common = (*_attention_layout(problem, given), _precision(problem), _placing(problem))
    constants = (*_rules(problem), size.rows, size.columns, *_dims(problem), *common)
    options = {"num_warps": size.warps, "num_stages": size.stages}
    return Launch(backward.extra_gradient, tiles * parts, numbers, constants, **options), parts


class Split(NamedTuple):
    """Heads that a bias gradient works on at once, and the batch entries of each part of its sums."""

    heads: int
    part: int


@lru_cache(4096)
def bias_split(problem: Problem) -> Split:
    if problem.documents is not None:
        head_bytes = 4 * prod(documents.extents(problem)[1]) * prod(problem.window)
        return Split(max(1, min(problem.heads, SCORES_LIMIT // head_bytes)), 1)
    head_bytes = 4 * prod(problem.outputs) * prod(problem.window)
    heads = max(1, min(problem.heads, SCORES_LIMIT // head_bytes))
    tiles = plan.bias_gradient(problem).tiles
    parts = max(1, min(problem.batch, BUSY * 2 // (tiles * heads), SCORES_LIMIT // (head_bytes * heads)))
    return Split(heads, ceil(problem.batch / parts))


@lru_cache(4096)
def bias_gradient_launches(
    problem: Problem, scale: float, given: Strides, first: int
) -> tuple[Launch, Launch, tuple[int, ...]]:
    """Launches for the heads from `first` on, and the shape of the score gradients between them."""
    shape, split = plan.bias_gradient(problem), bias_split(problem)
    heads = min(split.heads, problem.heads - first)
    parts = ceil(problem.batch / split.part)
    numbers = (
        *_numbers(problem, scale),
        *(problem.batch, split.part, first, heads),
        *(step for stride in (*given[:3], given[6]) for step in spatial_strides(stride)),
    )
    flags = (*_attention_layout(problem, given), _precision(problem), _placing(problem))
    constants = (*_rules(problem), *_boxes(shape), *_dims(problem), *flags)
    tiles = parts * shape.tiles
    if problem.documents is not None:
        tiles = documents.programs(problem, documents.bias_gradient(problem))
    scores = Launch(bias_kernels.score_gradient, heads * tiles, numbers, constants, **_options(shape))
    entries = prod(2 * size - 1 for size in problem.window)
    counts = (1, parts) if problem.documents is None else (problem.batch, 1)
    tally = Launch(
        bias_kernels.tally,
        heads * entries,
        (*_lengths(problem), *counts, first, heads),
        (*_rules(problem), 1024, _placing(problem)),
        num_warps=4,
    )
    outputs = documents.extents(problem)[1]
    rows = parts * prod(problem.outputs) if problem.documents is None else prod(outputs)
    return scores, tally, (rows * heads, prod(problem.window))


@lru_cache(4096)
def walk_launch(problem: Problem, scale: float | None, *given: tuple[int, ...]) -> Launch:
    """The walk `problem.operation`; only `dot` has a `scale`."""
    kernel = {"dot": walks.dot, "mix": walks.mix, "mix_back": walks.mix_back}[problem.operation]
    shape = plan.walk(problem)
    dim = problem.dim if problem.operation == "dot" else problem.value_dim
    weights = prod(problem.outputs) * problem.heads * prod(problem.window)
    rows = given[:1] if problem.operation != "mix" else ()
    found = layout(problem, rows, given[len(rows) :])
    numbers = (
        *(() if scale is None else (scale,)),
        *(problem.heads, _group(problem), *_lengths(problem)),
        *(step for stride in given for step in spatial_strides(stride)),
    )
    constants = (
        *(*_rules(problem), shape.rows, shape.columns, shape.row_count, shape.column_count),
        *(dim, plan.padded(dim), shape.heads_first),
        *(weights > 2**31 - 1 or found.is_wide, found.is_dense, _precision(problem)),
    )
    heads = problem.kv_heads if problem.operation == "mix_back" else problem.heads
    grid = problem.batch * heads * shape.tiles
    return Launch(kernel, grid, numbers, constants, num_warps=shape.warps, num_stages=shape.stages)
