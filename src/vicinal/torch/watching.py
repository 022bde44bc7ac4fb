"""Who sees a call besides its caller: recording, transforms, modes, traces, a compiler, a profiler; or casts.

Where nobody does, a call may skip PyTorch's dispatcher, which takes longer than a small kernel.
"""

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch._C._autograd import _profiler_enabled
from torch.autograd import forward_ad

# A subclass may want to see the operators that it is given to.
PLAIN = Tensor, torch.nn.Parameter


def is_transformed() -> bool:
    """Whether forward mode or a transform of `torch.func` is at work."""
    return forward_ad._current_level >= 0 or _are_functorch_transforms_active()


def is_recorded(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def is_watched() -> bool:
    """Whether anything but the recording of gradients sees a call of plain tensors."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._get_tracing_state() is not None
        or _profiler_enabled()
        or is_transformed()
    )


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast wants on `device` here, if any."""
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
