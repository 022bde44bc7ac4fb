"""Queries and keys in float8: what is taken, and what is refused, without a GPU that multiplies them."""

import pytest
import torch

from vicinal import UnsupportedProblem
from vicinal.torch import na1d, qk

FLOAT8 = torch.float8_e4m3fn


def operands(dtype=torch.bfloat16):
    query, key = (torch.randn(1, 64, 2, 32).to(FLOAT8) for _ in range(2))
    return query, key, torch.randn(1, 64, 2, 32).to(dtype)


@pytest.mark.parametrize(("backend", "size"), [("reference", 15), ("blocked", 15), ("full", 64)])
def test_other_backends_say_that_they_take_one_dtype(backend, size):
    with pytest.raises(UnsupportedProblem, match="takes queries and keys in the dtype of values alone"):
        na1d(*operands(), size, backend=backend)


def test_no_backend_takes_them_on_a_cpu():
    with pytest.raises(UnsupportedProblem, match="float8_e4m3fn with bfloat16"):
        na1d(*operands(), 15)


def test_gradients_are_refused():
    query, key, value = operands()
    with pytest.raises(UnsupportedProblem, match="with gradients"):
        na1d(query, key, value.requires_grad_(), 15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, FLOAT8])
def test_values_are_of_16_bits(dtype):
    with pytest.raises(TypeError, match=r"value has dtype torch\..*pass float16 or bfloat16"):
        na1d(*operands(dtype), 15)


def test_queries_and_keys_share_a_dtype():
    query, key, value = operands()
    with pytest.raises(ValueError, match="key has dtype"):
        na1d(query, key.to(torch.bfloat16), value, 15)
    with pytest.raises(ValueError, match="key has dtype"):
        na1d(query.to(torch.bfloat16), key, value, 15)


def test_bias_and_additional_tokens_have_a_way_out():
    query, key, value = operands()
    with pytest.raises(ValueError, match="bias does not go with a float8 query; pass None"):
        na1d(query, key, value, 15, bias=torch.zeros(2, 29))
    with pytest.raises(ValueError, match="additional_keys does not go"):
        na1d(query, key, value, 15, additional_keys=key[:, :3], additional_values=value[:, :3])


def test_split_operations_have_no_float8():
    query, key, _ = operands()
    with pytest.raises(TypeError, match=r"query has dtype torch\.float8_e4m3fn; pass float64"):
        qk(query, key, 15)
