"""What an MLX backend is."""

from typing import Protocol

import mlx.core as mx

from ...problem import Problem
from ..operands import Operands


class Refusing(Protocol):
    """What stands in the table: one way to run problems.

    `refusal` is the only place that says no; below it, everything is possible. Nothing is evaluated: methods
    build the graph. `attend` returns `out` `[batch, *outputs, heads, value_dim]` in the query's dtype and
    `lse` `[batch, *outputs, heads]`, natural log, in float32. Results are deterministic.
    """

    name: str
    transparent: bool

    def refusal(self, problem: Problem) -> str | None: ...


class Transparent(Refusing, Protocol):
    """Runs an attention with operations that MLX differentiates, maps and compiles by itself; `transparent`
    is True."""

    def attend(
        self, problem: Problem, operands: Operands, scale: float, with_lse: bool
    ) -> tuple[mx.array, mx.array | None]: ...


class Backend(Refusing, Protocol):
    """One way to run any operation, with its own gradients; `transparent` is False.

    `attend` always returns a log-sum-exp, for `attend_back`.

    `attend_back` returns gradients in the dtypes and shapes of the operands. The walks work on weights
    `[batch, *outputs, heads, prod(window)]`, slots row-major from each window's first key:

        dot       w[i, s] = scale * x[i] . y[key s of i]; `fill` where the window has no key in slot s
        mix       sum over s of w[i, s] * y[key s of i]
        mix_back  sum over the outputs i that see key j of w[i, s] * x[i]

    `mix` and `mix_back` never read a weight whose slot holds no key.
    """

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[mx.array, mx.array]: ...

    def attend_back(
        self,
        problem: Problem,
        operands: Operands,
        out: mx.array,
        lse: mx.array,
        grad_out: mx.array,
        grad_lse: mx.array,
        scale: float,
    ) -> Operands: ...

    def dot(self, problem: Problem, x: mx.array, y: mx.array, scale: float, fill: float) -> mx.array: ...

    def mix(self, problem: Problem, weights: mx.array, y: mx.array) -> mx.array: ...

    def mix_back(self, problem: Problem, weights: mx.array, x: mx.array) -> mx.array: ...
