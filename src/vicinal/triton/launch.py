"""Launching kernels with little host work: all but tensors is bound once, and the compiled kernel kept.

A kernel takes its tensors, then its numbers, then its compile-time constants, all by position. Triton
specializes on the numbers and on which addresses are multiples of 16; the latter find the compiled kernel.
"""

from inspect import getclosurevars
from itertools import chain
from typing import Any, NamedTuple

from triton import knobs  # pyright: ignore[reportAttributeAccessIssue]
from triton.runtime import driver

from .support import GLUON, installed

HOPPER = 90


def taken(options: dict[str, Any], backend: str, capability: Any) -> dict[str, Any]:
    """`options` for the compiler of a device: `num_warps`, `num_stages` and whatever else it takes.

    AMD's does not bound registers by `maxnreg`. `hopper_stages` are the stages on a Hopper GPU, whose shared
    memory is large.
    """
    found = dict(options)
    stages = found.pop("hopper_stages", None)
    if backend != "cuda":
        found.pop("maxnreg", None)
    elif stages is not None and capability == HOPPER:
        found["num_stages"] = stages
    return found


class Started(NamedTuple):
    """What starts a compiled kernel, and what it takes between the kernel's function and its metadata."""

    kernel: Any
    start: Any
    flags: tuple


class Launch:
    """A kernel with all its arguments but tensors, which a call passes in the kernel's order.

    Args:
        kernel: a `triton.jit` function.
        grid: programs.
        numbers: runtime numbers.
        constants: values of the last parameters, which are constexpr.
        options: the compiler's, and those that `taken` knows.
    """

    __slots__ = ("arguments", "compiled", "grid", "kernel", "options")

    def __init__(self, kernel: Any, grid: int, numbers: tuple, constants: tuple, **options: Any) -> None:
        self.kernel = kernel
        self.grid = grid
        self.arguments = (*numbers, *constants)
        self.options = options
        self.compiled: dict[tuple, Started] = {}

    def __call__(self, *tensors: Any) -> None:
        """Run on the current stream of the first tensor's device; for PyTorch's tensors."""
        if self.grid == 0:
            return
        device = tensors[0].get_device()
        if device < 0:
            self._launch(device, tensors)
            return
        active: Any = driver.active
        current = active.get_current_device()
        if device == current:
            self._launch(device, tensors)
            return
        active.set_current_device(device)
        try:
            self._launch(device, tensors)
        finally:
            active.set_current_device(current)

    def _launch(self, device: int, tensors: tuple[Any, ...]) -> None:
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        key = (device, *[None if address is None else address % 16 == 0 for address in addresses])
        found = self.compiled.get(key)
        if found is None:
            # The interpreter compiles nothing and returns None.
            compiled = self.kernel[(self.grid,)](*tensors, *self.arguments, **self._taken())
            if compiled is not None:
                self.compiled[key] = _started(compiled)
            return
        stream = driver.active.get_current_stream(device)  # pyright: ignore[reportAttributeAccessIssue]
        kernel, start, flags = found
        first = (self.grid, 1, 1, stream, kernel.function, *flags, kernel.packed_metadata)
        hooked = hooks(kernel, self.grid, stream, tensors, self.arguments)
        start(*first, *hooked, *addresses, *self.arguments)

    def warmup(self, *tensors: Any) -> Any:
        """The compiled kernel, without a launch."""
        return self.kernel.warmup(*tensors, *self.arguments, grid=(1,), **self._taken())

    def _taken(self) -> dict[str, Any]:
        """Options for the active device."""
        if knobs.runtime.interpret:
            return taken(self.options, "", None)
        active: Any = driver.active
        target = active.get_current_target()
        return taken(self.options, target.backend, target.arch)


def _started(compiled: Any) -> Started:
    """Triton's launcher for a GPU of NVIDIA only adds constants to what a function in C takes."""
    launcher = compiled.run
    is_plain = type(launcher).__name__ == "CudaLauncher" and installed() == GLUON
    if not is_plain or launcher.global_scratch_size or launcher.profile_scratch_size:
        return Started(compiled, launcher, ())
    flags = (launcher.launch_cooperative_grid, launcher.launch_pdl, None, None)
    return Started(compiled, in_c(compiled), flags)


def in_c(compiled: Any) -> Any:
    """The function in C that Triton 3.6 launches with. It takes tensor maps made, and memory for scratch."""
    launch = compiled.run.launch
    inner = getclosurevars(launch).nonlocals if compiled.metadata.tensordesc_meta else {}
    return inner.get("launcher", launch)


def hooks(compiled: Any, grid: int, stream: int, *arguments: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """What Triton's hooks around a launch are told, and the two; None for an empty one, which takes time."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    enter = enter if getattr(enter, "calls", True) else None
    leave = leave if getattr(leave, "calls", True) else None
    if enter is None:
        return None, None, leave
    return compiled.launch_metadata((grid, 1, 1), stream, *chain(*arguments)), enter, leave


def rows_aligned(tensor: Any) -> Any:
    """`tensor`, or a copy of it where its last dimension is not contiguous, which every kernel asks for."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def addresses_aligned(tensors: Any) -> bool:
    """Whether all tensors start at multiples of 16 bytes."""
    return all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def spatial_strides(stride: tuple[int, ...]) -> tuple[int, ...]:
    """`stride` of `[batch, *spatial, heads, dim]` as batch, three axes (0 where missing), and heads.

    The axis of `[tokens, heads, dim]` is both the first and the last of the four.
    """
    batch, *axes, heads, _ = stride
    axes = axes or [batch]
    return (batch, *(0,) * (3 - len(axes)), *axes, heads)


def strides(tensor: Any) -> tuple[int, ...]:
    """Strides as a key; empty for no tensor."""
    return () if tensor is None else tensor.stride()
