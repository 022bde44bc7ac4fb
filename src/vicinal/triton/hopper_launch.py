"""Launching the Hopper kernels with little host work: one launch per geometry, one tensor map per buffer."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime import driver

from .hopper_counts import Triple
from .hopper_spec import Spec
from .launch import hooks, in_c

Tensors = tuple[Tensor, ...]


class Map(NamedTuple):
    """How a kernel reads or writes one tensor: extents `[batch, t, h, w, heads, dim]`, and a box of it.

    `width` is the dimension of the box, padded to a power of two; an element takes `size` bytes. With
    `dilation` it is a box of a dilation group, whose lengths are the extents over it. The place of heads is
    then that of the first element of a batch entry, group and head, in units of 16 bytes.
    """

    extents: tuple[int, ...]
    box: Triple
    width: int
    size: int = 2
    dilation: Triple = (1, 1, 1)

    def layout(self) -> NVMMASharedLayout:
        swizzle = min(128, self.size * self.width)
        return NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=8 * self.size, rank=5)

    def descriptor(self, tensor: Tensor) -> TensorDescriptor:
        """The tensor with its batch folded into the first axis, or with dilation into the heads."""
        batch, t, h, w, heads, dim = self.extents
        strides = lifted_strides(tensor, self.size)
        if any(apart > 1 for apart in self.dilation):
            counts = (batch, *self.dilation, heads)
            last = sum((count - 1) * stride for count, stride in zip(counts, strides, strict=True))
            unit = 16 // self.size
            extents = [x // apart for x, apart in zip((t, h, w), self.dilation, strict=True)]
            extents.append(last // unit + 1)
            steps = [x * apart for x, apart in zip(strides[1:4], self.dilation, strict=True)]
            steps.append(unit)
        else:
            extents = [batch * t, h, w, heads]
            steps = [strides[0] if t == 1 else strides[1], *strides[2:]]
        return TensorDescriptor(
            tensor, [*extents, dim], [*steps, 1], [*self.box, 1, self.width], self.layout()
        )


class Compiled(NamedTuple):
    """A kernel on one device: what launches it, and its last arguments.

    `maps` are what its tensor maps hold, `scratch` the bytes that a program needs.
    """

    kernel: Any
    launch: Any
    last: tuple
    maps: list[dict]
    scratch: int


class Launch:
    """A kernel compiled for one geometry, called with tensors and numbers.

    Args:
        kernel: a `gluon.jit` function; its parameters are tensors seen through descriptors, then addresses,
            then a counter, then numbers, then with dilation strides, then `SPEC`.
        spec: its constants.
        programs: tiles; a multiprocessor gets one program, which computes some.
        maps: one per described tensor.
        numbers: last run-time parameters, the same in every call.
    """

    def __init__(self, kernel: Any, spec: Spec, programs: int, maps: tuple[Map, ...], numbers: tuple) -> None:
        self.kernel = kernel
        self.spec = spec
        self.programs = programs
        self.maps = maps
        self.numbers = numbers
        self.known: list[dict] = [{} for _ in maps]
        self.strided = spec.dilated
        self.compiled: dict[Any, Compiled] = {}

    def __call__(self, tensors: Tensors, addressed: Tensors, numbers: tuple) -> None:
        """Run on the current stream of the tensors' device."""
        device = tensors[0].get_device()
        if device != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._run(device, tensors, addressed, numbers)
        else:
            self._run(device, tensors, addressed, numbers)

    def _run(self, device: int, tensors: Tensors, addressed: Tensors, numbers: tuple) -> None:
        found = self._found(device, tensors, addressed, numbers)
        arguments = []
        for index, tensor in enumerate(tensors):
            key = (device, tensor.data_ptr(), tensor.stride())
            known = self.known[index].get(key)
            arguments += self._encode(index, tensor, found.maps[index], key) if known is None else known
        for tensor in addressed:
            arguments.append(tensor.data_ptr())
        arguments.append(_counter(device).data_ptr())
        programs = min(self.programs, _multiprocessors(device))
        _start(found, programs, device, None, (*arguments, *numbers, *found.last))

    def _found(self, device: int, tensors: Tensors, addressed: Tensors, numbers: tuple) -> Compiled:
        key = (device, *[tensor.stride() for tensor in tensors]) if self.strided else device
        found = self.compiled.get(key)
        if found is None:
            compiled = self.warmup(tensors, addressed, numbers)
            found = self.compiled[key] = _ready(compiled, self._last(tensors))
        return found

    def _last(self, tensors: tuple[Any, ...]) -> tuple:
        """Numbers that depend on no more than strides, and constants."""
        strides = map(sixteen_bytes, tensors) if self.strided else ()
        return (*self.numbers, *strides, self.spec)

    def _encode(self, index: int, tensor: Tensor, metadata: dict, key: tuple) -> tuple:
        """The tensor map of a buffer, and the extents and strides that the kernel's signature repeats."""
        described = self.maps[index].descriptor(tensor)
        encoded = driver.active.utils.fill_tma_descriptor(  # pyright: ignore[reportAttributeAccessIssue]
            tensor.data_ptr(),
            metadata["swizzle"],
            metadata["elem_size"],
            HOST_TYPE[metadata["elem_type"]],
            metadata["block_size"],
            described.shape,
            described.strides,
            0,
        )
        known = self.known[index]
        if len(known) >= 256:
            known.clear()
        known[key] = found = (encoded, *described.shape, *described.strides)
        return found

    def warmup(self, tensors: tuple[Any, ...], addressed: tuple[Any, ...], numbers: tuple) -> Any:
        """The compiled kernel, without a launch."""
        described = [how.descriptor(tensor) for how, tensor in zip(self.maps, tensors, strict=True)]
        arguments = (*described, *addressed, torch.int32, *numbers, *self._last(tensors))
        return self.kernel.warmup(*arguments, grid=(self.programs,), num_warps=4)


