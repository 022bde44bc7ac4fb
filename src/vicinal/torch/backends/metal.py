"""Apple GPUs: the Metal kernels, compiled as they are needed by `torch.mps.compile_shader`."""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ...metal import source
from ...metal.geometry import Layout, layout, whole
from ...problem import Problem
from .base import Backend, Grads, Needs, Operands

MOST_DIM = 256
PLAIN_THREADS = 64
TILE_THREADS = 128
BIAS_THREADS = 128


class Metal(Backend):
    """Tiled kernels, or plain ones where tiles compute more than `most_waste` pairs for each that counts.

    The plain kernels are the specification. A thread takes a row, which suits windows of a few keys.
    """

    def __init__(self, name: str, most_waste: float):
        self.name, self._most_waste = name, most_waste

    def refusal(self, problem: Problem) -> str | None:
        if problem.device != "mps":
            return f"runs on mps, not {problem.device}"
        if problem.dtype not in source.TYPES:
            return f"has no {problem.dtype}"
        if problem.dtype == "bfloat16" and not torch.backends.mps.is_macos_or_newer(14, 0):
            return "bfloat16 needs macOS 14"
        for name, dim in (("head", problem.dim), ("value", problem.value_dim)):
            if dim > MOST_DIM:
                return f"{name} dim {dim} is over {MOST_DIM}"
        if max(prod(problem.lengths), prod(problem.outputs)) >= 2**31:
            return "2**31 tokens or more"
        return None

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[Tensor, Tensor]:
        given = _bindable(operands)
        query = given[0]
        out = query.new_empty(*query.shape[:-1], problem.value_dim)
        lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
        arguments = (*_shape(problem), problem.bias, problem.extra > 0)
        self._over_rows("attend", arguments, layout(problem), [*given, out, lse], scale)
        return out, lse

    def attend_back(
        self,
        problem: Problem,
        operands: Operands,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor | None,
        grad_lse: Tensor | None,
        scale: float,
        needs: Needs,
    ) -> Grads:
        query, key, value, bias, extra_key, extra_value = _bindable(operands)
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
        out, grad_out, lse, grad_lse = map(_aligned, (out, grad_out, lse, grad_lse))
        known = [grad_out, lse, _delta(problem, out, grad_out, grad_lse)]
        shape, here = _shape(problem), layout(problem)
        grads: list[Tensor | None] = [None] * len(needs)
        if needs[0]:
            grads[0] = torch.empty_like(query)
            tensors = [query, key, value, bias, extra_key, extra_value, *known, grads[0]]
            arguments = (*shape, problem.bias, problem.extra > 0)
            self._over_rows("attend_back_query", arguments, here, tensors, scale)
        if needs[1] or needs[2]:
            grads[1:3] = pair = [torch.empty_like(key), torch.empty_like(value)]
            tensors = [query, key, value, bias, *known, *pair]
            inverse = layout(problem, inverse=True)
            self._over_rows("attend_back_key", (*shape, problem.bias), inverse, tensors, scale)
        if needs[3]:
            grads[3] = torch.empty_like(bias)
            tensors = [query, key, value, bias, *known, grads[3]]
            threads = (BIAS_THREADS * here.geometry.relative_count, problem.heads, 1)
            _launch("attend_back_bias", shape, threads, BIAS_THREADS, tensors, here, scale)
        if needs[4] or needs[5]:
            grads[4:6] = pair = [torch.empty_like(extra_key), torch.empty_like(extra_value)]
            tensors = [query, extra_key, extra_value, bias, *known, *pair]
            arguments = (*_shape(problem, rank=1), False)
            self._over_rows("attend_back_key", arguments, whole(problem), tensors, scale)
        cast = zip(grads, operands, needs, strict=True)
        return Grads(*(None if g is None or x is None or not need else g.to(x.dtype) for g, x, need in cast))

    def dot(
        self, problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float
    ) -> Tensor:
        x, y, bias = _aligned(x), _aligned(y), _aligned(x if bias is None else bias.float())
        # Kernels write the slots that hold a key, which are all of them unless an axis is causal.
        weights = x.new_full((*x.shape[:-1], prod(problem.window)), fill)
        arguments = (source.TYPES[problem.dtype], problem.rank, problem.dim, problem.bias)
        self._over_rows("dot_walk", arguments, layout(problem), [x, y, bias, weights], scale)
        return weights

    def mix(self, problem: Problem, weights: Tensor, y: Tensor) -> Tensor:
        out = y.new_empty(problem.batch, *problem.outputs, problem.heads, y.shape[-1])
        tensors = [_aligned(weights), _aligned(y), out]
        self._over_rows(
            "mix_walk", (*map(_type, tensors[:2]), problem.rank, y.shape[-1]), layout(problem), tensors
        )
        return out

    def mix_back(self, problem: Problem, weights: Tensor, x: Tensor) -> Tensor:
        out = x.new_empty(problem.batch, *problem.lengths, problem.kv_heads, x.shape[-1])
        tensors = [_aligned(weights), _aligned(x), out]
        arguments = (*map(_type, tensors[:2]), problem.rank, x.shape[-1])
        self._over_rows("mix_back_walk", arguments, layout(problem, inverse=True), tensors)
        return out

    def _over_rows(
        self, kernel: str, arguments: tuple, where: Layout, tensors: list[Tensor], *numbers: float
    ) -> None:
        """Launches a kernel by tiles of rows, or its plain version with a thread a row."""
        geometry = where.geometry
        if where.suits_tiles(self._most_waste):
            threads = (TILE_THREADS * prod(geometry.tiles), where.heads, geometry.batch)
            _launch(kernel, arguments, threads, TILE_THREADS, tensors, where, *numbers)
        else:
            threads = (geometry.row_count, where.heads, geometry.batch)
            _launch(f"{kernel}_plain", arguments, threads, PLAIN_THREADS, tensors, where, *numbers)


