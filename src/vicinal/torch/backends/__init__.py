"""The table of PyTorch backends, in order of preference."""

from .base import Backend
from .blocked import BLOCKED
from .full import FULL
from .hopper import HOPPER
from .metal import METAL, METAL_PLAIN
from .reference import REFERENCE
from .triton import TRITON

BACKENDS: tuple[Backend, ...] = (FULL, HOPPER, TRITON, METAL, METAL_PLAIN, BLOCKED, REFERENCE)
