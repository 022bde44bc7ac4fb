"""Derivatives of the operators, at the Autograd key: reverse and forward mode, any order, `torch.func`.

`torch.library.register_autograd` has no forward mode, so the formulas hang on `_SingleLevelFunction`, the
piece of `torch.autograd.Function` that works inside one dispatch; functorch, compile and export come with the
dispatcher.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from math import prod
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import (
    _after_ADInplaceOrView_keyset,
    _AutoDispatchBelowADInplaceOrView,
)
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.autograd.function import _SingleLevelFunction

from .. import settings
from . import composite, dense, sections
from .composite import Parts, Walks, parts, wide
from .known import call
from .ops import LIBRARY, SCHEMAS
from .sections import OPERANDS, RESULTS
from .watching import is_recorded, is_transformed

ops = torch.ops.vicinal


class Formula:
    """Derivative of one operator. `inputs` are its arguments; tangents and gradients come in their order."""

    tensors = 0

    def save(self, ctx: Any, inputs: tuple, output: Any) -> None:
        raise NotImplementedError

    def backward(self, ctx: Any, *args: Any, **kwargs: Any) -> tuple:
        raise NotImplementedError

    def jvp(self, ctx: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class Call(NamedTuple):
    """What computes an operator of its tensors, and its other arguments."""

    compute: Callable
    rest: tuple


def differentiate(name: str, formula: Formula) -> Any:
    """Register `formula` for the operator `name`.

    Returns:
        A function to `apply` to a `Call` and the tensors.
    """
    operator, tensors = getattr(ops, name).default, formula.tensors

    def run(keyset, *args):
        with _AutoDispatchBelowADInplaceOrView():
            return operator.redispatch(keyset & _after_ADInplaceOrView_keyset, *args)

    def run_recorded(keyset, *args):
        # Outer levels of functorch record what runs below this one.
        with torch.enable_grad(), _set_fwd_grad_enabled(True):
            return run(keyset, *args)

    def forward(call, *given):
        return call.compute(*given)

    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        formula.save(ctx, (*inputs[1:], *inputs[0].rest), output)

    def backward(ctx, *grads):
        if all(grad is None for grad in grads):
            return (None,) * (1 + tensors)
        return (None, *formula.backward(ctx, *grads))

    def jvp(ctx, _, *tangents):
        saved = [x if x is None else unpack_dual(x).primal for x in ctx.saved_tensors]
        at = SimpleNamespace(**vars(ctx), saved_tensors=tuple(saved))
        # PyTorch turns forward mode off in here, for outer levels too.
        with _set_fwd_grad_enabled(True):
            return formula.jvp(at, *tangents)

    methods = {"forward": forward, "setup_context": setup_context, "backward": backward, "jvp": jvp}
    members = {key: staticmethod(method) for key, method in methods.items()}
    function: Any = type(f"Vicinal{name.title().replace('_', '')}", (_SingleLevelFunction,), members)

    def autograd(keyset, *args):
        given, rest = args[:tensors], args[tensors:]
        if not (is_transformed() or is_recorded(given)):
            return run(keyset, *args)
        with enable_single_level_autograd_function():
            return function.apply(Call(lambda *given: run_recorded(keyset, *given, *rest), rest), *given)

    LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
    return function


def keep(ctx: Any, *tensors: Tensor | None) -> None:
    ctx.save_for_backward(*tensors)
    if is_transformed():
        ctx.save_for_forward(*tensors)


def fixed(window: Sequence, backend: str | None, tf32: bool | None) -> tuple[tuple, tuple]:
    """The window, hashable, and the caller's settings, fixed: a backward pass may run in another thread."""
    current = settings.current()
    run = current.backend if backend is None else backend, current.tf32 if tf32 is None else tf32
    return tuple(map(tuple, window)), run


def zeros(tensor: Tensor | None, like: Tensor | None) -> Any:
    return torch.zeros_like(like) if tensor is None and like is not None else tensor


