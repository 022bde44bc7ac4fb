"""What `natten.utils` checks of additional tokens, and makes for weights."""

from torch import Tensor


def check_additional_keys(input_tensor: Tensor, additional_keys: Tensor | None) -> int:
    """Number of additional tokens of a heads-first input."""
    if additional_keys is None:
        return 0
    batch, heads, *_, dim = input_tensor.shape
    _like("additional_keys", additional_keys, (batch, heads, dim), input_tensor)
    return additional_keys.shape[2]


def check_additional_values(
    attn_tensor: Tensor, additional_values: Tensor | None, value: Tensor, expected_attn_weights: int
) -> int:
    """Number of additional tokens of heads-first weights, `expected_attn_weights` of them before theirs."""
    if additional_values is None:
        return 0
    batch, heads, *_, dim = value.shape
    _like("additional_values", additional_values, (batch, heads, dim), value)
    tokens = additional_values.shape[2]
    if attn_tensor.shape[-1] != expected_attn_weights + tokens:
        raise ValueError(
            f"attn has {attn_tensor.shape[-1]} weights; a window of {expected_attn_weights} and {tokens} "
            f"additional tokens need {expected_attn_weights + tokens}"
        )
    return tokens


def _like(name: str, tensor: Tensor, wanted: tuple, like: Tensor) -> None:
    shape, dtype, device = tuple(tensor.shape), like.dtype, like.device
    if (
        len(shape) != 4
        or (*shape[:2], shape[3]) != wanted
        or tensor.dtype != dtype
        or tensor.device != device
    ):
        raise ValueError(
            f"{name} is {list(shape)} {tensor.dtype} on {tensor.device}; pass "
            f"[{wanted[0]}, {wanted[1]}, tokens, {wanted[2]}] {dtype} on {device}"
        )


def make_attn_tensor_from_input(input_tensor: Tensor, attention_dim: int) -> Tensor:
    """An empty tensor of weights for a heads-first input."""
    return input_tensor.new_empty((*input_tensor.shape[:-1], attention_dim))
