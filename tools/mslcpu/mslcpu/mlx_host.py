"""`mx.fast.metal_kernel` for arrays of the CPU, with the signature that MLX generates."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from .library import FORWARD, Library, Result
from .rewrite import POSITIONS

PRELUDE = """#include <metal_stdlib>
using namespace metal;
typedef half float16_t;
typedef bfloat bfloat16_t;
"""
NAMES = {
    mx.bool_: "bool",
    mx.float32: "float",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    **{
        getattr(mx, f"{sign}int{bits}"): f"{sign}int{bits}_t"
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}
# Below this size MLX passes an array in constant memory.
CONSTANT_SIZE = 8


@dataclass
class Session:
    """How kernels compile and run, and what they did; see `torch_host.Session`.

    Args:
        moved: names of inputs that start one element past an aligned address, as those of a slice may.
    """

    hooks: bool = True
    fast_math: bool = False
    order: int = FORWARD
    traffic: bool = False
    edit: Callable[[str], str] = str
    moved: frozenset[str] = frozenset()
    launches: list[tuple[str, Result]] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        return [f"{name}: {finding}" for name, result in self.launches for finding in result.findings]

    def metal_kernel(self, name, input_names, output_names, source, header="", ensure_row_contiguous=True,
                     atomic_outputs=False, compile_options=None) -> "Kernel":  # fmt: skip
        fast = self.fast_math or (compile_options or {}).get("math_mode") == "fast"
        assert ensure_row_contiguous, "only arrays in row-major order"
        return Kernel(self, name, input_names, output_names, source, header, atomic_outputs, fast)


class Kernel:
    def __init__(self, session, name, input_names, output_names, source, header, atomic_outputs, fast_math):
        self._session, self._name = session, f"custom_kernel_{name}"
        self._input_names, self._output_names = input_names, output_names
        self._source, self._header, self._atomic, self._fast = source, header, atomic_outputs, fast_math
        self._libraries: dict[str, Library] = {}

    def __call__(
        self, *, inputs, output_shapes, output_dtypes, grid, threadgroup, template=(), init_value=None
    ):
        arrays = [given if isinstance(given, mx.array) else mx.array(given) for given in inputs]
        outputs = [
            _numpy(mx.full(shape, init_value or 0, dtype))
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]
        parameters, buffers = self._signature(arrays, outputs, output_dtypes)
        first = len(buffers) - len(outputs)
        text = self._text(parameters, template)
        if text not in self._libraries:
            self._libraries[text] = Library(
                self._session.edit(PRELUDE + text), hooks=self._session.hooks, fast_math=self._fast
            )
        result = self._libraries[text].run(
            self._name,
            dict(enumerate(buffers)),
            grid=grid,
            group=[min(pair) for pair in zip(threadgroup, grid, strict=True)],
            unwritten=() if init_value is not None else range(first, len(buffers)),
            order=self._session.order,
            traffic=self._session.traffic,
        )
        self._session.launches.append((self._name, result))
        found = [_array(output, dtype) for output, dtype in zip(outputs, output_dtypes, strict=True)]
        return mx.depends(found, _opaque(arrays))

    def _signature(self, arrays, outputs, dtypes) -> tuple[list[str], list[np.ndarray]]:
        parameters, buffers = [], []

        def add(kind: str, name: str, value: np.ndarray) -> None:
            parameters.append(f"{kind} {name} [[buffer({len(buffers)})]]")
            buffers.append(value)

        for name, array in zip(self._input_names, arrays, strict=True):
            space = "constant" if array.size < CONSTANT_SIZE else "device"
            add(
                f"const {space} {NAMES[array.dtype]}{'*' if array.ndim else '&'}",
                name,
                self._placed(name, array),
            )
            strides = np.cumprod([1, *array.shape[:0:-1]], dtype=np.int64)[::-1].copy()
            extras = (("int*", "shape", np.array(array.shape, np.int32)), ("int64_t*", "strides", strides),
                      ("int&", "ndim", np.array(array.ndim, np.int32)))  # fmt: skip
            for kind, what, value in extras:
                if array.ndim and f"{name}_{what}" in self._source:
                    add(f"const constant {kind}", f"{name}_{what}", value)
        for name, output, dtype in zip(self._output_names, outputs, dtypes, strict=True):
            kind = f"atomic<{NAMES[dtype]}>" if self._atomic else NAMES[dtype]
            add(f"device {kind}*", name, output)
        vector = ("position", "threads_per", "threadgroups_per", "grid")
        for name in POSITIONS:
            if name in self._source:
                wide = any(part in name for part in vector) and not name.startswith("threads_per_simdgroup")
                parameters.append(f"uint{'3' * wide} {name} [[{name}]]")
        return parameters, buffers

    def _placed(self, name: str, array: mx.array) -> np.ndarray:
        found = _numpy(array)
        if name not in self._session.moved:
            return found
        room = np.empty(found.size + 1, found.dtype)[1:].reshape(found.shape)
        room[...] = found
        return room

    def _text(self, parameters: list[str], template) -> str:
        names = ", ".join(f"{_kind(value)} {name}" for name, value in template)
        head = f"{self._header}\n" + (f"template <{names}>\n" if template else "")
        text = f"{head}[[kernel]] void {self._name}({', '.join(parameters)}) {{\n{self._source}\n}}\n"
        if not template:
            return text
        values = ", ".join(NAMES[v] if isinstance(v, mx.Dtype) else str(v).lower() for _, v in template)
        made = f"{self._name}<{values}>"
        return f'{text}template [[host_name("{self._name}")]] [[kernel]] decltype({made}) {made};\n'


def _opaque(arrays: list[mx.array]) -> list[mx.array]:
    """Something that depends on `arrays` and has neither forward mode nor vmap, as MLX's kernels have not."""
    firsts = (x.reshape(-1)[:1].astype(mx.float32) for x in arrays if x.size)
    square = mx.zeros((1, 1), mx.float32) + 0 * sum(firsts)
    return mx.linalg.lu(square, stream=mx.cpu)


def _kind(value) -> str:
    return "typename" if isinstance(value, mx.Dtype) else "bool" if isinstance(value, bool) else "int"


def _numpy(array: mx.array) -> np.ndarray:
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array, order="C")


def _array(stored: np.ndarray, dtype: mx.Dtype) -> mx.array:
    return mx.array(stored).view(mx.bfloat16) if dtype == mx.bfloat16 else mx.array(stored)


@contextmanager
def installed(**options):
    """Gives `mx.fast.metal_kernel` this module's meaning, and yields the `Session`."""
    session, real = Session(**options), mx.fast.metal_kernel
    mx.fast.metal_kernel = session.metal_kernel
    try:
        yield session
    finally:
        mx.fast.metal_kernel = real
