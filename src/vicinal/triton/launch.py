"""Launching kernels with little host work: the compiled kernel is found by numbers, its arguments bound once.

A kernel takes its tensors, then its numbers, then its compile-time constants, all by position. What Triton
specializes on, the numbers and whether each address is a multiple of 16, is the key of what it has compiled.
"""

from typing import Any

import torch
from torch import Tensor
from triton import knobs  # pyright: ignore[reportAttributeAccessIssue]
from triton.runtime import driver

Tensors = tuple[Tensor | None, ...]


class Launch:
    """A kernel with its compile-time constants and options, called with a grid, tensors and numbers.

    Args:
        kernel: a `triton.jit` or `gluon.jit` function.
        constants: values of its last parameters, which are constexpr.
        options: `num_warps`, `num_stages` and whatever else the compiler takes.
    """

    __slots__ = ("compiled", "constants", "kernel", "options")

    def __init__(self, kernel: Any, constants: tuple, **options: Any) -> None:
        self.kernel = kernel
        self.constants = constants
        self.options = options
        self.compiled: dict[tuple, Any] = {}

    def __call__(self, grid: int, tensors: Tensors, numbers: tuple) -> None:
        """Run `grid` programs on the current stream of the first tensor's device."""
        if grid == 0:
            return
        device = tensors[0].get_device()  # pyright: ignore[reportOptionalMemberAccess]
        if device >= 0 and device != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._launch(grid, device, tensors, numbers)
        else:
            self._launch(grid, device, tensors, numbers)

    def _launch(self, grid: int, device: int, tensors: Tensors, numbers: tuple) -> None:
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        aligned = tuple([address is None or address % 16 == 0 for address in addresses])
        key = (device, aligned, numbers)
        found = self.compiled.get(key)
        if found is None:
            # The interpreter compiles nothing and returns None.
            found = self.kernel[(grid,)](*tensors, *numbers, *self.constants, **self.options)
            if found is not None:
                self.compiled[key] = found
            return
        hooks = knobs.runtime
        stream = driver.active.get_current_stream(device)
        metadata = None
        if hooks.launch_enter_hook is not None:
            metadata = found.launch_metadata((grid, 1, 1), stream, *tensors, *numbers, *self.constants)
        found.run(
            grid,
            1,
            1,
            stream,
            found.function,
            found.packed_metadata,
            metadata,
            hooks.launch_enter_hook,
            hooks.launch_exit_hook,
            *addresses,
            *numbers,
            *self.constants,
        )

    def warmup(self, tensors: Tensors, numbers: tuple) -> Any:
        """The compiled kernel, without a launch."""
        return self.kernel.warmup(*tensors, *numbers, *self.constants, grid=(1,), **self.options)


def rows_aligned(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy of it where its last dimension is not contiguous, which every kernel asks for."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def spatial_strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of `[batch, *spatial, heads, dim]`: batch, three axes (0 where missing), heads."""
    batch, *axes, heads, _ = tensor.stride()
    return (batch, *(0,) * (3 - len(axes)), *axes, heads)


def is_wide(*tensors: Tensor | None) -> bool:
    """Whether an offset inside one batch entry of a tensor needs 64 bits."""
    return any(tensor is not None and _reach(tensor) > 2**31 - 1 for tensor in tensors)


def _reach(tensor: Tensor) -> int:
    pairs = zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
    return sum((extent - 1) * abs(stride) for extent, stride in pairs)
