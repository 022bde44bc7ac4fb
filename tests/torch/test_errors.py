"""Bad input: one clear error before anything is computed, with argument, value and way out."""

import numpy as np
import pytest
import torch

import vicinal.torch as na
from tests.errors import fails, fails_without_an_operand

Q = torch.zeros(2, 8, 6, 4, 16)
K = torch.zeros(2, 8, 6, 2, 16)


@pytest.mark.parametrize(
    ("window", "error", "message"),
    [
        (
            {"kernel_size": 9},
            ValueError,
            "kernel_size 9 is over the 8 tokens of axis 0; lower one of them or pad the input",
        ),
        (
            {"kernel_size": (3, 4), "dilation": 2},
            ValueError,
            "kernel_size 4 times dilation 2 is 8, over the 6 tokens of axis 1; lower one of them or pad the "
            "input",
        ),
        ({"kernel_size": 3, "stride": (1, 4)}, ValueError, "stride 4 is over kernel_size 3 on axis 1"),
        ({"kernel_size": 0}, ValueError, "kernel_size is 0 on axis 0; pass an integer of 1 or more"),
        (
            {"kernel_size": 3, "stride": -1},
            ValueError,
            "stride is -1 on axis 0; pass an integer of 1 or more",
        ),
        (
            {"kernel_size": 3, "dilation": (1, 0)},
            ValueError,
            "dilation is 0 on axis 1; pass an integer of 1 or more",
        ),
        (
            {"kernel_size": 3, "output_stride": 0},
            ValueError,
            "output_stride is 0 on axis 0; pass an integer of 1 or more",
        ),
        (
            {"kernel_size": True},
            TypeError,
            "kernel_size is True; each entry is an integer, this one is of type bool",
        ),
        (
            {"kernel_size": 3.0},
            TypeError,
            "kernel_size is 3.0; each entry is an integer, this one is of type float",
        ),
        (
            {"kernel_size": None},
            TypeError,
            "kernel_size is None; each entry is an integer, this one is of type NoneType",
        ),
        ({"kernel_size": 3, "is_causal": 1}, TypeError, "is_causal is 1; each entry is True or False"),
        (
            {"kernel_size": 3, "is_causal": (True, 0)},
            TypeError,
            "is_causal is (True, 0); each entry is True or False, this one is of type int",
        ),
        (
            {"kernel_size": 3, "is_causal": np.bool_(True)},
            TypeError,
            f"each entry is True or False, this one is of type numpy.{np.bool_.__name__}",
        ),
        (
            {"kernel_size": (3, 3, 3)},
            ValueError,
            "kernel_size (3, 3, 3) has 3 entries for 2 spatial axes; pass one, or one per axis",
        ),
        (
            {"kernel_size": 3, "output_stride": 2**31},
            ValueError,
            "output_stride is 2147483648 on axis 0; pass an integer of 2147483647 or less",
        ),
        ({"kernel_size": 3, "scale": True}, TypeError, "scale is True, of type bool; pass a float, or None"),
        ({"kernel_size": 3, "scale": "1"}, TypeError, "scale is '1', of type str; pass a float, or None"),
        (
            {"kernel_size": 3, "backend": "cuda"},
            ValueError,
            "backend 'cuda' is unknown; pass None or one of full",
        ),
        (
            {"kernel_size": 3, "backend": ["full"]},
            TypeError,
            "backend is ['full']; pass the name of a backend, or None",
        ),
    ],
    ids=str,
)
def test_window(window, error, message):
    fails(error, message, na.na2d, Q, K, K, **window)
    if "scale" not in window:
        weights = torch.zeros(2, 8, 6, 4, 9)
        fails(error, message, na.na2d_av, weights, K, **window)
    fails(error, message, na.na2d_qk, Q, K, **window)


