"""Stands in for a GPU: kernels are compiled for it, and their launches go to a function of Python's.

All that the host does in a call then runs without a GPU, on tensors of the CPU that nobody computes.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tests.triton import offline
from vicinal.torch.backends.hopper import Hopper
from vicinal.torch.backends.triton import Triton
from vicinal.triton import support


def wrapped(launcher: Callable[..., None]) -> Callable[..., None]:
    """As Triton's, which makes tensor maps in a wrapper, and calls what it finds under this name."""

    def launch(*arguments: Any) -> None:
        launcher(*arguments)

    return launch


def install(launched: Callable[..., None]) -> None:
    """Make the stand-in Triton's device and the backends take tensors of the CPU.

    `launched` takes what Triton's function in C takes.
    """

    class Launcher:
        """Launches of releases whose wrapper of that function the package does not know."""

        def __init__(self, *_):
            pass

        def __call__(self, *arguments):
            launched(*arguments)

    class CudaLauncher:
        """By the name and with the attributes of Triton's own."""

        global_scratch_size = profile_scratch_size = 0
        launch_cooperative_grid = launch_pdl = False

        def __init__(self, _source, metadata):
            self.launch = wrapped(launched) if metadata.tensordesc_meta else launched

        def __call__(self, x, y, z, stream, function, *arguments):
            self.launch(x, y, z, stream, function, False, False, None, None, *arguments)

    class Device(offline.AbsentDevice):
        launcher_cls: Any = CudaLauncher if support.installed() == support.GLUON else Launcher
        utils = SimpleNamespace(
            load_binary=lambda *_: (1, 2, 32, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": 232448},
            fill_tma_descriptor=lambda *numbers: numbers,
        )

    driver.set_active(Device(GPUTarget("cuda", 90, 32)))
    torch.cuda.current_device = lambda: -1
    if support.installed() == support.GLUON:
        from vicinal.triton import hopper_launch

        counter = torch.zeros(1, dtype=torch.int32)
        hopper_launch._counter, hopper_launch._multiprocessors = lambda _: counter, lambda _: 132
    Triton.refusal = Hopper.refusal = lambda self, problem: None
