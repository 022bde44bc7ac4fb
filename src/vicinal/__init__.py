"""Neighborhood attention for PyTorch and MLX anywhere: `import vicinal.torch` or `import vicinal.mlx`."""

from .dispatch import UnsupportedProblem
from .problem import Problem
from .settings import using
from .window import Axis

__all__ = ["Axis", "Problem", "UnsupportedProblem", "__version__", "using"]
__version__ = "0.1.0"
