"""The table of PyTorch backends, in order of preference."""

from .base import Backend
from .blocked import BLOCKED
from .full import FULL
from .reference import REFERENCE

BACKENDS: tuple[Backend, ...] = (FULL, BLOCKED, REFERENCE)