def _filled(found: tuple, like: tuple) -> Parts:
    return parts(*map(zeros, found, like))


def _narrow(found: Parts, like: tuple) -> tuple:
    """In the dtypes of operands, but for the bias, which is not summed yet."""
    (key, extra_key), (value, extra_value) = found.key, found.value
    grads = (found.query, key, value, None, extra_key, extra_value)
    query, key, value, _, *more = (x if x is None else x.to(t.dtype) for x, t in zip_longest(grads, like))
    return query, key, value, found.bias, *more


def _rounded(grads: Sequence, like: tuple) -> tuple:
    """In the dtypes of operands."""
    return tuple(x if x is None else x.to(t.dtype) for x, t in zip(grads, like, strict=False))


def _walks(operands: tuple, window: tuple, run: tuple) -> Walks:
    key = operands[1]
    lengths, kv_heads = key.shape[1:-2], key.shape[-2]
    return Walks(
        lambda x, y, fill: ops.dot(x, y, None, *window, 1.0, fill, *run),
        lambda weights, y: ops.mix(weights, y, *window, *run),
        lambda weights, x: ops.mix_back(weights, x, lengths, kv_heads, *window, *run),
        lambda bias: ops.spread(bias, lengths, *window),
        lambda weights: ops.tally(weights, lengths, *window),
        prod(window[0]),
    )


class Sectioned(Formula):
    """Of attention over `operands` tensors; those of dense attention are fewer."""

    operands = 6

    def walks(self, ctx, operands):
        return _walks(operands, ctx.window, ctx.run)

    def sections(self, ctx, compute, tensors, given, results):
        """What `compute` returns for operands and further tensors, of which `given` says what they are."""
        walks, places = self.walks(ctx, tensors), OPERANDS[: self.operands] + given
        return sections.apply(compute, tensors, places, results, walks.slots)


class Attend(Sectioned):
    tensors = 6

    def save(self, ctx, inputs, output):
        keep(ctx, *inputs[:6], *output)
        *window, ctx.scale, _, backend, tf32 = inputs[6:]
        ctx.window, ctx.run = fixed(window, backend, tf32)

    def backward(self, ctx, grad_out, grad_lse):
        needs = ctx.needs_input_grad[1:7]
        given = (*ctx.saved_tensors, grad_out, grad_lse)
        grads = call("attend_back", given, *ctx.window, ctx.scale, needs, *ctx.run)
        return tuple([grad if need else None for grad, need in zip(grads, needs, strict=True)])

    def jvp(self, ctx, *tangents):
        count = self.operands
        operands, (out, lse) = ctx.saved_tensors[:count], ctx.saved_tensors[count:]

        def compute(*given):
            at, moves = given[:count], _filled(given[count:], given[:count])
            move_out, move_lse = composite.attend_jvp(self.walks(ctx, at), parts(*at), moves, ctx.scale)
            return move_out.to(out.dtype), move_lse.to(lse.dtype)

        return tuple(self.sections(ctx, compute, (*operands, *tangents), OPERANDS[:count], RESULTS))


