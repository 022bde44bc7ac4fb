"""Metal Shading Language compute kernels on the CPU: compiled, run, checked and counted, without a Mac."""

from .build import MSLError
from .library import FORWARD, ORDERS, RANDOM, REVERSE, Finding, Library, Result
from .lint import lint

__all__ = ["FORWARD", "ORDERS", "RANDOM", "REVERSE", "Finding", "Library", "MSLError", "Result", "lint"]
