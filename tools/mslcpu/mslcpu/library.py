"""A compiled source, its kernels, and what a launch found and counted."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

import numpy as np

from . import build
from .build import MSLError
from .rewrite import Kernel, RewriteError, entries, rewrite

# Order of the enumerations in native/checker.h and native/pass.cpp.
KINDS = (
    "out-of-bounds read",
    "out-of-bounds write",
    "race in threadgroup memory",
    "race in device memory",
    "race between threadgroups",
    "read of unwritten threadgroup memory",
    "read of unwritten device memory",
    "divergent barrier",
    "barrier that not all threads reach",
    "divergent SIMD-group operation",
    "shuffle from an inactive lane",
    "threadgroup memory over the limit",
    "misaligned access",
    "write to constant memory",
)
COUNTERS = [
    "device_read_bytes",
    "device_write_bytes",
    "device_reads",
    "device_writes",
    "threadgroup_read_bytes",
    "threadgroup_write_bytes",
    "threadgroup_reads",
    "threadgroup_writes",
    "constant_read_bytes",
    "constant_reads",
    "barriers",
    "simd_barriers",
    "shuffles",
    "reductions",
    "matrix_multiplies_32",
    "matrix_multiplies_16",
    "device_atomics",
    "threadgroup_atomics",
    "threadgroup_memory",
    "read_lines",
    "write_lines",
    "read_sectors",
    "write_sectors",
    "bank_cycles",
    "device_instructions",
    "threadgroup_instructions",
    "threads",
    "groups",
    "simdgroups",
]
OPERATIONS = [
    "add32",
    "mul32",
    "fma32",
    "add16",
    "mul16",
    "fma16",
    "divide",
    "select",
    "exp",
    "log",
    "sqrt",
    "trigonometric",
    "integer",
    "integer_mul",
    "integer_divide",
    "convert",
    "branch",
    "private_reads",
    "private_writes",
]
FOOTPRINT = ("read", "written", "distinct_read", "distinct_written", "group_read", "group_written")
SPACES = {"device": 1, "constant": 2}
PRELUDE = '#include "metal.h"\n'
FORWARD, REVERSE, RANDOM = ORDERS = (0, 1, 2)


class _Options(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint32) for name in ["check", "traffic", "order", "seed", "threadgroup_limit", "most"]
    ]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("host", ctypes.c_void_p),
        ("length", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("space", "element", "written_back", "starts_unwritten")),
        ("name", ctypes.c_char_p),
    ]


class _Finding(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("site", ctypes.c_uint32),
        ("slot", ctypes.c_int32),
        ("size", ctypes.c_uint32),
        ("offset", ctypes.c_int64),
        *((name, ctypes.c_uint32) for name in ("group", "thread", "other", "unused")),
        ("count", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Finding:
    """One kind of mistake at one source position (`file:line:column`), and the first time it was made."""

    kind: str
    location: str
    memory: str
    offset: int
    size: int
    group: int
    thread: int
    other: int
    count: int

    def __str__(self) -> str:
        where = (
            f" of '{self.memory}', offset {self.offset}, {self.size} bytes"
            if self.memory
            else f" ({self.offset})"
        )
        who = f"thread {self.thread} of threadgroup {self.group}, other thread {self.other}"
        return f"{self.location}: {self.kind}{where}; first by {who}; {self.count} times"


@dataclass(frozen=True)
class Result:
    """What one launch found and counted.

    Args:
        findings: mistakes, at most 20 of them, in the order they were made.
        counters: memory traffic and collectives.
        operations: executed arithmetic, per lane.
        buffers: bytes asked of each device buffer: in all, distinct, and distinct within each threadgroup.
    """

    findings: tuple[Finding, ...] = ()
    counters: dict[str, int] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    buffers: dict[str, dict[str, int]] = field(default_factory=dict)


@lru_cache
def _runtime() -> ctypes.CDLL:
    runtime = ctypes.CDLL(str(build.native()[0]), mode=ctypes.RTLD_GLOBAL)
    runtime.msl_launch.restype = ctypes.c_uint64
    runtime.msl_slot_name.restype = ctypes.c_char_p
    return runtime


@lru_cache(256)
def _translated(
    source: str,
    name: str,
    include: tuple[str, ...],
    constants: tuple[tuple[int | str, bool | int | float], ...],
    only: frozenset[str] | None,
) -> tuple[str, dict[str, tuple[str, Kernel]]]:
    """What clang compiles, and the symbols of kernels by host name."""
    try:
        unit = rewrite(build.preprocess(source, name, include), dict(constants))
        calls, table = entries(unit, only)
    except RewriteError as error:
        raise MSLError(f"{name}: {error}") from error
    return f'{PRELUDE}{unit.text}\n#line 1 "entries"\n{calls}', table


class Library:
    """Kernels of one source, compiled.

    Args:
        source: Metal source.
        name: file name that findings and compiler messages use.
        include: directories of `#include`.
        constants: values of function constants, by index or name.
        only: host names to compile; all if None.
        hooks: False compiles without checks and counters, several times as fast.
        fast_math: compile as Metal's fast math mode does.

    Raises:
        MSLError: the source does not compile.
    """

    def __init__(
        self,
        source: str,
        name: str = "kernel.metal",
        *,
        include: Sequence[str] = (),
        constants: Mapping[int | str, bool | int | float] | None = None,
        only: set[str] | None = None,
        hooks: bool = True,
        fast_math: bool = False,
    ):
        # What is included may change, and constants that differ in type alone would be one.
        translate = _translated.__wrapped__ if include or constants else _translated
        given = tuple((constants or {}).items()), None if only is None else frozenset(only)
        self.text, table = translate(source, name, tuple(include), *given)
        path = build.library(self.text, hooks=hooks, fast_math=fast_math)
        _runtime()
        self._handle = ctypes.CDLL(str(path))
        self._kernels = {
            host: (getattr(self._handle, symbol), kernel) for host, (symbol, kernel) in table.items()
        }
        self._hooks = hooks

    def names(self) -> list[str]:
        """Host names of the kernels."""
        return list(self._kernels)

    def most_threads(self, kernel: str) -> int:
        """Threads that a threadgroup of `kernel` may have."""
        return self._kernels[kernel][1].most_threads

    def run(
        self,
        kernel: str,
        buffers: Mapping[int, np.ndarray],
        *,
        grid: Sequence[int],
        group: Sequence[int],
        unwritten: Sequence[int] = (),
        order: int = FORWARD,
        seed: int = 1,
        traffic: bool = False,
        threadgroup_limit: int = 32768,
    ) -> Result:
        """Runs `grid` threads in threadgroups of `group`; results come back in the arrays of `buffers`.

        Args:
            unwritten: buffers that hold nothing at the start: full of NaN, not to be read before written.
            order: FORWARD, REVERSE or RANDOM order of threads and threadgroups between synchronisations.
            traffic: also count cache lines, sectors and bank conflicts.

        Raises:
            MSLError: the launch is one that Metal refuses.
        """
        entry, described = self._kernels[kernel]
        grid, group = ((*extent, 1, 1)[:3] for extent in (grid, group))
        if prod(group) > described.most_threads:
            raise MSLError(f"{kernel}: {prod(group)} threads in a threadgroup, over {described.most_threads}")
        bound, held = _bind(described, buffers, unwritten)
        options = _Options(self._hooks, traffic, order, seed, threadgroup_limit, 20)
        counters = (ctypes.c_uint64 * len(COUNTERS))()
        footprints = (ctypes.c_uint64 * (len(FOOTPRINT) * len(bound)))()
        blocks = self._blocks()
        blocks[0][:] = 0
        extents = [(ctypes.c_uint32 * 3)(*extent) for extent in (grid, group)]
        _runtime().msl_launch(entry, *extents, bound, len(bound), ctypes.byref(options), counters, footprints)
        findings = self._findings()
        _runtime().msl_release()
        del held
        rows = np.array(footprints).reshape(len(bound), len(FOOTPRINT))
        return Result(
            findings,
            dict(zip(COUNTERS, counters, strict=True)),
            {name: int(count) for name, count in zip(OPERATIONS, blocks[0] @ blocks[1], strict=True)},
            {
                bound[i].name.decode(): dict(zip(FOOTPRINT, map(int, rows[i]), strict=True))
                for i in range(len(bound))
                if bound[i].space == SPACES["device"]
            },
        )

    def _blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """How often each basic block ran, and the operations in it."""
        if not self._hooks:
            return np.zeros(0, np.uint64), np.zeros((0, len(OPERATIONS)), np.uint64)
        count = ctypes.c_int64.in_dll(self._handle, "msl_blocks").value
        runs = (ctypes.c_uint64 * count).in_dll(self._handle, "msl_block_runs")
        operations = (ctypes.c_uint32 * (count * len(OPERATIONS))).in_dll(
            self._handle, "msl_block_operations"
        )
        table = np.ctypeslib.as_array(operations).reshape(count, len(OPERATIONS)).astype(np.uint64)
        return np.ctypeslib.as_array(runs), table

    def _findings(self) -> tuple[Finding, ...]:
        first = ctypes.POINTER(_Finding)()
        count = _runtime().msl_findings(ctypes.byref(first))
        length = ctypes.c_int64.in_dll(self._handle, "msl_sites_length").value
        sites = (ctypes.c_char_p * length).in_dll(self._handle, "msl_sites")
        return tuple(
            Finding(
                KINDS[found.kind],
                sites[found.site].decode(),
                _runtime().msl_slot_name(found.slot).decode(),
                *(getattr(found, name) for name in ("offset", "size", "group", "thread", "other", "count")),
            )
            for found in first[:count]
        )


def _bind(kernel: Kernel, buffers: Mapping[int, np.ndarray], unwritten: Sequence[int]):
    """Buffer table of a launch, and the arrays that must live as long as it."""
    described = {parameter.index: parameter for parameter in kernel.parameters if parameter.space}
    missing = described.keys() - buffers.keys()
    if missing:
        raise MSLError(
            f"{kernel.name}: no buffer for {', '.join(described[i].name for i in sorted(missing))}"
        )
    table, held = (_Buffer * (max(buffers, default=0) + 1))(), []
    for index, given in buffers.items():
        parameter = described.get(index)
        if parameter is None:
            continue
        array = np.asarray(given)
        if not array.flags.c_contiguous:
            raise MSLError(f"{kernel.name}: the array for {parameter.name} is not contiguous")
        held.append(array)
        table[index] = _Buffer(
            array.ctypes.data,
            array.nbytes,
            SPACES[parameter.space],
            min(array.itemsize, 4),
            parameter.space == "device" and not parameter.is_const,
            index in unwritten,
            parameter.name.encode(),
        )
    return table, held
