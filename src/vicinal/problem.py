"""What is computed, without tensors."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

from .window import Axis

# Why a backend leaves documents of different shapes to the front end, which then calls it for each shape.
SHAPE_BY_SHAPE = "computes documents of one shape at a time"
# Why a backend leaves float8 queries and keys to one whose matrix products take them.
ONE_DTYPE = "takes queries and keys in the dtype of values alone"


class Documents(NamedTuple):
    """Documents of different shapes that one launch computes, and where they lie in their tensors.

    Packed, tensors are `[tokens, heads, dim]`, one document after another, each row-major, and results
    `[outputs, heads, dim]`. Padded, they are `[documents, *frame, heads, dim]`, each document in the first
    corner of its entry, and results are zero outside of it, the log-sum-exp `-inf`. Queries are those of all
    tokens, whatever the output stride.

    Args:
        shapes: extents of every document; one with an extent of 0 is empty.
        frame: extents of an entry of a padded batch; None where documents are packed.
        clip: whether some are shorter than the window on an axis without dilation, where their queries then
            see all there is.
    """

    shapes: tuple[tuple[int, ...], ...]
    frame: tuple[int, ...] | None
    clip: bool


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
        key_dtype: dtype of queries and keys, where it is not that of values and outputs.
        documents: what the entries of the batch hold where their shapes differ. The lengths of `axes` are
            then powers of two, or the window's extent, that no document exceeds, so that batches share plans.
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
    key_dtype: str | None = None
    documents: Documents | None = None

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
        if self.documents is not None:
            frame = self.documents.frame
            parts.append("packed" if frame is None else f"padded to {_by(frame)}")
        dtype = self.dtype + " as tf32" * self.tf32
        parts += [dtype if self.key_dtype is None else f"{self.key_dtype} with {dtype}", self.device]
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
