"""Launches compiled ahead of time, for a host that runs machine code itself: no driver and no framework.

The order of a kernel's parameters is its tensors, then its numbers, then scratch addresses, at most two, that
kernels here leave alone.
"""

from ctypes import c_float
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import Launch, taken

ELEMENTS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int32": "*i32"}
# Tensors of rows, which are read and written in vectors: they begin at multiples of 16 bytes.
ROWS = frozenset(("query", "key", "value", "extra_key", "extra_value", "out", "x", "y"))
ROWS |= {"grad_out", "grad_query", "grad_key", "grad_value"}
# The largest number that a host passes: it has 32 bits for one.
LARGEST = 2**31 - 1


class Code(NamedTuple):
    """Machine code of one kernel.

    Args:
        name: its symbol, which no other kernel has.
        binary: a cubin.
        numbers: what follows the tensors, each an int32 or a float32.
        threads: threads of a program.
        shared: bytes of shared memory of a program.
    """

    name: str
    binary: bytes
    numbers: tuple[int | float, ...]
    threads: int
    shared: int


class _Source(ASTSource):
    """A specialization of a kernel under a name of its own, in Triton's cache as well."""

    def __init__(self, kernel: Any, *specialization: Any, options: dict[str, Any]) -> None:
        super().__init__(kernel, *specialization)
        digest = sha256(f"{super().hash()} {sorted(options.items())}".encode()).hexdigest()
        self.name = f"vicinal_{kernel.__name__}_{digest[:24]}"
        jit: Any = triton.jit
        self.fn = jit(kernel.fn, repr=lambda _: self.name)

    def hash(self) -> str:
        return sha256(f"{self.name} {super().hash()}".encode()).hexdigest()


@lru_cache(4096)
def compiled(launch: Launch, dtypes: tuple[str | None, ...], capability: int) -> Code:
    """`launch` for tensors of `dtypes`, None for no tensor, on GPUs of a compute capability (90 is 9.0)."""
    options = taken(launch.options, "cuda", capability)
    source, numbers = _specialized(launch, dtypes, options)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    metadata: Any = made.metadata
    assert metadata.name == source.name
    assert not metadata.global_scratch_size
    return Code(source.name, made.asm["cubin"], (*numbers, 0, 0), 32 * metadata.num_warps, metadata.shared)


def _specialized(
    launch: Launch, dtypes: tuple[str | None, ...], options: dict[str, Any]
) -> tuple[_Source, list[int | float]]:
    """The source, and the numbers that stay parameters."""
    elements = [None if dtype is None else ELEMENTS[dtype] for dtype in dtypes]
    signature: dict[str, Any] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list] = {}
    numbers = []
    given = zip(launch.kernel.params, (*elements, *launch.arguments), strict=True)
    for place, (parameter, value) in enumerate(given):
        name, is_tensor = parameter.name, place < len(elements)
        may_be_known = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or _is_compiled_in(value, may_be_known):
            signature[name] = "constexpr"
            constants[(place,)] = value
            continue
        signature[name] = value if is_tensor else "fp32" if isinstance(value, float) else "i32"
        if not is_tensor:
            # MLX takes no number that it would have to round.
            numbers.append(c_float(value).value if isinstance(value, float) else value)
        if name in ROWS if is_tensor else may_be_known and isinstance(value, int) and value % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return _Source(launch.kernel, signature, constants, attributes, options=options), numbers


def _is_compiled_in(value: Any, may_be_known: bool) -> bool:
    """Whether a number becomes a constant: a stride of 1 is worth knowing, and some numbers do not fit."""
    return isinstance(value, int) and ((value == 1 and may_be_known) or value > LARGEST)
