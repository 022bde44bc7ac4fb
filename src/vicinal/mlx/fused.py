"""The Triton kernels on MLX's arrays: what is allocated, and which kernels run.

MLX decides where arrays lie only when it evaluates them, so every kernel gets row-contiguous arrays, which
MLX copies where they are not.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import mlx.core as mx

from ..problem import Problem
from ..triton import ahead, documents, launches, plan
from . import tables
from .operands import Operands, wide
from .order import after

Result = tuple[tuple[int, ...], mx.Dtype]
_NAMES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16", mx.int32: "int32"}


def attend(problem: Problem, operands: Operands, scale: float) -> tuple[mx.array, mx.array]:
    """Output and log-sum-exp."""
    given = _inputs(problem, operands)
    rows = (*documents.extents(problem)[1], problem.heads)
    results = (((*rows, problem.value_dim), operands.query.dtype), (rows, mx.float32))
    steps = tuple(_strides(x) for x in given)
    if plan.forward(problem).single:
        out, lse = run(launches.small_forward_launch(problem, scale, steps), given[:4], results)
    else:
        launch = launches.forward_launch(problem, scale, steps)
        out, lse = run(launch, (*given, _table(problem, documents.forward(problem))), results)
    return out, lse


def attend_back(
    problem: Problem,
    operands: Operands,
    out: mx.array,
    lse: mx.array,
    grad_out: mx.array,
    grad_lse: mx.array,
    scale: float,
) -> Operands:
    """Gradients of all operands; MLX runs the kernels of those that are used."""
    given = _inputs(problem, operands)
    query, key, value, bias, extra_key, extra_value = given
    grad_out = mx.contiguous(grad_out)
    steps = (*(_strides(x) for x in given), _strides(grad_out))
    each = _table(problem, documents.query_gradient(problem)) if documents.is_padded(problem) else None
    inputs = (out, grad_out, grad_lse, each)
    (delta,) = run(launches.delta_launch(problem, steps[6]), inputs, ((lse.shape, mx.float32),))
    rows = (grad_out, lse, delta)
    launch = launches.query_gradient_launch(problem, scale, steps)
    inputs = (*given, *rows, _table(problem, documents.query_gradient(problem)))
    (grad_query,) = run(launch, inputs, (_like(query),), _gaps(problem))
    launch = launches.key_gradient_launch(problem, scale, steps)
    inputs = (query, key, value, bias, *rows, _table(problem, documents.key_gradient(problem)))
    grad_key, grad_value = run(launch, inputs, (_like(key), _like(value)))
    grad_bias = None
    if operands.bias is not None:
        grad_bias = _bias_gradient(problem, given, rows, scale, steps).astype(operands.bias.dtype)
    extras: list[mx.array | None] = [
        None if x is None else mx.zeros_like(x) for x in (operands.extra_key, operands.extra_value)
    ]
    if extra_key is not None:
        launch, parts = launches.extra_gradient_launch(problem, scale, steps)
        results = [((parts, *x.shape), mx.float32) for x in (extra_key, extra_value)]
        sums = run(launch, (query, extra_key, extra_value, *rows, _table(problem)), results)
        extras = [part.sum(0).astype(query.dtype) for part in sums]
    return Operands(grad_query, grad_key, grad_value, grad_bias, *extras)


def dot(problem: Problem, x: mx.array, y: mx.array, scale: float, fill: float) -> mx.array:
    """`[batch, *outputs, heads, slots]` in the dtype of `x`."""
    x, y = mx.contiguous(x), mx.contiguous(y)
    launch = launches.walk_launch(problem, scale, _strides(x), _strides(y))
    holes = any(axis.causal for axis in problem.axes)
    result = ((*x.shape[:-1], prod(problem.window)), x.dtype)
    return run(launch, (x, y, None), (result,), fill if holes else None)[0]


def mix(problem: Problem, weights: mx.array, y: mx.array) -> mx.array:
    """`[batch, *outputs, heads, value_dim]` in the dtype of `y`."""
    y = mx.contiguous(y)
    launch = launches.walk_launch(problem, None, _strides(y))
    return run(launch, (weights, y), (((*weights.shape[:-1], y.shape[-1]), y.dtype),))[0]


def mix_back(problem: Problem, weights: mx.array, x: mx.array) -> mx.array:
    """`[batch, *lengths, kv_heads, value_dim]` in the dtype of `x`."""
    x = mx.contiguous(x)
    launch = launches.walk_launch(problem, None, _strides(x))
    shape = (x.shape[0], *problem.lengths, problem.kv_heads, x.shape[-1])
    return run(launch, (weights, x), ((shape, x.dtype),))[0]


@lru_cache(1)
def capability() -> int:
    """Compute capability of the GPU that MLX runs on: 90 is 9.0."""
    return int("".join(filter(str.isdigit, str(mx.device_info(mx.gpu)["architecture"]))))


def _inputs(problem: Problem, operands: Operands) -> tuple[Any, ...]:
    """Operands as the kernels read them."""
    query, key, value, bias, *extras = operands
    if not problem.extra:
        extras = [None, None]
    # A view of a larger array may begin where vectors do not; of these, `contiguous` makes copies.
    rows = [None if x is None else mx.contiguous(x) for x in (query, key, value, *extras)]
    return (*rows[:3], None if bias is None else wide(bias), *rows[3:])


def _bias_gradient(
    problem: Problem, given: tuple, rows: tuple, scale: float, steps: launches.Strides
) -> mx.array:
    """Groups of heads one after another: each adds the entries of its own heads to zeros."""
    bias = given[3]
    total = None
    for first in range(0, problem.heads, launches.bias_split(problem).heads):
        scores, tally, shape = launches.bias_gradient_launches(problem, scale, steps, first)
        if total is not None:
            rows = (*rows[:2], *after(rows[2:], [total]))
        tiles = _table(problem, documents.bias_gradient(problem))
        held = run(scores, (*given[:4], *rows, tiles), ((shape, mx.float32),))
        (part,) = run(tally, (*held, _table(problem)), ((bias.shape, mx.float32),), 0.0)
        total = part if total is None else total + part
    assert total is not None
    return total


def _table(problem: Problem, tiling: documents.Tiling = documents.EACH) -> mx.array | None:
    """int32 `documents.rows`, the last that kernels read; None without documents."""
    return None if problem.documents is None else _rows(problem.documents, documents.spacing(problem), tiling)


@lru_cache(1024)
def _rows(*tiles: Any) -> mx.array:
    return tables.packed(documents.rows(*tiles))


def _gaps(problem: Problem) -> float | None:
    """What the gradient of the query holds between queries that have outputs, if not all have."""
    is_sampled = problem.documents is not None and any(axis.output_stride > 1 for axis in problem.axes)
    return 0.0 if is_sampled else None


def _strides(x: mx.array | None) -> tuple[int, ...]:
    """Strides of a row-contiguous array; empty for none."""
    return () if x is None else tuple(prod(x.shape[place + 1 :]) for place in range(x.ndim))


def _like(x: mx.array) -> Result:
    return x.shape, x.dtype


def run(
    launch: launches.Launch,
    inputs: Sequence[mx.array | None],
    results: Sequence[Result],
    fill: float | None = None,
) -> list[mx.array]:
    """The arrays that a kernel writes, the last of its tensors; all elements are `fill` before, if given."""
    dtypes = (
        *(None if x is None else _NAMES[x.dtype] for x in inputs),
        *(_NAMES[dtype] for _, dtype in results),
    )
    code = ahead.compiled(launch, dtypes, capability())
    return mx.fast.precompiled_cuda_kernel(
        name=code.name,
        compiled_source=code.binary,
        inputs=[x for x in inputs if x is not None],
        output_shapes=[shape for shape, _ in results],
        output_dtypes=[dtype for _, dtype in results],
        scalars=code.numbers,
        grid=(launch.grid * code.threads, 1, 1),
        threadgroup=(code.threads, 1, 1),
        shared_memory=code.shared,
        init_value=fill,
        ensure_row_contiguous=True,
    )
