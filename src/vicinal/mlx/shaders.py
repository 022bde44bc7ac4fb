"""Launches of the Metal kernels, as `mx.fast.metal_kernel` compiles them when they are first evaluated."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import mlx.core as mx

from ..metal import documents, launches, source
from ..metal.geometry import Layout
from ..metal.launches import Launch
from ..problem import Problem
from . import tables
from .operands import Operands, narrowed, wide

# Geometries come as arrays, and arrays may start at any element.
HEADER = "#define SPACE device\n#define ALIGNED 0\n"
# MLX passes arrays of fewer numbers in constant memory, where kernels do not look for them.
FEWEST = 8
_DTYPES = {"float": mx.float32, "half": mx.float16, "bfloat": mx.bfloat16}


def attend(
    problem: Problem, operands: Operands, scale: float, most_waste: float
) -> tuple[mx.array, mx.array]:
    query, *rest = _bindable(problem, operands)
    rows = (*documents.outputs(problem).extents, problem.heads)
    results = [((*rows, problem.value_dim), query.dtype), (rows, mx.float32)]
    launch = launches.attend(problem, most_waste)
    out, lse = _run(launch, [query, *rest], results, scale, fill=_gaps(problem))
    return out, tables.blank_outside(problem, lse)


def attend_back(
    problem: Problem,
    operands: Operands,
    out: mx.array,
    lse: mx.array,
    grad_out: mx.array,
    grad_lse: mx.array,
    scale: float,
    most_waste: float,
) -> Operands:
    query, key, value, bias, extra_key, extra_value = _bindable(problem, operands)
    fill = _gaps(problem)
    like = lambda *arrays: [(x.shape, x.dtype) for x in arrays]  # noqa: E731
    delta = _run(launches.delta(problem), [out, grad_out, grad_lse], like(lse))
    known = [grad_out, lse, *delta]
    grads: list[Any] = [None] * len(operands)
    arrays = [query, key, value, bias, extra_key, extra_value, *known]
    launch = launches.attend_back_query(problem, most_waste)
    (grad_query,) = _run(launch, arrays, like(query), scale, fill=fill)
    grads[0] = _spread(problem, grad_query, operands.query)
    launch = launches.attend_back_key(problem, most_waste)
    arrays = [query, key, value, bias, *known]
    grads[1:3] = _run(launch, arrays, like(operands.key, operands.value), scale, fill=fill)
    if operands.bias is not None:
        result = [(operands.bias.shape, mx.float32)]
        launch = launches.attend_back_bias(problem)
        grads[3:4] = _run(launch, [query, key, value, bias, *known], result, scale)
    if operands.extra_key is not None:
        arrays = [query, extra_key, extra_value, bias, *known]
        launch = launches.attend_back_extra(problem, most_waste)
        grads[4:] = _run(launch, arrays, like(operands.extra_key, operands.extra_value), scale, fill=fill)
    return narrowed(Operands(*grads), operands)


def dot(problem: Problem, x: mx.array, y: mx.array, scale: float, fill: float, most_waste: float) -> mx.array:
    result = [((*x.shape[:-1], prod(problem.window)), x.dtype)]
    return _run(launches.dot(problem, most_waste), [x, y, _absent(mx.float32)], result, scale, fill=fill)[0]


def mix(problem: Problem, weights: mx.array, y: mx.array, most_waste: float) -> mx.array:
    result = [((problem.batch, *problem.outputs, problem.heads, y.shape[-1]), y.dtype)]
    launch = launches.mix(problem, _name(weights), _name(y), y.shape[-1], most_waste)
    return _run(launch, [weights, y], result)[0]


def mix_back(problem: Problem, weights: mx.array, x: mx.array, most_waste: float) -> mx.array:
    result = [((problem.batch, *problem.lengths, problem.kv_heads, x.shape[-1]), x.dtype)]
    launch = launches.mix_back(problem, _name(weights), _name(x), x.shape[-1], most_waste)
    return _run(launch, [weights, x], result)[0]


def _run(
    launch: Launch,
    arrays: list[mx.array],
    results: Sequence[tuple[Sequence[int], mx.Dtype]],
    *numbers: float,
    fill: float | None = None,
) -> list[mx.array]:
    """A kernel's results, of these shapes and dtypes, holding `fill` where it writes nothing."""
    shapes, dtypes = zip(*results, strict=True)
    if launch.empty:
        return [mx.zeros(shape, dtype) for shape, dtype in results]
    where = launch.layout
    rest = [] if where is None else [_integers(where, "table"), _integers(where, "geometry")]
    return _kernel(launch.kernel)(
        inputs=[*map(_large, arrays), *rest, *(mx.array(number, mx.float32) for number in numbers)],
        template=[*zip(source.parts(launch.kernel).parameters, map(_value, launch.arguments), strict=True)],
        grid=launch.threads,
        threadgroup=(launch.group, 1, 1),
        output_shapes=list(shapes),
        output_dtypes=list(dtypes),
        init_value=fill,
    )


@lru_cache
def _kernel(name: str) -> Any:
    parts = source.parts(name)
    return mx.fast.metal_kernel(
        name=f"vicinal_{name}",
        input_names=list(parts.inputs),
        output_names=list(parts.outputs),
        header=HEADER + source.templates(),
        source=parts.body,
    )


@lru_cache(512)
def _integers(where: Layout, part: str) -> mx.array:
    return mx.array(where.table if part == "table" else where.packed, dtype=mx.int32)


@lru_cache
def _absent(dtype: mx.Dtype) -> mx.array:
    """What stands for an operand that is not there, and is not read."""
    return mx.array([0] * FEWEST, dtype=dtype)


@lru_cache(256)
def _sampling(problem: Problem) -> tuple[Any, ...] | None:
    return documents.sampling(problem, mx.arange, lambda parts: tables.constant(mx.concatenate(parts)))


def _spread(problem: Problem, grad: mx.array, query: mx.array) -> mx.array:
    """The gradient of all queries; zero for those that have no outputs."""
    at = _sampling(problem)
    if at is None:
        return grad
    found = mx.zeros_like(query)
    found[at] = grad
    return found


def _gaps(problem: Problem) -> float | None:
    """What results hold outside of documents and for empty ones, where kernels write nothing."""
    return None if problem.documents is None else 0.0


def _value(argument: str | int | bool) -> Any:
    return _DTYPES[argument] if isinstance(argument, str) else argument


def _name(x: mx.array) -> str:
    return str(x.dtype).rsplit(".", 1)[-1]


def _bindable(problem: Problem, operands: Operands) -> list[mx.array]:
    """Operands as kernels take them, the bias in float32."""
    at = _sampling(problem)
    query = operands.query if at is None else operands.query[at]
    bias = None if operands.bias is None else wide(operands.bias)
    dtype = query.dtype
    kinds = (dtype, dtype, dtype, mx.float32, dtype, dtype)
    given = zip(operands._replace(query=query, bias=bias), kinds, strict=True)
    return [_absent(kind) if x is None else x for x, kind in given]


def _large(x: mx.array) -> mx.array:
    return x if x.size >= FEWEST else mx.concatenate([x.reshape(-1), mx.zeros(FEWEST, x.dtype)])