@pytest.mark.parametrize(
    ("operands", "message"),
    [
        ((Q[0], K, K), "key [2, 8, 6, 2, 16] has 5 axes, query [8, 6, 4, 16] has 4; pass the same"),
        ((Q[:1], K, K), "key has batch 2, query has 1; expand one of them"),
        ((Q, K[:, :7], K[:, :7]), "key and value have spatial shape [7, 6], query has [8, 6]"),
        ((Q, K, K[:, :7]), "key [2, 8, 6, 2, 16] and value [2, 7, 6, 2, 16] differ before the last axis"),
        (
            (Q, K, K[:, :, :, :1]),
            "key [2, 8, 6, 2, 16] and value [2, 8, 6, 1, 16] differ before the last axis",
        ),
        ((Q[..., :3, :], K, K), "query has 3 heads, not a multiple of the 2 of key and value"),
        ((Q, K[..., :0, :], K[..., :0, :]), "query has 4 heads, not a multiple of the 0 of key and value"),
        ((Q[..., :8], K, K), "key has head dim 16, query has 8; only value's may differ"),
        (
            (Q[..., :0], K[..., :0], K),
            "query [2, 8, 6, 4, 0] has head dim 0; pass at least one element per head",
        ),
        (
            (Q[:, :0], K[:, :0], K[:, :0]),
            "axis 0 is empty: spatial shape [0, 6]; pass at least one token per axis",
        ),
        ((Q.double(), K, K), "key has dtype torch.float32, query has torch.float64; they must be the same"),
        ((Q, K.to("meta"), K), "key has device meta, query has cpu; they must be the same"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operands(operands, message):
    fails(ValueError, message, na.neighborhood_attention, *operands, 3)


def test_rank():
    takes = "query [2, 8, 6, 4, 16] has 5 axes; a 1-D operation takes 4, [batch, length, heads, dim]"
    message = f"{takes}; for this shape call"
    fails(ValueError, message, na.na1d, Q, K, K, 3)
    fails(ValueError, message, na.na1d_qk, query=Q, key=K, kernel_size=3)
    fails(
        ValueError,
        "a 2-D operation takes 5, [batch, height, width, heads, dim]",
        na.na2d,
        Q[0],
        K[0],
        K[0],
        3,
    )
    fails(ValueError, "takes 6, [batch, depth, height, width, heads, dim]", na.na3d, Q, K, K, 3)
    fails(
        ValueError,
        "attention_weights [2, 8, 6, 4, 9] has 5 axes; a 3-D",
        na.na3d_av,
        torch.zeros(2, 8, 6, 4, 9),
        K,
        3,
    )
    deep = torch.zeros(1, 2, 2, 2, 2, 1, 4)
    message = (
        "query [1, 2, 2, 2, 2, 1, 4] has 7 axes; pass [batch, *spatial, heads, dim] with 1 to 3 spatial axes"
    )
    fails(ValueError, message, na.neighborhood_attention, deep, deep, deep, 1)
    flat = torch.zeros(2, 4, 8)
    fails(ValueError, "query [2, 4, 8] has 3 axes", na.neighborhood_attention, flat, flat, flat, 1)


@pytest.mark.parametrize("place", range(3))
def test_nothing_for_an_operand(place):
    fails_without_an_operand(na, Q, K, place, "a tensor")


def test_kinds_of_tensor():
    fails(
        TypeError, "bias is a sparse_coo tensor", na.na2d, Q, K, K, 3, bias=torch.zeros(4, 5, 5).to_sparse()
    )
    fails(
        TypeError,
        "query has dtype torch.int64; pass float64, float32, float16 or bfloat16",
        na.na2d,
        *[Q.long()] * 3,
        3,
    )
    fails(TypeError, "query is of type list; pass a tensor", na.na2d, [1.0], K, K, 3)
    fails(
        TypeError,
        "key is a sparse_coo tensor; pass a dense one, such as key.to_dense()",
        na.na2d,
        Q,
        K.to_sparse(),
        K,
        3,
    )
    nested = torch.nested.nested_tensor([torch.zeros(3, 1, 4), torch.zeros(5, 1, 4)], layout=torch.jagged)
    fails(
        TypeError,
        "query is a nested tensor; pass a dense one",
        na.neighborhood_attention,
        nested,
        nested,
        nested,
        3,
    )


@pytest.mark.parametrize(
    ("bias", "error", "message"),
    [
        (
            torch.zeros(4, 5, 4),
            ValueError,
            "bias [4, 5, 4] must be [heads, *(2 * kernel_size - 1)], here [4, 5, 5]",
        ),
        (
            torch.zeros(2, 5, 5),
            ValueError,
            "bias [2, 5, 5] must be [heads, *(2 * kernel_size - 1)], here [4, 5, 5]",
        ),
        (torch.zeros(4, 5, 5).half(), ValueError, "bias dtype is torch.float16; pass torch.float32"),
        (
            torch.zeros(4, 5, 5).to("meta"),
            ValueError,
            "bias has device meta, query has cpu; they must be the same",
        ),
        (True, TypeError, "bias is of type bool; pass a tensor"),
    ],
    ids=str,
)
def test_bias(bias, error, message):
    fails(error, message, na.na2d, Q, K, K, 3, bias=bias)
    fails(error, message, na.na2d_qk, Q, K, 3, bias=bias)


def test_additional_tokens():
    extra = torch.zeros(2, 5, 2, 16)
    alone = "came alone; pass additional_keys and additional_values together, or neither"
    fails(ValueError, "additional_keys " + alone, na.na2d, Q, K, K, 3, additional_keys=extra)
    fails(ValueError, "additional_values " + alone, na.na2d, Q, K, K, 3, additional_values=extra)
    both = lambda k, v: {"additional_keys": k, "additional_values": v}  # noqa: E731
    fails(
        ValueError,
        "additional_keys [2, 5, 1, 16] must be [batch, tokens, kv_heads, dim] with the batch, heads and head "
        "dim of key: "
        "[2, tokens, 2, 16]",
        na.na2d,
        Q,
        K,
        K,
        3,
        **both(extra[:, :, :1], extra),
    )
    fails(
        ValueError, "additional_values [1, 5, 2, 16] must be", na.na2d, Q, K, K, 3, **both(extra, extra[:1])
    )
    fails(ValueError, "differ in tokens, 5 and 4", na.na2d, Q, K, K, 3, **both(extra, extra[:, :4]))
    fails(
        ValueError,
        "additional_keys has dtype torch.float64",
        na.na2d,
        Q,
        K,
        K,
        3,
        **both(extra.double(), extra),
    )
    weights = torch.zeros(2, 8, 6, 4, 14)
    fails(
        ValueError,
        "additional_values [2, 5, 16] must be",
        na.na2d_av,
        weights,
        K,
        3,
        additional_values=extra[:, :, 0],
    )
    fails(
        ValueError,
        "additional_values [2] must be",
        na.na2d_av,
        weights,
        K,
        3,
        additional_values=extra[:, 0, 0, 0],
    )


def test_weights():
    rule = "must be [batch, *spatial, heads, slots] = [2, 8, 6, heads, 9], for 9 keys a window"
    message = f"attention_weights [2, 8, 6, 4, 8] {rule}"
    fails(ValueError, message, na.na2d_av, torch.zeros(2, 8, 6, 4, 8), K, 3)
    fails(ValueError, "= [2, 4, 3, heads, 9]", na.na2d_av, torch.zeros(2, 8, 6, 4, 9), K, 3, output_stride=2)
    fails(
        ValueError,
        "attention_weights has 3 heads, not a multiple",
        na.na2d_av,
        torch.zeros(2, 8, 6, 3, 9),
        K,
        3,
    )


def test_scale_zero_is_a_scale():
    key, value = torch.randn(1, 5, 1, 4), torch.randn(1, 5, 1, 4)
    out = na.na1d(key, key, value, 5, scale=0.0)
    torch.testing.assert_close(out, value.mean(1, keepdim=True).expand_as(value))


def test_sequences_of_every_kind():
    expected = na.na2d(Q, K, K, 3)
    for size in (3, (3, 3), [3, 3], torch.Size((3, 3)), np.int64(3), (np.int32(3), 3)):
        assert na.na2d(Q, K, K, size).shape == expected.shape
