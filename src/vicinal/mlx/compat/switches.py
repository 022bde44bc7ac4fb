"""The context of NATTEN: `vicinal.compat.eras` keeps it, MLX knows the GPU."""

import mlx.core as mx

from vicinal.compat.eras import switches, tuning
from vicinal.compat.eras.switches import *  # noqa: F403
from vicinal.compat.eras.tuning import *  # noqa: F403

__all__ = ["has_cuda"]
__all__ += switches.__all__
__all__ += tuning.__all__


def has_cuda() -> bool:
    """Whether there is an NVIDIA GPU."""
    return mx.cuda.is_available()