class AttendBack(Sectioned):
    """`out` and `lse` count as functions of the operands, so their own gradients are left out."""

    tensors = 10

    def save(self, ctx, inputs, output):
        count = self.operands
        operands, (out, lse, grad_out, grad_lse) = inputs[:count], inputs[count : self.tensors]
        keep(ctx, *operands, zeros(grad_out, out.detach()), zeros(grad_lse, lse.detach()))
        ctx.given = (grad_out is not None, grad_lse is not None)
        self.settle(ctx, *inputs[self.tensors :])

    def settle(self, ctx, *rest):
        *window, ctx.scale, ctx.needs, backend, tf32 = rest
        ctx.window, ctx.run = fixed(window, backend, tf32)

    def backward(self, ctx, *cotangents):
        count = self.operands

        def compute(*given):
            at, (grad_out, grad_lse), cotangents = given[:count], given[count : count + 2], given[count + 2 :]
            pull = _filled(cotangents, at)
            grads, to_out, to_lse = composite.attend_back_back(
                self.walks(ctx, at), parts(*at), wide(grad_out), wide(grad_lse), pull, ctx.scale
            )
            flow = to_out.to(grad_out.dtype), to_lse.to(grad_lse.dtype)
            return *_narrow(grads, at)[:count], *flow

        some = (x if need else None for x, need in zip(cotangents, ctx.needs, strict=True))
        kinds, tensors = OPERANDS[:count], (*ctx.saved_tensors, *some)
        *grads, to_out, to_lse = self.sections(ctx, compute, tensors, RESULTS + kinds, kinds + RESULTS)
        found = (*_rounded(grads, tensors), None, None, to_out, to_lse)
        wanted = zip(found, (True,) * (count + 2) + ctx.given, ctx.needs_input_grad[1:], strict=True)
        return tuple(x if present and need else None for x, present, need in wanted)

    def jvp(self, ctx, *tangents):
        count = self.operands

        def compute(*given):
            at, (grad_out, grad_lse), moves = given[:count], given[count : count + 2], given[count + 2 :]
            moved = composite.attend_back_jvp(
                self.walks(ctx, at),
                parts(*at),
                wide(grad_out),
                wide(grad_lse),
                _filled(moves[:count], at),
                wide(zeros(moves[count], grad_out)),
                wide(zeros(moves[count + 1], grad_lse)),
                ctx.scale,
            )
            return _narrow(moved, at)[:count]

        kinds, like = OPERANDS[:count], ctx.saved_tensors[count]
        tensors = (*ctx.saved_tensors, *tangents[:count], *tangents[count + 2 :])
        moved = self.sections(ctx, compute, tensors, RESULTS + kinds + RESULTS, kinds)
        found = zip(_rounded(moved, tensors), ctx.needs, strict=True)
        return tuple(x if need and x is not None else like.new_empty(0) for x, need in found)


class Dot(Formula):
    tensors = 3

    def save(self, ctx, inputs, output):
        x, y, bias, *window, ctx.scale, _, backend, tf32 = inputs
        keep(ctx, x, y, bias)
        ctx.window, ctx.run = fixed(window, backend, tf32)

    def backward(self, ctx, grad):
        x, y, bias = ctx.saved_tensors
        _, *needs = ctx.needs_input_grad[:4]
        lengths, kv_heads = y.shape[1:-2], y.shape[-2]
        weights, x, y = _scaled(grad, x, y, ctx.scale)
        to_x = call("mix", (weights, y), *ctx.window, *ctx.run) if needs[0] else None
        to_y = call("mix_back", (weights, x), lengths, kv_heads, *ctx.window, *ctx.run) if needs[1] else None
        to_bias = ops.tally(grad, lengths, *ctx.window).to(bias.dtype) if needs[2] else None
        return to_x, to_y, to_bias

    def jvp(self, ctx, move_x, move_y, move_bias):
        x, y, bias = ctx.saved_tensors
        dot = lambda a, b, c: ops.dot(a, b, c, *ctx.window, ctx.scale, 0.0, *ctx.run)  # noqa: E731
        return dot(zeros(move_x, x), y, zeros(move_bias, bias)) + dot(x, zeros(move_y, y), None)


