"""The table of MLX backends, in order of preference."""

from .base import Transparent
from .blocked import BLOCKED
from .full import FULL
from .gathered import GATHERED
from .reference import REFERENCE

BACKENDS: tuple[Transparent, ...] = (FULL, GATHERED, BLOCKED, REFERENCE)