def _shape(problem: Problem, rank: int | None = None) -> tuple:
    return source.TYPES[problem.dtype], rank or problem.rank, problem.dim, problem.value_dim


def _type(x: Tensor) -> str:
    return source.TYPES[str(x.dtype).removeprefix("torch.")]


def _delta(problem: Problem, out: Tensor, grad_out: Tensor, grad_lse: Tensor) -> Tensor:
    """What backward subtracts from the gradients of the weights, one number a row."""
    delta = torch.empty_like(grad_lse)
    arguments = (source.TYPES[problem.dtype], problem.value_dim)
    _launch("delta", arguments, (32 * delta.numel(), 1, 1), 32, [out, grad_out, grad_lse, delta])
    return delta


def _launch(
    kernel: str,
    arguments: tuple,
    threads: tuple[int, int, int],
    group: int,
    tensors: list[Tensor],
    where: Layout | None = None,
    *numbers: float,
) -> None:
    """Runs an instantiation of a kernel on tensors, then the layout's table and geometry, then numbers."""
    shader = _shader(*source.instantiation(kernel, *arguments))
    rest = [] if where is None else [_table(where, tensors[0].device), where.geometry.packed]
    casts = {len(tensors) + 1: "int32"}
    shader(*tensors, *rest, *map(float, numbers), threads=threads, group_size=(group, 1, 1), arg_casts=casts)


@lru_cache(None)
def _shader(host: str, instantiation: str):
    return getattr(torch.mps.compile_shader(source.templates() + instantiation), host)


@lru_cache(256)
def _table(where: Layout, device: torch.device) -> Tensor:
    return torch.tensor(where.table, dtype=torch.int32, device=device)


def _bindable(operands: Operands) -> list[Tensor]:
    """Operands as kernels take them, the bias in float32; the query stands for those that are not there."""
    bias = None if operands.bias is None else operands.bias.float()
    return [_aligned(operands.query if x is None else x) for x in operands._replace(bias=bias)]


def _aligned(x: Tensor) -> Tensor:
    """`x` in row-major order, at an address that vectors of four can be read from."""
    x = x.contiguous()
    return x.clone() if x.storage_offset() * x.element_size() % 16 else x


METAL = Metal("metal", most_waste=8.0)
PLAIN = Metal("metal-plain", most_waste=0.0)
