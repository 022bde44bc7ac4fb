"""Tests of a framework are collected where it is installed; the report's first lines say what is left out."""

import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from shutil import which

import pytest
from hypothesis import settings

settings.register_profile("vicinal", deadline=None, print_blob=True)
settings.load_profile("vicinal")

# MLX rounds the factors of float32 products on NVIDIA GPUs to TF32, unless told not to; the budget does not.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

# Bytes of a GPU that a process may hold between tests.
KEPT = 1 << 30

has_torch = find_spec("torch") is not None
NEEDS = {
    "torch": ("PyTorch", has_torch),
    "compat": ("PyTorch", has_torch),
    "clients": ("PyTorch", has_torch),
    "triton": ("PyTorch", has_torch),
    "metal": (
        "PyTorch, and a Mac or clang 19",
        has_torch and (sys.platform == "darwin" or which("clang++-19")),
    ),
    "mlx": ("MLX", find_spec("mlx") is not None),
}
collect_ignore = [folder for folder, (_, is_here) in NEEDS.items() if not is_here]


def pytest_report_header() -> list[str]:
    """What is not tested here."""
    return [f"left out: tests/{folder}, which needs {NEEDS[folder][0]}" for folder in collect_ignore]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: no process begins one when the others have nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `cuda` is skipped where there is none; tests/metal has its own rule."""
    if item.get_closest_marker("cuda") is not None and not has_cuda():
        pytest.skip("needs cuda")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """What PyTorch would keep of a test goes back to the GPU, which tests of other processes use too."""
    if has_torch and item.get_closest_marker("cuda") is not None:
        import torch

        if torch.cuda.is_initialized() and torch.cuda.memory_reserved() > KEPT:
            torch.cuda.empty_cache()


@lru_cache
def has_cuda() -> bool:
    """Whether PyTorch or MLX finds an NVIDIA GPU."""
    if has_torch:
        import torch

        if torch.cuda.is_available():
            return True
    if find_spec("mlx") is None:
        return False
    import mlx.core as mx

    return mx.cuda.is_available()


@pytest.fixture
def blank_is_nan() -> Iterator[None]:
    """Tensors that PyTorch allocates without a value hold NaN: what a kernel does not write is seen."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of PyTorch's front end is the first of its geometry."""
    from vicinal.torch import known

    monkeypatch.setattr(known, "_known", {})
