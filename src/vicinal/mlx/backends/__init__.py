"""The table of MLX backends, in order of preference."""

from .base import Refusing
from .blocked import BLOCKED
from .cuda import CUDA
from .full import FULL
from .gathered import GATHERED
from .metal import METAL, METAL_PLAIN
from .reference import REFERENCE

BACKENDS: tuple[Refusing, ...] = (FULL, CUDA, METAL, METAL_PLAIN, GATHERED, BLOCKED, REFERENCE)