def _scaled(weights: Tensor, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, or what they multiply where its rows are shorter, times `scale`."""
    if scale == 1:
        return weights, x, y
    if weights.shape[-1] > x.shape[-1]:
        return weights, x * scale, y * scale
    return weights * scale, x, y


class Mix(Formula):
    tensors = 2

    def save(self, ctx, inputs, output):
        weights, y, *window, backend, tf32 = inputs
        keep(ctx, weights, y)
        ctx.window, ctx.run = fixed(window, backend, tf32)

    def backward(self, ctx, grad):
        weights, y = ctx.saved_tensors
        _, *needs = ctx.needs_input_grad[:3]
        lengths, kv_heads = y.shape[1:-2], y.shape[-2]
        rest = (*ctx.window, *ctx.run)
        to_weights = call("dot", (grad, y, None), *ctx.window, 1.0, 0.0, *ctx.run) if needs[0] else None
        to_y = call("mix_back", (weights, grad), lengths, kv_heads, *rest) if needs[1] else None
        return to_weights, to_y

    def jvp(self, ctx, move_weights, move_y):
        weights, y = ctx.saved_tensors
        mix = lambda a, b: ops.mix(a, b, *ctx.window, *ctx.run)  # noqa: E731
        return mix(zeros(move_weights, weights), y) + mix(weights, zeros(move_y, y))


class MixBack(Formula):
    tensors = 2

    def save(self, ctx, inputs, output):
        weights, x, ctx.lengths, ctx.kv_heads, *window, backend, tf32 = inputs
        keep(ctx, weights, x)
        ctx.window, ctx.run = fixed(window, backend, tf32)

    def backward(self, ctx, grad):
        weights, x = ctx.saved_tensors
        _, *needs = ctx.needs_input_grad[:3]
        to_weights = call("dot", (x, grad, None), *ctx.window, 1.0, 0.0, *ctx.run) if needs[0] else None
        return to_weights, call("mix", (weights, grad), *ctx.window, *ctx.run) if needs[1] else None

    def jvp(self, ctx, move_weights, move_x):
        weights, x = ctx.saved_tensors
        back = lambda a, b: ops.mix_back(a, b, ctx.lengths, ctx.kv_heads, *ctx.window, *ctx.run)  # noqa: E731
        return back(zeros(move_weights, weights), x) + back(weights, zeros(move_x, x))


class Spread(Formula):
    tensors = 1

    def save(self, ctx, inputs, output):
        _, ctx.lengths, *window = inputs
        ctx.window = tuple(window)

    def backward(self, ctx, grad):
        return (ops.tally(grad.unsqueeze(0), ctx.lengths, *ctx.window),)

    def jvp(self, ctx, move):
        return ops.spread(move, ctx.lengths, *ctx.window)


class Tally(Formula):
    tensors = 1

    def save(self, ctx, inputs, output):
        weights, ctx.lengths, *window = inputs
        ctx.window, ctx.batch = tuple(window), weights.shape[0]

    def backward(self, ctx, grad):
        spread = ops.spread(grad, ctx.lengths, *ctx.window)
        return (spread.expand(ctx.batch, *spread.shape),)

    def jvp(self, ctx, move):
        return ops.tally(move, ctx.lengths, *ctx.window)


class Dense(Attend):
    tensors = operands = 3

    def save(self, ctx, inputs, output):
        keep(ctx, *inputs[:3], *output)
        ctx.is_causal, ctx.scale = inputs[3:]

    def walks(self, ctx, operands):
        return dense.walks(operands[1], ctx.is_causal)

    def backward(self, ctx, grad_out, grad_lse):
        return ops.dense_back(*ctx.saved_tensors, grad_out, grad_lse, ctx.is_causal, ctx.scale)


class DenseBack(AttendBack):
    tensors, operands, walks = 7, 3, Dense.walks

    def settle(self, ctx, *rest):
        ctx.is_causal, ctx.scale = rest
        ctx.needs = (True,) * 3


FORMULAS = {
    "attend": Attend(),
    "attend_back": AttendBack(),
    "dot": Dot(),
    "mix": Mix(),
    "mix_back": MixBack(),
    "spread": Spread(),
    "tally": Tally(),
    "dense": Dense(),
    "dense_back": DenseBack(),
}
assert FORMULAS.keys() == SCHEMAS.keys()
FUNCTIONS = {name: differentiate(name, formula) for name, formula in FORMULAS.items()}
