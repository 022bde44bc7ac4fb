"""What sweeps over rings run for a problem and the strides of its tensors; None where none fits.

A sweep copies 16 bytes at a time, so that every stride counts 16 elements or a multiple, and addresses too.
"""

from functools import lru_cache
from math import e, log2, prod
from typing import Any

from triton import knobs  # pyright: ignore[reportAttributeAccessIssue]
from triton.runtime import driver

from ..problem import Problem
from . import ring_plan
from .launch import Launch, spatial_strides
from .launches import Strides, layout
from .ring_plan import Sweep
from .support import GLUON, installed

# A scale below this could bring a hidden score back among the others.
LEAST_SCALE = 1e-10
PROGRAMS = 2**31 - 1
# The largest offset inside one batch entry.
LARGEST = 2**31 - 1


@lru_cache(1)
def runs_here() -> bool:
    """Whether Gluon is there, for a GPU that it can be compiled for."""
    if knobs.runtime.interpret or installed() != GLUON:
        return False
    active: Any = driver.active
    return active.get_current_target().backend == "cuda"


def _fits(sweep: Sweep | None, problem: Problem, scale: float, rows: Strides, columns: Strides) -> bool:
    """Whether tensors over outputs with strides `rows`, and over keys with `columns`, can be swept over."""
    if sweep is None or scale < LEAST_SCALE or sweep.programs * problem.batch * problem.heads > PROGRAMS:
        return False
    sides = ((rows, problem.outputs, problem.heads), (columns, problem.lengths, problem.kv_heads))
    is_even = all(
        step % 16 == 0 or extent == 1
        for tensors, extents, heads in sides
        for stride in tensors
        for step, extent in zip(stride, (problem.batch, *extents, heads), strict=False)
    )
    return is_even and not layout(problem, rows, columns).is_wide and runs_here()


def _numbers(sweep: Sweep, problem: Problem, *tensors: tuple[tuple[int, ...], bool]) -> tuple[int, ...]:
    """Lengths of the axes in the sweep's order, then strides of tensors over outputs, or over keys."""
    lengths = (*(1,) * (3 - problem.rank), *problem.lengths)
    outputs = (*(1,) * (3 - problem.rank), *problem.outputs)
    numbers = [lengths[axis] for axis in sweep.order]
    for stride, is_output in tensors:
        batch, *axes, head = spatial_strides(stride)
        extents = outputs if is_output else lengths
        numbers += [batch if problem.batch > 1 else 0]
        # Triton reads an axis of one token as evenly spaced whatever its stride.
        numbers += [axes[axis] if extents[axis] > 1 else 0 for axis in sweep.order]
        numbers += [head]
    return tuple(numbers)


def _flat(sweep: Sweep, problem: Problem, extents: tuple[int, ...], heads: int) -> tuple[int, ...]:
    """Strides of batch and axes, in the sweep's order, of contiguous `[batch, *extents, heads]`."""
    lifted = (*(1,) * (3 - problem.rank), *extents)
    steps = [heads * prod(lifted[axis + 1 :]) for axis in range(3)]
    return (heads * prod(lifted), *(steps[axis] for axis in sweep.order))


@lru_cache(4096)
def forward_launch(problem: Problem, scale: float, given: Strides) -> Launch | None:
    """`given` are strides of query, key and value."""
    sweep = ring_plan.forward(problem)
    if sweep is None or not _fits(sweep, problem, scale, given[:1], given[1:3]):
        return None
    from . import ring_forward

    query, key, value = given[:3]
    numbers = (
        *(scale * log2(e), problem.heads, problem.heads // problem.kv_heads),
        *_numbers(sweep, problem, (query, True), (key, False), (value, False)),
        *_flat(sweep, problem, problem.outputs, problem.heads),
    )
    grid = sweep.programs * problem.batch * problem.heads
    # Left alone the compiler keeps more scores at once than pays.
    is_long = sweep.spec.block * sweep.spec.width > 128 and max(problem.dim, problem.value_dim) <= 32
    options = {"maxnreg": 128} if is_long else {}
    warps = prod(sweep.spec.rows) // 16
    return Launch(ring_forward.attend, grid, numbers, (sweep.spec,), num_warps=warps, **options)


@lru_cache(4096)
def query_gradient_launch(problem: Problem, scale: float, given: Strides) -> Launch | None:
    """`given` are strides of query, key, value and the gradient of the output."""
    sweep = ring_plan.query_gradient(problem)
    query, key, value, grad = given
    if sweep is None or not _fits(sweep, problem, scale, (query, grad), (key, value)):
        return None
    from . import ring_backward

    numbers = (
        *(scale * log2(e), problem.heads, problem.heads // problem.kv_heads),
        *_numbers(sweep, problem, (query, True), (key, False), (value, False), (grad, True)),
        *_flat(sweep, problem, problem.outputs, problem.heads),
    )
    grid = sweep.programs * problem.batch * problem.heads
    return Launch(
        ring_backward.query_gradient, grid, numbers, (sweep.spec,), num_warps=prod(sweep.spec.rows) // 16
    )


@lru_cache(4096)
def key_gradient_launch(problem: Problem, scale: float, given: Strides) -> Launch | None:
    """`given` are strides of query, key, value and the gradient of the output."""
    sweep = ring_plan.key_gradient(problem)
    query, key, value, grad = given
    if sweep is None or not _fits(sweep, problem, scale, (query, grad), (key, value)):
        return None
    from . import ring_backward

    numbers = (
        *(scale * log2(e), problem.heads),
        *_numbers(sweep, problem, (query, True), (key, False), (value, False), (grad, True)),
        *_flat(sweep, problem, problem.outputs, problem.heads),
        *_flat(sweep, problem, problem.lengths, problem.heads),
    )
    grid = sweep.programs * problem.batch * problem.heads
    return Launch(
        ring_backward.key_gradient, grid, numbers, (sweep.spec,), num_warps=prod(sweep.spec.rows) // 16
    )


@lru_cache(4096)
def walk_launch(problem: Problem, scale: float | None, *given: tuple[int, ...]) -> Launch | None:
    """The walk `problem.operation`, whose tensors besides weights have the strides `given`."""
    sweep = ring_plan.walk(problem)
    weights = prod(problem.outputs) * problem.heads * prod(problem.window)
    inverse = problem.operation == "mix_back"
    rows, columns = (given, ()) if inverse else (given[:-1], given[-1:])
    if sweep is None or weights > LARGEST or not _fits(sweep, problem, 1.0, rows, columns):
        return None
    from . import ring_walks

    sizes = (*(1,) * (3 - problem.rank), *problem.window)
    slots, entries = (
        tuple(prod(extents[axis + 1 :]) for axis in sweep.order)
        for extents in (sizes, [2 * size - 1 for size in sizes])
    )
    flat = _flat(sweep, problem, problem.outputs, problem.heads)
    results = _flat(sweep, problem, problem.lengths, problem.heads) if inverse else flat
    numbers = (
        *(() if scale is None else (scale,)),
        *(problem.heads, 1 if inverse else problem.heads // problem.kv_heads),
        *_numbers(sweep, problem, *((x, True) for x in rows), *((x, False) for x in columns)),
        *(flat if scale is not None else (*flat, *results)),
    )
    grid = sweep.programs * problem.batch * problem.heads
    warps = prod(sweep.spec.rows) // 16
    if scale is None:
        return Launch(ring_walks.mix, grid, numbers, (sweep.spec, slots), num_warps=warps)
    return Launch(ring_walks.dot, grid, numbers, (sweep.spec, slots, entries), num_warps=warps)
