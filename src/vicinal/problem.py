"""What is computed, without tensors."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from .window import Axis


@dataclass(frozen=True, slots=True)
class Problem:
    """One call of one operation: hashable, printable, and all that a backend needs to accept or refuse it.

    Args:
        axes: one `Axis` per spatial axis.
        dim, value_dim: head dimension of queries and keys, and of values.
        operation: `attend`, or one of the walks `dot`, `mix`, `mix_back` that split operations are made of.
        bias: whether a relative position bias is added to the scores.
        extra: additional key/value tokens that every query sees.
        gradients: whether a backward pass will follow.
        tf32: whether float32 products may round their inputs to TF32.
    """

    axes: tuple[Axis, ...]
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    dim: int = 32
    value_dim: int = 32
    dtype: str = "float32"
    device: str = "cpu"
    operation: str = "attend"
    bias: bool = False
    extra: int = 0
    gradients: bool = False
    tf32: bool = False

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(axis.length for axis in self.axes)

    @property
    def outputs(self) -> tuple[int, ...]:
        return tuple(axis.outputs for axis in self.axes)

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def covers(self) -> bool:
        """Whether every output sees every key."""
        return all(axis.covers for axis in self.axes)

    @property
    def pairs(self) -> int:
        """Visible (output, key) pairs of one head of one batch entry, additional tokens included."""
        return prod(map(_pairs, self.axes)) + self.extra * prod(self.outputs)

    @property
    def flops(self) -> int:
        """Useful floating point operations, forward: two a pair and element of each matrix product."""
        width = {"attend": self.dim + self.value_dim, "dot": self.dim}.get(self.operation, self.value_dim)
        return 2 * self.batch * self.heads * self.pairs * width

    def __str__(self) -> str:
        axes = self.axes
        parts = [f"{self.operation} {self.rank}-D {_by(self.lengths)}", f"window {_by(self.window)}"]
        for name in ("stride", "dilation", "output_stride"):
            values = [getattr(axis, name) for axis in axes]
            if any(value != 1 for value in values):
                parts.append(f"{name.replace('_', ' ')} {_by(values)}")
        if any(axis.causal for axis in axes):
            parts.append("causal " + "".join("ft"[axis.causal] for axis in axes))
        if self.batch != 1:
            parts.append(f"batch {self.batch}")
        over = "" if self.heads == self.kv_heads else f" over {self.kv_heads} kv"
        parts.append(f"{self.heads} head{'s' * (self.heads != 1)}{over}")
        parts.append(f"dim {self.dim}" + ("" if self.dim == self.value_dim else f" to {self.value_dim}"))
        if self.bias:
            parts.append("bias")
        if self.extra:
            parts.append(f"{self.extra} additional tokens")
        parts += [self.dtype + " as tf32" * self.tf32, self.device]
        if self.gradients:
            parts.append("with gradients")
        return ", ".join(parts)


def _by(numbers: Iterable[int]) -> str:
    return "x".join(map(str, numbers))


@lru_cache(1024)
def _pairs(axis: Axis) -> int:
    if not axis.causal:
        return axis.outputs * axis.size
    return sum(len(axis.keys(output)) for output in range(axis.outputs))
