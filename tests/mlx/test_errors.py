"""Bad input: one clear error before anything is computed, with argument, value and way out."""

import mlx.core as mx
import numpy as np
import pytest

import vicinal.mlx as na
from tests.errors import fails, fails_without_an_operand

Q = mx.zeros((2, 8, 6, 4, 16))
K = mx.zeros((2, 8, 6, 2, 16))


@pytest.mark.parametrize(
    ("window", "error", "message"),
    [
        ({"kernel_size": 9}, ValueError, "kernel_size 9 is over the 8 tokens of axis 0; lower one of them"),
        ({"kernel_size": 3, "stride": (1, 4)}, ValueError, "stride 4 is over kernel_size 3 on axis 1"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size (3, 3, 3) has 3 entries for 2 spatial axes"),
        ({"kernel_size": 3.0}, TypeError, "kernel_size is 3.0; each entry is an integer"),
        ({"kernel_size": 3, "is_causal": 1}, TypeError, "is_causal is 1; each entry is True or False"),
        ({"kernel_size": 3, "scale": True}, TypeError, "scale is True, of type bool"),
        (
            {"kernel_size": 3, "backend": ["full"]},
            TypeError,
            "backend is ['full']; pass the name of a backend",
        ),
    ],
)
def test_windows(window, error, message):
    fails(error, message, na.neighborhood_attention, Q, K, K, **window)
    fails(error, message, na.qk, Q, K, **window)


def test_operands():
    call = na.neighborhood_attention
    fails(TypeError, "key is of type numpy.ndarray; pass an mlx.core.array", call, Q, np.zeros(3), K, 3)
    # A GPU of MLX has no float64.
    wide = mx.zeros(K.shape, mx.float64, stream=mx.cpu)
    fails(TypeError, "query has dtype mlx.core.float64; pass float32", call, wide, wide, wide, 3)
    half = K.astype(mx.float16)
    fails(ValueError, "key has dtype mlx.core.float16, query has mlx.core.float32", call, Q, half, K, 3)
    fails(
        ValueError,
        "query has 4 heads, not a multiple of the 3",
        call,
        Q,
        *[mx.zeros((2, 8, 6, 3, 16))] * 2,
        3,
    )
    fails(
        ValueError,
        "query [2, 8] has 2 axes; pass [batch, *spatial, heads, dim]",
        call,
        Q[:, :, 0, 0, 0],
        K,
        K,
        3,
    )
    fails(ValueError, "additional_keys came alone", call, Q, K, K, 3, additional_keys=mx.zeros((2, 1, 2, 16)))
    bias = mx.zeros((4, 5, 5))
    fails(
        ValueError,
        "bias [4, 5, 5] must be [heads, *(2 * kernel_size - 1)], here [4, 5, 9]",
        call,
        Q,
        K,
        K,
        (3, 5),
        bias=bias,
    )
    fails(TypeError, "bias is of type list; pass an mlx.core.array", call, Q, K, K, 3, bias=[1])
    fails(ValueError, "bias dtype is mlx.core.float16", call, Q, K, K, 3, bias=bias.astype(mx.float16))


@pytest.mark.parametrize("place", range(3))
def test_nothing_for_an_operand(place):
    fails_without_an_operand(na, Q, K, place, "an mlx.core.array")


def test_nothing_to_a_head():
    fails(ValueError, "value [2, 8, 6, 2, 0] has head dim 0", na.na2d, Q, K, K[..., :0], 3)
    flat = mx.zeros((1, 4, 2, 8))
    fails(ValueError, "query [1, 4, 2, 0] has head dim 0", na.attention, flat[..., :0], flat[..., :0], flat)
    weights, extra = mx.zeros((2, 8, 6, 4, 9)), mx.zeros((2,))
    fails(ValueError, "additional_values [2] must be", na.na2d_av, weights, K, 3, additional_values=extra)


def test_integers_of_another_library():
    out = na.na2d(Q, K, K, np.int64(3), dilation=(np.int32(2), 1))
    assert out.shape == Q.shape


def test_ranks_and_weights():
    fails(
        ValueError,
        "a 1-D operation takes 4, [batch, length, heads, dim]; for this shape call the 2-D",
        na.na1d,
        Q,
        K,
        K,
        3,
    )
    fails(
        ValueError,
        "attention_weights [2, 8, 6, 4, 9] has 5 axes; a 3-D operation",
        na.na3d_av,
        mx.zeros((2, 8, 6, 4, 9)),
        K,
        3,
    )
    fails(
        ValueError, "attention_weights [2, 8, 6, 4, 8] must be", na.na2d_av, mx.zeros((2, 8, 6, 4, 8)), K, 3
    )
    assert na.na2d(Q, K, K, 3).shape == Q.shape
    assert na.na2d.__name__ == "na2d"
    assert na.na2d.__module__ == "vicinal.mlx"
    assert na.na2d.__doc__.startswith("2-D only. ")


def test_dense_and_merge():
    fails(ValueError, "dense attention takes [batch, tokens, heads, dim]", na.attention, Q, K, K)
    flat = mx.zeros((1, 4, 2, 8))
    fails(TypeError, "is_causal is 1; dense attention takes True or False", na.attention, flat, flat, flat, 1)
    fails(ValueError, "0 outputs and 0 log-sum-exps; pass one of each", na.merge_attentions, [], [])
    lse = mx.zeros((1, 4, 2))
    fails(TypeError, "output 0 is of type list; pass an mlx.core.array", na.merge_attentions, [[]], [lse])
    message = "outputs is of type mlx.core.array; pass a list with one for every part"
    fails(TypeError, message, na.merge_attentions, flat, lse)
    whole = flat.astype(mx.int32)
    fails(TypeError, "output 0 has dtype mlx.core.int32; pass float32,", na.merge_attentions, [whole], [lse])
    parts = ([flat, flat.astype(mx.float16)], [lse, lse])
    fails(ValueError, "output 1 has dtype mlx.core.float16", na.merge_attentions, *parts)


def test_layers():
    layer = na.NeighborhoodAttention2D
    fails(ValueError, "embed_dim 30 is not a multiple of num_heads 4", layer, 30, 4, 3)
    fails(ValueError, "proj_drop is -0.5; pass a number from 0 to 1", layer, 32, 4, 3, proj_drop=-0.5)
    fails(TypeError, "input is of type int; pass an mlx.core.array", layer(32, 4, 3), 3)
    fails(ValueError, "num_heads 4 is not a multiple of num_kv_heads 3", layer, 32, 4, 3, num_kv_heads=3)
    fails(
        ValueError,
        "input [2, 8, 32] must be [batch, height, width, 32]",
        layer(32, 4, 3),
        mx.zeros((2, 8, 32)),
    )
