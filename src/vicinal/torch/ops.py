"""The operators `torch.ops.vicinal.*`: schemas, what they compute, their shapes and FLOPs.

One schema serves all ranks. The window travels as five lists, one entry per axis, in the order of
`arguments.Window`; `backend` and `tf32` are None where the caller's settings decide. Tensors are in the
layouts of `backends/base.py`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import arguments, settings
from ..dispatch import choose, first
from ..problem import Documents, Problem
from . import dense, relative
from .backends.base import Backend, Operands, Ready
from .composite import accumulating

LIBRARY = torch.library.Library("vicinal", "DEF")

# Causality travels as integers: tracing, and so ONNX and fvcore, refuses lists of bool.
WINDOW = "int[] kernel_size, int[] stride, int[] dilation, int[] is_causal, int[] output_stride"
ATTEND = "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? extra_key, Tensor? extra_value"
RUN = "str? backend, bool? tf32"

SCHEMAS = {
    "attend": f"({ATTEND}, {WINDOW}, float scale, bool gradients, {RUN}) -> (Tensor out, Tensor lse)",
    "attend_back": f"({ATTEND}, Tensor out, Tensor lse, Tensor? grad_out, Tensor? grad_lse, {WINDOW}, "
    f"float scale, bool[] needs, {RUN}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "dot": f"(Tensor x, Tensor y, Tensor? bias, {WINDOW}, float scale, float fill, {RUN}) -> Tensor",
    "mix": f"(Tensor weights, Tensor y, {WINDOW}, {RUN}) -> Tensor",
    "mix_back": f"(Tensor weights, Tensor x, SymInt[] lengths, SymInt kv_heads, {WINDOW}, {RUN}) -> Tensor",
    "spread": f"(Tensor bias, SymInt[] lengths, {WINDOW}) -> Tensor",
    "tally": f"(Tensor weights, SymInt[] lengths, {WINDOW}) -> Tensor",
    "dense": "(Tensor query, Tensor key, Tensor value, bool is_causal, float scale) "
    "-> (Tensor out, Tensor lse)",
    "dense_back": "(Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, Tensor? grad_out, "
    "Tensor? grad_lse, bool is_causal, float scale) -> (Tensor, Tensor, Tensor)",
}
for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))


@lru_cache(4096)
def _chosen(lengths: tuple, window: tuple, rest: tuple, wanted: str | None) -> tuple[Problem, Backend]:
    from .backends import BACKENDS

    found = Problem(arguments.axes(lengths, window), *rest)
    return found, choose(BACKENDS, found, wanted)


@lru_cache(1024)
def _together(
    lengths: tuple, window: tuple, rest: tuple, documents: Documents, wanted: str | None
) -> tuple[Problem, Backend | None]:
    from .backends import BACKENDS

    found = Problem(arguments.axes(lengths, window), *rest, documents=documents)
    return found, first(BACKENDS, found, wanted)


_NAMES = {getattr(torch, name): name for name in ("float64", "float32", "float16", "bfloat16")}


def chosen(
    operation: str, like: Tensor, widths: tuple, lengths, window, rest: tuple, run: tuple, key_dtype=None
) -> tuple[Problem, Backend]:
    """The problem of one call, and its backend: the one that argument or setting names, or the first.

    `widths` is `(heads, kv_heads, dim, value_dim)`, `rest` is `(bias, extra, gradients)`.
    """
    numbers, wanted = _asked(operation, like, like.shape[0], widths, rest, run)
    return _chosen(tuple(lengths), tuple(map(tuple, window)), (*numbers, key_dtype), wanted)


def together(
    like: Tensor, widths: tuple, lengths, window, rest: tuple, run: tuple, documents: Documents
) -> tuple[Problem, Backend | None]:
    """The attention of all documents in one launch, and its backend, or None where none has such a launch.

    Arguments are those of `chosen`; `lengths` and `documents` go into the `Problem`.
    """
    numbers, wanted = _asked("attend", like, len(documents.shapes), widths, rest, run)
    return _together(lengths, tuple(map(tuple, window)), numbers, documents, wanted)


def _asked(operation: str, like: Tensor, batch: int, widths: tuple, rest: tuple, run: tuple) -> tuple:
    """What a `Problem` holds behind its axes, and the backend that argument or setting names."""
    current = settings.current()
    backend, tf32 = run
    dtype, device = _NAMES[like.dtype], like.device.type
    tf32 = dtype == "float32" and device == "cuda" and (current.tf32 if tf32 is None else tf32)
    numbers = (batch, *widths, dtype, device, operation, *rest, tf32)
    return numbers, current.backend if backend is None else backend


def sampled(x: Tensor, steps: Sequence[int]) -> Tensor:
    """Every `steps`-th token of `[batch, *spatial, ...]`, a view: the queries that are computed."""
    if all(step == 1 for step in steps):
        return x
    return x[(slice(None), *(slice(None, None, step) for step in steps))]


def ready_attend(operands: tuple, rest: tuple) -> Ready:
    """What computes the operator `attend` for operands like these; `rest` are its other arguments."""
    *window, scale, gradients, backend, tf32 = rest
    given = Operands(*operands)
    if not given.query.shape[0] * given.query.shape[-2]:
        return _attend_shapes
    found, runs = _attend_chosen(given, window, gradients, (backend, tf32))
    return runs.prepare(found, given, scale)


def ready_attend_back(tensors: tuple, rest: tuple) -> Ready:
    """The same for `attend_back`, but with None for a gradient that is not needed."""
    *window, scale, needs, backend, tf32 = rest
    operands, needs = Operands(*tensors[:6]), tuple(needs)
    if not operands.query.shape[0] * operands.query.shape[-2]:
        return lambda *given: tuple(
            [torch.zeros_like(x) if need else None for x, need in zip(given, needs, strict=False)]
        )
    found, runs = _attend_chosen(operands, window, True, (backend, tf32))
    run = runs.prepare_back(found, settled(*tensors), scale, needs)
    results = tensors[6:8]
    if all(x.is_contiguous() for x in results) and all(x is None or x.numel() for x in operands):
        return run
    return lambda *given: present(run(*settled(*given)), Operands(*given[:6]), needs)


def present(grads: Sequence, operands: Operands, needs) -> tuple[Tensor | None, ...]:
    """What a backend found, with the gradients of additional tokens of which there are none."""
    return tuple(
        x.new_empty(x.shape) if grad is None and need and x is not None and not x.numel() else grad
        for grad, x, need in zip(grads, operands, needs, strict=True)
    )


def settled(*tensors: Any) -> tuple:
    """The tensors of `attend_back`, with results as backends take them."""
    *operands, out, lse, grad_out, grad_lse = tensors
    return (*operands, out.contiguous(), lse.contiguous(), grad_out, grad_lse)


def _attend_chosen(operands: Operands, window, gradients: bool, run: tuple) -> tuple[Problem, Backend]:
    query, key, value, bias, extra_key, _ = operands
    widths = (query.shape[-2], key.shape[-2], query.shape[-1], value.shape[-1])
    rest = (bias is not None, 0 if extra_key is None else extra_key.shape[1], gradients)
    key_dtype = None if key.dtype == value.dtype else str(key.dtype).removeprefix("torch.")
    return chosen("attend", value, widths, key.shape[1:-2], window, rest, run, key_dtype)


def ready_dot(tensors: tuple, rest: tuple) -> Ready:
    """As `ready_attend`, for the operator `dot`."""
    x, y, bias = tensors
    *window, scale, fill, backend, tf32 = rest
    if not x.shape[0] * x.shape[-2]:
        return lambda *given: _dot_shapes(*given, *rest)
    widths = (x.shape[-2], y.shape[-2], x.shape[-1], y.shape[-1])
    further = (bias is not None, 0, False)
    found, runs = chosen("dot", x, widths, y.shape[1:-2], window, further, (backend, tf32))
    return lambda x, y, bias: runs.dot(found, x, y, bias, scale, fill)


def ready_mix(tensors: tuple, rest: tuple) -> Ready:
    """As `ready_attend`, for the operator `mix`."""
    weights, y = tensors
    *window, backend, tf32 = rest
    if not y.shape[0] * weights.shape[-2]:
        return _mix_shapes
    widths = (weights.shape[-2], y.shape[-2], y.shape[-1], y.shape[-1])
    found, runs = chosen("mix", y, widths, y.shape[1:-2], window, (False, 0, False), (backend, tf32))
    return partial(runs.mix, found)


def ready_mix_back(tensors: tuple, rest: tuple) -> Ready:
    """As `ready_attend`, for the operator `mix_back`."""
    _, x = tensors
    lengths, kv_heads, *window, backend, tf32 = rest
    if not x.shape[0] * x.shape[-2]:
        return lambda *given: _mix_back_shapes(*given, *rest).zero_()
    widths = (x.shape[-2], kv_heads, x.shape[-1], x.shape[-1])
    found, runs = chosen("mix_back", x, widths, lengths, window, (False, 0, False), (backend, tf32))
    return partial(runs.mix_back, found)


def _spread(bias, lengths, *window):
    return relative.spread(bias, arguments.axes(lengths, window))


def _tally(weights, lengths, *window):
    total = relative.tally(weights, arguments.axes(lengths, window))
    return total.to(weights.dtype).contiguous()


# Shapes, also of fake tensors: results are contiguous.


def _attend_shapes(query, key, value, *_):
    out = value.new_empty((*query.shape[:-1], value.shape[-1]))
    return out, query.new_empty(query.shape[:-1], dtype=accumulating(value.dtype))


def attend_back_shapes(query, key, value, bias, extra_key, extra_value, *rest):
    needs = rest[-3]
    operands = (query, key, value, bias, extra_key, extra_value)
    return tuple(
        x.new_empty(x.shape) if need and x is not None else query.new_empty(0)
        for x, need in zip(operands, needs, strict=True)
    )


def _dot_shapes(x, y, bias, kernel_size, *_):
    return x.new_empty((*x.shape[:-1], prod(kernel_size)))


def _mix_shapes(weights, y, *_):
    return y.new_empty((*weights.shape[:-1], y.shape[-1]))


def _mix_back_shapes(weights, x, lengths, kv_heads, *_):
    return x.new_empty((x.shape[0], *lengths, kv_heads, x.shape[-1]))


def _spread_shapes(bias, lengths, *window):
    outputs = [-(-length // step) for length, step in zip(lengths, window[4], strict=True)]
    return bias.new_empty((*outputs, bias.shape[0], prod(window[0])))


def _tally_shapes(weights, lengths, kernel_size, *_):
    return weights.new_empty((weights.shape[-2], *(2 * size - 1 for size in kernel_size)))


def _dense_back_shapes(query, key, value, *_):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def kernel(schema: str, ready: Callable[[tuple, tuple], Ready]) -> Callable:
    """An operator, which has an empty tensor for None, of what prepares it."""
    count = schema.partition("->")[0].count("Tensor")

    def compute(*args):
        found = ready(args[:count], args[count:])(*args[:count])
        if isinstance(found, Tensor):
            return found
        return tuple([args[0].new_empty(0) if x is None else x for x in found])

    return compute


READY = {
    "attend": ready_attend,
    "attend_back": ready_attend_back,
    "dot": ready_dot,
    "mix": ready_mix,
    "mix_back": ready_mix_back,
}
_PREPARED = {
    "attend": _attend_shapes,
    "attend_back": attend_back_shapes,
    "dot": _dot_shapes,
    "mix": _mix_shapes,
    "mix_back": _mix_back_shapes,
}
_KERNELS = {
    **{name: (kernel(SCHEMAS[name], READY[name]), shapes) for name, shapes in _PREPARED.items()},
    "spread": (_spread, _spread_shapes),
    "tally": (_tally, _tally_shapes),
    "dense": (dense.attend, _attend_shapes),
    "dense_back": (dense.attend_back, _dense_back_shapes),
}
for _name, (_compute, _shapes) in _KERNELS.items():
    LIBRARY.impl(_name, _compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vicinal::{_name}", _shapes, lib=LIBRARY)


# FLOPs: useful ones. Two a visible pair and element of each matrix product, twice as many backward.


def _pair_flops(operation: str, row_shape, heads, dim, value_dim, lengths, window, extra=0) -> int:
    axes = arguments.axes(lengths, window)
    return Problem(axes, row_shape[0], heads, heads, dim, value_dim, operation=operation, extra=extra).flops


@register_flop_formula(torch.ops.vicinal.attend)
def _attend_flops(query, key, value, bias, extra_key, extra_value, *rest, out_shape=None, **_) -> int:
    extra = 0 if extra_key is None else extra_key[1]
    return _pair_flops("attend", query, query[-2], query[-1], value[-1], key[1:-2], rest[:5], extra)


@register_flop_formula(torch.ops.vicinal.attend_back)
def _attend_back_flops(query, key, value, bias, extra_key, extra_value, *rest, out_shape=None, **_) -> int:
    # Scores again, their gradient, and one product for each of query, key and value.
    extra = 0 if extra_key is None else extra_key[1]
    window = rest[4:9]
    width = 3 * query[-1], 2 * value[-1]
    return _pair_flops("attend", query, query[-2], *width, key[1:-2], window, extra)


@register_flop_formula(torch.ops.vicinal.dot)
def _dot_flops(x, y, bias, *rest, out_shape=None, **_) -> int:
    return _pair_flops("dot", x, x[-2], x[-1], x[-1], y[1:-2], rest[:5])


@register_flop_formula(torch.ops.vicinal.mix)
def _mix_flops(weights, y, *rest, out_shape=None, **_) -> int:
    return _pair_flops("mix", weights, weights[-2], y[-1], y[-1], y[1:-2], rest[:5])


@register_flop_formula(torch.ops.vicinal.mix_back)
def _mix_back_flops(weights, x, lengths, kv_heads, *rest, out_shape=None, **_) -> int:
    return _pair_flops("mix_back", weights, x[-2], x[-1], x[-1], lengths, rest[:5])


@register_flop_formula(torch.ops.vicinal.dense)
def _dense_flops(query, key, value, is_causal, *_, out_shape=None, **__) -> int:
    pairs = query[1] * (query[1] + 1) // 2 if is_causal else query[1] * key[1]
    return 2 * query[0] * query[-2] * pairs * (query[-1] + value[-1])


@register_flop_formula(torch.ops.vicinal.dense_back)
def _dense_back_flops(query, key, value, *rest, out_shape=None, **_) -> int:
    pairs = query[1] * (query[1] + 1) // 2 if rest[4] else query[1] * key[1]
    return 2 * query[0] * query[-2] * pairs * (3 * query[-1] + 2 * value[-1])