class GroupLaunch(Launch):
    """A kernel whose programs, one a tile, describe dilation groups: it takes addresses, and no counter."""

    def _run(self, device: int, tensors: Tensors, addressed: Tensors, numbers: tuple) -> None:
        found = self._found(device, tensors, addressed, numbers)
        scratch = tensors[0].new_empty(found.scratch * self.programs, dtype=torch.uint8)
        addresses = [tensor.data_ptr() for tensor in (*tensors, *addressed)]
        arguments = (*addresses, None, *numbers, *found.last)
        _start(found, self.programs, device, scratch.data_ptr(), arguments)

    def warmup(self, tensors: tuple[Any, ...], addressed: tuple[Any, ...], numbers: tuple) -> Any:
        """The compiled kernel, without a launch."""
        arguments = (*tensors, *addressed, None, *numbers, *self._last(tensors))
        return self.kernel.warmup(*arguments, grid=(self.programs,), num_warps=4)


def _ready(compiled: Any, last: tuple) -> Compiled:
    """Load a kernel. Its launcher encodes tensor maps in every call; the function inside takes them made."""
    metadata = compiled.metadata
    return Compiled(compiled, in_c(compiled), last, metadata.tensordesc_meta, metadata.global_scratch_size)


def _start(found: Compiled, programs: int, device: int, scratch: int | None, arguments: tuple) -> None:
    stream = driver.active.get_current_stream(device)  # pyright: ignore[reportAttributeAccessIssue]
    kernel = found.kernel
    # Neither cooperative nor waiting for the kernel before; no scratch for profiling.
    first = (programs, 1, 1, stream, kernel.function, False, False, scratch, None, kernel.packed_metadata)
    found.launch(*first, *hooks(kernel, programs, stream, arguments), *arguments)


def taking_turns(parts: list[Callable[[Tensor], None]], rooms: list[Tensor]) -> None:
    """Run parts of some work on as many streams as there are rooms, each of which takes part after part."""
    current = torch.cuda.current_stream(rooms[0].device)
    device = rooms[0].get_device()
    streams = [current, *(_beside(device, current.cuda_stream, number) for number in range(1, len(rooms)))]
    for stream in streams[1:]:
        stream.wait_stream(current)
    for number, part in enumerate(parts):
        with torch.cuda.stream(streams[number % len(rooms)]):
            part(rooms[number % len(rooms)])
    for stream in streams[1:]:
        current.wait_stream(stream)


@lru_cache(64)
def _beside(device: int, _stream: int, _number: int) -> torch.cuda.Stream:
    """A stream for work that another one waits for, and no third: a graph may capture what that one does."""
    return torch.cuda.Stream(device)


@lru_cache(64)
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _counter(device: int) -> Tensor:
    """A zero in memory that a launch counts tiles with; it leaves a zero behind."""
    if torch.cuda.is_current_stream_capturing():
        # A graph may run beside what its stream does later.
        return torch.zeros(1, dtype=torch.int32, device=device)
    stream = driver.active.get_current_stream(device)  # pyright: ignore[reportAttributeAccessIssue]
    return _stream_counter(device, stream)


@lru_cache(256)
def _stream_counter(device: int, _stream: int) -> Tensor:
    """The counter of the launches of a stream, which run one after another."""
    return torch.zeros(1, dtype=torch.int32, device=device)


# Element types of a tensor map are numbered differently in the driver's interface: bytes, float16, bfloat16.
HOST_TYPE = {0: 0, 6: 6, 10: 9}


def lifted_strides(tensor: Tensor, size: int = 2) -> list[int]:
    """Strides of `[batch, t, h, w, heads]`; an axis of one element gets one that TMA takes."""
    shape, strides = list(tensor.shape[:-1]), list(tensor.stride()[:-1])
    for _ in range(6 - tensor.ndim):
        shape.insert(1, 1)
        strides.insert(1, 0)
    return [stride if extent > 1 else 16 // size for extent, stride in zip(shape, strides, strict=True)]


def sixteen_bytes(tensor: Tensor) -> tuple[int, ...]:
    """`lifted_strides` in units that 32 bits hold."""
    return tuple(stride // 8 for stride in lifted_strides(tensor))


def strides_fit(tensor: Tensor) -> bool:
    """Whether TMA takes the strides of `tensor`."""
    return _strides_fit(tensor.shape, tensor.stride(), tensor.itemsize)


@lru_cache(4096)
def _strides_fit(shape: torch.Size, strides: tuple[int, ...], size: int) -> bool:
    """Whether TMA takes the strides: multiples of 16 bytes, and a batch that folds into the first axis."""
    *outer, last = zip(shape, strides, strict=True)
    if any(stride * size % 16 or stride <= 0 for extent, stride in outer if extent > 1) or (
        last[0] > 1 and last[1] != 1
    ):
        return False
    folds = len(shape) < 6 or shape[0] == 1 or shape[1] == 1 or strides[0] == shape[1] * strides[1]
    return folds


def mapped(tensor: Tensor) -> Tensor:
    """`tensor`, or a contiguous copy where TMA cannot address it."""
    if tensor.data_ptr() % 16 == 0 and strides_fit(tensor):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
