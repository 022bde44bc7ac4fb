"""The operators below the public functions: what runs, derivatives in both directions, and how they map.

Each is an `mx.custom_function`, made once per `Call`; the window, the scale and the backend are fixed
there, so a backward pass runs as its forward did. Arrays are in the layouts of `backends/base.py`. Second
derivatives are MLX's own of `composite`, over the walks.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from .. import arguments
from ..dispatch import choose, first
from ..problem import Documents, Problem
from ..window import Axis
from . import batching, composite, relative
from .batching import BIAS, ROWS, TOKENS
from .operands import Operands, narrowed, wide, widened

Arrays = tuple[mx.array, ...]
_PLACES = (TOKENS, TOKENS, TOKENS, BIAS, TOKENS, TOKENS)


_NAMES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}


class Batch(Protocol):
    """Documents of different shapes in one batch; `documents.py` has it."""

    lengths: tuple[int, ...]
    documents: Documents

    def by_shape(self, call: "Call", given: Operands, with_lse: bool) -> tuple[mx.array, mx.array | None]: ...


class Call(NamedTuple):
    """What an operator is besides its arrays.

    `present` says which operands of an attention there are, and `batch` where documents lie in them if they
    are computed together.
    """

    window: arguments.Window
    scale: float = 1.0
    backend: str | None = None
    present: tuple[bool, ...] = (True, True, True, False, False, False)
    fill: float = 0.0
    tf32: bool = False
    batch: Batch | None = None

    def operands(self, given: Arrays) -> Operands:
        """The operands of an attention, None where there is none."""
        left = iter(given)
        found: list[Any] = [next(left) if there else None for there in self.present]
        return Operands(*found)

    def given(self, operands: Sequence[Any]) -> tuple[Any, ...]:
        """What stands where there is an operand."""
        return tuple(x for x, there in zip(operands, self.present, strict=True) if there)


def attend(call: Call, operands: Operands, with_lse: bool) -> tuple[mx.array, mx.array | None]:
    """Output, and log-sum-exp if asked for."""
    if operands.extra_key is not None and not operands.extra_key.shape[1]:
        # No additional tokens; MLX has no maximum of nothing.
        operands = operands._replace(extra_key=None, extra_value=None)
        call = call._replace(present=(*call.present[:4], False, False))
    problem, backend = _attending(call, operands)
    if backend is None:
        return _nothing(operands.query, problem)
    if backend.transparent:
        return backend.attend(problem, operands, call.scale, with_lse)
    out, lse = _attend(call)(*call.given(operands))
    return out, lse


def is_together(call: Call, operands: Operands) -> bool:
    """Whether there is a backend that computes the documents of `call.batch` together."""
    return _attending(call, operands)[1] is not None


def dot(call: Call, x: mx.array, y: mx.array) -> mx.array:
    """Scaled products of every row of `x` with the keys of its window."""
    return _dot(call)(x, y)


def mix(call: Call, weights: mx.array, y: mx.array) -> mx.array:
    """Values `y` of every window, summed with weights."""
    return _mix(call)(weights, y)


def spread(call: Call, bias: mx.array, lengths: tuple[int, ...]) -> mx.array:
    """A relative position bias at the slots of every window."""
    return _spread(axes(lengths, call.window))(bias)


def device() -> str:
    """Where MLX runs now: `cpu`, `metal` or `cuda`."""
    if mx.default_device().type == mx.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


@lru_cache(1024)
def axes(lengths: tuple[int, ...], window: arguments.Window) -> tuple[Axis, ...]:
    """Axes of a checked window."""
    return arguments.axes(lengths, window)


# A problem and the backend that runs it, found with one look: hashing a `Problem` takes longer than small
# problems.
@lru_cache(4096)
def _found(
    lengths: tuple[int, ...],
    window: arguments.Window,
    wanted: str | None,
    documents: Documents | None,
    *rest: Any,
) -> tuple[Problem, Any]:
    from .backends import BACKENDS

    problem = Problem(axes(lengths, window), *rest, documents=documents)
    if not problem.batch * problem.heads:
        return problem, None
    pick = choose if problem.documents is None else first
    return problem, pick(BACKENDS, problem, wanted)


def _attending(call: Call, operands: Operands, gradients: bool = False) -> tuple[Problem, Any]:
    """The problem and its backend; None where nothing is to do, and where documents go shape by shape."""
    query, key, value, bias, extra_key, _ = operands
    heads, dim = query.shape[-2:]
    extra = 0 if extra_key is None else extra_key.shape[1]
    if call.batch is None:
        batch, lengths, documents = query.shape[0], tuple(key.shape[1:-2]), None
    else:
        lengths, documents = call.batch.lengths, call.batch.documents
        batch = len(documents.shapes)
    sizes = (batch, heads, key.shape[-2], dim, value.shape[-1], _NAMES[query.dtype], device())
    rest = ("attend", bias is not None, extra, gradients, _tf32(call, *sizes[-2:]))
    return _found(lengths, call.window, call.backend, documents, *sizes, *rest)


def _walking(
    operation: str, call: Call, like: mx.array, heads: int, kv_heads: int, lengths
) -> tuple[Problem, Any]:
    dim = like.shape[-1]
    sizes = (like.shape[0], heads, kv_heads, dim, dim, _NAMES[like.dtype], device())
    rest = (operation, False, 0, False, _tf32(call, *sizes[-2:]))
    return _found(tuple(lengths), call.window, call.backend, None, *sizes, *rest)


def _tf32(call: Call, dtype: str, where: str) -> bool:
    return call.tf32 and dtype == "float32" and where == "cuda"


def _nothing(query: mx.array, problem: Problem) -> tuple[mx.array, mx.array]:
    return mx.zeros((*query.shape[:-1], problem.value_dim), query.dtype), mx.zeros(query.shape[:-1])


class _Formula(NamedTuple):
    """What an operator runs, its derivatives, where its arrays have heads, and itself for more heads."""

    run: Callable[..., Any]
    back: Callable[[Arrays, Arrays, Arrays], Arrays]
    forward: Callable[[Arrays, Arrays], Any]
    places: tuple[int, ...]
    results: tuple[int, ...]
    widened: Callable[[int], Callable[..., Any]]


def _operator(formula: _Formula) -> Callable[..., Any]:
    # MLX's forward mode walks what is run as well, and kernels have no derivative of their own there.
    function = mx.custom_function(lambda *given: formula.run(*map(mx.stop_gradient, given)))

    @function.vjp
    def vjp(primals, cotangents, outputs):
        primals = several(primals)
        grads = formula.back(primals, several(cotangents), several(outputs))
        return grads if len(primals) > 1 else grads[0]

    @function.jvp
    def jvp(primals, tangents):
        primals = several(primals)
        moves = several(tangents)
        return formula.forward(primals, _filled(moves, primals))

    @function.vmap
    def vmap(inputs, batched):
        inputs, batched = several(inputs), several(batched)
        size = batching.extent(inputs, batched)
        folded = [
            batching.fold(x, axis, place, size)
            for x, axis, place in zip(inputs, batched, formula.places, strict=True)
        ]
        found = several(formula.widened(size)(*folded))
        unfolded = tuple(
            batching.unfold(x, place, size) for x, place in zip(found, formula.results, strict=True)
        )
        return (unfolded, (0,) * len(unfolded)) if len(formula.results) > 1 else (unfolded[0], 0)

    return function


def several(x: Any) -> tuple[Any, ...]:
    """A tuple of what MLX hands over, which is bare if it is a lone array, axis or tangent."""
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def _filled(tangents: tuple, like: Arrays) -> Arrays:
    return tuple(mx.zeros_like(x) if move is None else move for move, x in zip(tangents, like, strict=True))


def _tangents(function: Callable[..., Any], primals: Arrays, moves: Arrays) -> tuple:
    return tuple(mx.jvp(function, list(primals), list(moves))[1])


def _walks(call: Call, problem: Problem) -> composite.Walks:
    plain = Call(call.window, backend=call.backend, tf32=call.tf32)
    lengths, kv_heads = problem.lengths, problem.kv_heads
    return composite.Walks(
        lambda x, y, fill: _dot(plain._replace(fill=fill))(x, y),
        _mix(plain),
        _mix_back(plain, lengths, kv_heads),
        _spread(problem.axes),
        _tally(problem.axes),
        prod(problem.window),
    )


def _by_walks(call: Call) -> Callable[..., Any]:
    """Output and log-sum-exp in operations that have derivatives of any order."""

    def run(*given):
        operands = call.operands(given)
        if call.batch is not None:
            return call.batch.by_shape(call._replace(batch=None), operands, True)
        walks = _walks(call, _attending(call, operands)[0])
        out, lse = composite.attend(walks, widened(operands), call.scale)
        return out.astype(operands.query.dtype), lse

    return run


@lru_cache(1024)
def _attend(call: Call) -> Callable[..., Any]:
    def run(*given):
        operands = call.operands(given)
        problem, backend = _attending(call, operands)
        return backend.attend(problem, operands, call.scale)

    def back(primals, cotangents, outputs):
        return _attend_back(call)(*primals, *outputs, *cotangents)

    def forward(primals, moves):
        return _tangents(_by_walks(call), primals, moves)

    places = call.given(_PLACES)
    return _operator(_Formula(run, back, forward, places, (TOKENS, ROWS), lambda size: _attend(call)))


@lru_cache(1024)
def _attend_back(call: Call) -> Callable[..., Any]:
    """`out` and `lse` count as functions of the operands, so their own gradients are left out."""
    count = sum(call.present)

    def run(*given):
        operands = call.operands(given[:count])
        problem, backend = _attending(call, operands, gradients=True)
        grads = backend.attend_back(problem, operands, *given[count:], call.scale)
        return call.given(grads)

    def by_walks(*given):
        operands = call.operands(given[:count])
        if call.batch is not None:
            return mx.vjp(_by_walks(call), list(given[:count]), list(given[count:]))[1]
        walks = _walks(call, _attending(call, operands)[0])
        grad_out, grad_lse = map(wide, given[count:])
        grads = composite.attend_back(walks, widened(operands), grad_out, grad_lse, call.scale)
        return call.given(narrowed(grads, operands))

    def back(primals, cotangents, outputs):
        inputs = (*primals[:count], *primals[count + 2 :])
        found = mx.vjp(by_walks, list(inputs), list(cotangents))[1]
        blank = [mx.zeros_like(x) for x in primals[count : count + 2]]
        return (*found[:count], *blank, *found[count:])

    def forward(primals, moves):
        inputs, along = ((*x[:count], *x[count + 2 :]) for x in (primals, moves))
        return _tangents(by_walks, inputs, along)

    places = call.given(_PLACES)
    every = (*places, TOKENS, ROWS, TOKENS, ROWS)
    return _operator(_Formula(run, back, forward, every, places, lambda size: _attend_back(call)))


@lru_cache(1024)
def _dot(call: Call) -> Callable[..., Any]:
    plain = call._replace(fill=0.0)

    def run(x, y):
        problem, backend = _walking("dot", call, x, x.shape[-2], y.shape[-2], y.shape[1:-2])
        if backend is None:
            return mx.zeros((*x.shape[:-1], prod(problem.window)), x.dtype)
        return backend.dot(problem, x, y, call.scale, call.fill)

    def back(primals, cotangents, outputs):
        (x, y), weights = primals, cotangents[0]
        # Whichever has shorter rows.
        if weights.shape[-1] > x.shape[-1]:
            x, y = x * call.scale, y * call.scale
        else:
            weights = weights * call.scale
        key = _mix_back(plain, y.shape[1:-2], y.shape[-2])(weights, x)
        return _mix(plain)(weights, y), key

    def forward(primals, moves):
        (x, y), (move_x, move_y) = primals, moves
        return _dot(plain)(move_x, y) + _dot(plain)(x, move_y)

    return _operator(_Formula(run, back, forward, (TOKENS, TOKENS), (TOKENS,), lambda size: _dot(call)))


@lru_cache(1024)
def _mix(call: Call) -> Callable[..., Any]:
    plain = call._replace(scale=1.0, fill=0.0)

    def run(weights, y):
        problem, backend = _walking("mix", call, y, weights.shape[-2], y.shape[-2], y.shape[1:-2])
        if backend is None:
            return mx.zeros((*weights.shape[:-1], y.shape[-1]), y.dtype)
        return backend.mix(problem, weights, y)

    def back(primals, cotangents, outputs):
        (weights, y), grad = primals, cotangents[0]
        return _dot(plain)(grad, y), _mix_back(plain, y.shape[1:-2], y.shape[-2])(weights, grad)

    def forward(primals, moves):
        (weights, y), (move_weights, move_y) = primals, moves
        return _mix(plain)(move_weights, y) + _mix(plain)(weights, move_y)

    return _operator(_Formula(run, back, forward, (TOKENS, TOKENS), (TOKENS,), lambda size: _mix(call)))


@lru_cache(1024)
def _mix_back(call: Call, lengths: tuple[int, ...], kv_heads: int) -> Callable[..., Any]:
    plain = call._replace(scale=1.0, fill=0.0)

    def run(weights, x):
        problem, backend = _walking("mix_back", call, x, x.shape[-2], kv_heads, lengths)
        if backend is None:
            return mx.zeros((x.shape[0], *lengths, kv_heads, x.shape[-1]), x.dtype)
        return backend.mix_back(problem, weights, x)

    def back(primals, cotangents, outputs):
        (weights, x), grad = primals, cotangents[0]
        return _dot(plain)(x, grad), _mix(plain)(weights, grad)

    def forward(primals, moves):
        (weights, x), (move_weights, move_x) = primals, moves
        own = _mix_back(plain, lengths, kv_heads)
        return own(move_weights, x) + own(weights, move_x)

    return _operator(
        _Formula(
            run,
            back,
            forward,
            (TOKENS, TOKENS),
            (TOKENS,),
            lambda size: _mix_back(call, lengths, kv_heads * size),
        )
    )


@lru_cache(1024)
def _spread(found: tuple[Axis, ...]) -> Callable[..., Any]:
    def back(primals, cotangents, outputs):
        return (_tally(found)(cotangents[0][None]),)

    def forward(primals, moves):
        return _spread(found)(moves[0])

    run = lambda bias: relative.spread(bias, found)  # noqa: E731
    return _operator(_Formula(run, back, forward, (BIAS,), (TOKENS,), lambda size: _spread(found)))


@lru_cache(1024)
def _tally(found: tuple[Axis, ...]) -> Callable[..., Any]:
    def back(primals, cotangents, outputs):
        return (mx.broadcast_to(_spread(found)(cotangents[0]), primals[0].shape),)

    def forward(primals, moves):
        return _tally(found)(moves[0])

    run = lambda weights: relative.tally(weights, found)  # noqa: E731
    return _operator(_Formula(run, back, forward, (TOKENS,), (BIAS,), lambda size: _tally(found)))
