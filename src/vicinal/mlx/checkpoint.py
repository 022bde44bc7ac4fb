"""Weights from elsewhere."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from .. import arguments


def load_torch_state(module: nn.Module, state: Mapping[str, Any], strict: bool = True) -> nn.Module:
    """Load a PyTorch `state_dict` into an MLX module whose parameters have the same names and shapes.

    The layers here name their parameters as the PyTorch layers, NATTEN's from 0.17 on and natten-mlx's
    do: `qkv` (or `q_proj` and `kv_proj`), `proj`, `rpb`. Linear layers have one layout in both
    frameworks.

    Args:
        module: the module, changed in place.
        state: names to PyTorch tensors, NumPy arrays or MLX arrays. Dtypes are kept.
        strict: whether every parameter must be in `state`, and every entry of `state` a parameter.

    Returns:
        The module.

    Raises:
        TypeError: `state` is no mapping.
        ValueError: names or shapes do not fit.
    """
    arguments.instance("state", state, Mapping, "names to tensors, such as a module's state_dict()")
    module.load_weights([(name, _array(value)) for name, value in state.items()], strict=strict)
    return module


def _array(value: Any) -> mx.array:
    if isinstance(value, mx.array):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            # NumPy, which carries the numbers over, has no bfloat16.
            return mx.array(value.float().numpy()).astype(mx.bfloat16)
        value = value.numpy()
    return mx.array(value)
