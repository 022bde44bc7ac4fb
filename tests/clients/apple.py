"""Where natten-mps and natten-mlx are compared with our names for them: odd windows, where they are right."""

import inspect

LENGTHS = {1: (11,), 2: (8, 9), 3: (6, 5, 7)}
FUNCTIONS = [f"na{rank}d{kind}" for rank in LENGTHS for kind in ("", "_qk", "_av", "_varlen")]
LAYERS = [f"NeighborhoodAttention{rank}D" for rank in LENGTHS]
WINDOWS = {
    "plain": {},
    "dilated": {"dilation": 1, "scale": 0.3},
    "strided": {"stride": 2},
    "causal": {"is_causal": True, "stride": 3},
}


def arguments(package, name):
    """Names and defaults of a function or layer."""
    return [(one.name, one.default) for one in inspect.signature(getattr(package, name)).parameters.values()]
