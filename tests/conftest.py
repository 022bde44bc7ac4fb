"""Tests of a framework are collected where it is installed; the report's first lines say what is left out."""

import sys
from importlib.util import find_spec
from shutil import which

from hypothesis import settings

settings.register_profile("vicinal", deadline=None, print_blob=True)
settings.load_profile("vicinal")

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
