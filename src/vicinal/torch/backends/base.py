"""What a PyTorch backend is."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ...problem import Problem


class Operands(NamedTuple):
    """Tensors of an attention.

    Shapes: query `[batch, *outputs, heads, dim]` (already sampled at `output_stride`), key
    `[batch, *lengths, kv_heads, dim]`, value `[batch, *lengths, kv_heads, value_dim]`, bias
    `[heads, *(2 * size - 1)]` in the query's dtype or float32, extra_key and extra_value
    `[batch, extra, kv_heads, dim or value_dim]`. Any strides, unless a backend says otherwise. Where the
    problem is one of `Documents`, they say where tokens lie and that the query is not sampled.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None = None
    extra_key: Tensor | None = None
    extra_value: Tensor | None = None


class Grads(NamedTuple):
    """Gradients of the operands, in their dtypes and shapes; None for those that need none."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    bias: Tensor | None = None
    extra_key: Tensor | None = None
    extra_value: Tensor | None = None


Needs = tuple[bool, bool, bool, bool, bool, bool]
# Takes tensors of one geometry, whatever they hold, and returns what an operator does.
Ready = Callable[..., Any]


class Backend(Protocol):
    """One way to run a problem. `refusal` is the only place that says no; below it, everything is possible.

    `attend` returns `out` `[batch, *outputs, heads, value_dim]` in the query's dtype and `lse`
    `[batch, *outputs, heads]`, natural log, in float32 (float64 for float64). `attend_back` takes them back,
    contiguous, and returns gradients in the dtypes and shapes of the operands, None where `needs` is false;
    `grad_out` or `grad_lse` may be None, which means zero. The walks work on weights
    `[batch, *outputs, heads, prod(window)]`, slots row-major from each window's first key:

        dot       w[i, s] = scale * x[i] . y[key s of i] (+ bias); `fill` in slots that hold no key
        mix       sum over s of w[i, s] * y[key s of i]
        mix_back  sum over the outputs i that see key j of w[i, s] * x[i]

    `mix` and `mix_back` never read a weight whose slot holds no key. Results are contiguous and
    deterministic.

    Of `attend` and `prepare` a backend has one at least, from which the other follows; so with their
    gradients. One that refuses walks has none.
    """

    name: str

    def refusal(self, problem: Problem) -> str | None: ...

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[Tensor, Tensor]:
        return self.prepare(problem, operands, scale)(*operands)

    def prepare(self, problem: Problem, operands: Operands, scale: float) -> Ready:
        """`attend` for operands of the shapes, strides, dtypes and device of these."""
        return lambda *given: self.attend(problem, Operands(*given), scale)

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
        given = (*operands, out, lse, grad_out, grad_lse)
        return Grads(*self.prepare_back(problem, given, scale, needs)(*given))

    def prepare_back(self, problem: Problem, tensors: tuple, scale: float, needs: Needs) -> Ready:
        """`attend_back` for tensors like these: operands, then results and the gradients of both."""

        def differentiate(*given: Any) -> Grads:
            *operands, out, lse, grad_out, grad_lse = given
            flow = grad_out, grad_lse
            return self.attend_back(problem, Operands(*operands), out, lse, *flow, scale, needs)

        return differentiate

    def dot(
        self, problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float
    ) -> Tensor:
        raise AssertionError("refused")

    def mix(self, problem: Problem, weights: Tensor, y: Tensor) -> Tensor:
        raise AssertionError("refused")

    def mix_back(self, problem: Problem, weights: Tensor, x: Tensor) -> Tensor:
        raise AssertionError("refused")
