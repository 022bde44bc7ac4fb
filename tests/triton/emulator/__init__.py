"""Gluon for Hopper on a CPU: partitions, barriers, TMA and wgmma under schedules that look for races.

    from tests.triton import emulator

    with emulator.stand_ins():
        from vicinal.triton import hopper_attention, hopper_forward
    with emulator.schedule(seed=3):
        hopper_attention.forward(problem, operands, scale)(*operands)

`stand_ins` puts modules of its own in the place of Triton's, which need not be installed, so kernels that are
imported inside are plain functions; do it in a process of its own. A launch then runs on tensors in memory of
the CPU, and writes its results into them.

A partition of `warp_specialize` runs until it synchronizes or starts something, then the schedule says who
goes on: `schedule(seed)` draws one, `schedule(order=["load", "partition 2"])` ranks the kinds of tasks. Kinds
are "program" (up to `warp_specialize`), "partition 0" and on, "load" and "store" (of a box), and "product". A
box that a load brings is NaN until it lands, an outgoing one is read, a product reads its operands, any time
before their wait ends.

A `Fault` names the lines that it comes from:

- a race: two accesses of a slot of shared memory (what `index` gives), one of them a write, that no chain of
  barriers and waits orders. It need not happen in this schedule, but an order that depends on the schedule
  does: seeds find more. Slots are taken as a whole;
- generic writes that TMA or wgmma read, or overwrite, and generic reads that TMA overwrites, without a fence
  between; reads of what nobody wrote;
- barriers: arrivals beyond the count, bytes that nobody expected, a phase that a partition never waited for
  or whose end it misses, one that is made twice, or used before it is made or after it ends;
- a product used before its wait, a partition that ends with something under way, and deadlocks: who waits
  for what, and what that lacks;
- barriers that no partition uses and that were not ended: the compiler puts something else in their place;
- global memory: addresses outside of a tensor, tensor maps that TMA does not take, two results in one place.

Not modelled: the threads of a partition, which are one here; registers and what the compiler makes of code;
clusters and multicast; ordering of global memory; how long anything takes.
"""

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import torch

from . import arrays, memory, operations
from .schedule import PROGRAM, Fault, Knowledge, Partition, Schedule, Scheduler

__all__ = ["ASSEMBLY", "Fault", "launch", "schedule", "stand_ins"]

# What a piece of inline PTX computes, by its text.
ASSEMBLY = {}
# Programs that run at a time, and at all if they are persistent.
RESIDENT = 3
_schedules = [Schedule(0)]


@contextmanager
def schedule(seed=0, order=None, restless=None):
    """Launches inside run by one schedule, which `Schedule` describes."""
    _schedules.append(Schedule(seed, order, restless))
    try:
        yield
    finally:
        _schedules.pop()


class HostDescriptor:
    """A tensor map as a launch passes it."""

    def __init__(self, base, shape, strides, block_shape, layout):
        self.parts = base, shape, strides, block_shape, layout


def _passed(value, kind, storages):
    """An argument as a kernel sees it."""
    if isinstance(value, HostDescriptor):
        tensor, *rest = value.parts
        return memory.Descriptor(memory.address(storages, tensor), *rest)
    if isinstance(value, torch.dtype):
        value = torch.zeros(1, dtype=value)
    if isinstance(value, torch.Tensor):
        return memory.address(storages, value)
    if type(value) is tuple:
        return tuple(_passed(one, None, storages) for one in value)
    if isinstance(value, (bool, int, float)):
        found = arrays.block(value)
        return found.to(kind) if isinstance(kind, arrays.DType) else found
    return value


def launch(kernel, *arguments, grid, num_warps=4):
    """Runs all programs of a kernel; a dtype in the place of a tensor is a zero, which must be left."""
    storages = {}
    code = kernel.__code__
    names = code.co_varnames[: code.co_argcount]
    kinds = [kernel.__annotations__.get(name) for name in names]
    passed = [_passed(x, kind, storages) for x, kind in zip(arguments, kinds, strict=True)]
    counters = [y for x, y in zip(arguments, passed, strict=True) if isinstance(x, torch.dtype)]
    programs = []
    many = min(grid[0], RESIDENT) if counters else grid[0]
    for first in range(0, many, RESIDENT):
        scheduler = Scheduler(_schedules[-1])
        for program in range(first, min(first + RESIDENT, many)):
            call = lambda: kernel(*passed)  # noqa: E731
            label = f"program {program}"
            programs.append(Partition(scheduler, PROGRAM, label, call, Knowledge(), (program, many)))
            scheduler.add(programs[-1])
        scheduler.run()
    memory.check_places([program.memories for program in programs])
    for counter in counters:
        assert not counter.memory.held.any(), "a counter is not left as it was found"
    for storage in storages.values():
        storage.flush()


def jit(function=None, **_):
    if function is None:
        return jit
    function.warmup = lambda *arguments, **options: launch(function, *arguments, **options)
    return function


def assembly(source, constraints, arguments, dtype, is_pure, pack):
    found = ASSEMBLY[source](*arguments)
    several = isinstance(dtype, tuple)
    dtypes = tuple(one.dtype for one in found) if several else found.dtype
    assert dtypes == dtype
    return found


def _module(name, **members):
    found = ModuleType(name)
    found.__dict__.update(members)
    return found


def _language():
    layouts = ("NVMMADistributedLayout", "DotOperandLayout", "SliceLayout", "BlockedLayout")
    layouts += ("SwizzledSharedLayout", "NVMMASharedLayout", "DistributedLinearLayout")
    taken = {name: getattr(arrays, name) for name in (
        *arrays.DTYPES.keys() - {"bool"}, "int1", "full", "arange", "where", "minimum", "maximum", "exp2",
        "log2", "broadcast", "expand_dims",
    )}  # fmt: skip
    taken |= {name: getattr(operations, name) for name in (
        "allocate_shared_memory", "thread_barrier", "atomic_add", "program_id", "num_programs",
        "warp_specialize",
    )}  # fmt: skip
    return _module(
        "triton.experimental.gluon.language",
        **taken,
        **{name: lambda *_, **__: None for name in layouts},
        max=arrays.highest,
        sum=arrays.total,
        load=memory.load,
        store=memory.store,
        to_tensor=arrays.block,
        convert_layout=lambda x, layout: x,
        static_range=lambda *ends: range(*map(arrays.number, ends)),
        constexpr=lambda x: x,
        inline_asm_elementwise=assembly,
    )


@contextmanager
def stand_ins():
    """Modules in the place of Triton's, for as long as others are imported."""
    language = _language()
    gluon = _module("triton.experimental.gluon", jit=jit, language=language)
    gluon.constexpr_function = lambda function: function
    hopper = ("fence_async_shared", "mbarrier", "tma", "warpgroup_mma", "warpgroup_mma_wait")
    operations.tma.make_tensor_descriptor = memory.Descriptor
    plain = _module("triton.language", condition=lambda holds, **_: holds)
    runtime = _module("triton.runtime", driver=SimpleNamespace(active=None))
    modules = (
        _module("triton", knobs=None, runtime=runtime, language=plain),
        plain,
        runtime,
        _module("triton.experimental", gluon=gluon),
        gluon,
        language,
        _module("triton.experimental.gluon.language.nvidia"),
        _module(
            "triton.experimental.gluon.language.nvidia.hopper",
            **{name: getattr(operations, name) for name in hopper},
        ),
        _module("triton.experimental.gluon.nvidia"),
        _module("triton.experimental.gluon.nvidia.hopper", TensorDescriptor=HostDescriptor),
    )
    kept = {module.__name__: sys.modules.get(module.__name__) for module in modules}
    sys.modules |= {module.__name__: module for module in modules}
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
