"""Layers: their parameters, and that they are the functions they are made of."""

import io

import pytest
import torch

import vicinal.torch as na
from tests.errors import fails

LAYERS = {1: na.NeighborhoodAttention1D, 2: na.NeighborhoodAttention2D, 3: na.NeighborhoodAttention3D}
INPUT = {1: (2, 11, 24), 2: (2, 7, 6, 24), 3: (1, 4, 5, 6, 24)}
OPTIONS = {
    "plain": {},
    "window": {"stride": 2, "dilation": 1, "is_causal": True, "qk_scale": 0.3},
    "dilated": {"dilation": 2, "rel_pos_bias": True, "kernel_size": 2},
    "grouped": {"num_kv_heads": 2, "qkv_bias": False, "output_stride": 2},
}


def layer_of(rank, **options):
    torch.manual_seed(0)
    return LAYERS[rank](24, 4, options.pop("kernel_size", 3), **options).double()


@pytest.mark.parametrize("rank", LAYERS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_layer_is_its_functions(rank, options):
    layer = layer_of(rank, **options)
    x = torch.randn(INPUT[rank], dtype=torch.float64)
    if layer.num_kv_heads == 4:
        q, k, v = layer.qkv(x).unflatten(-1, (3, 4, 6)).unbind(-3)
    else:
        q = layer.q_proj(x).unflatten(-1, (4, 6))
        k, v = layer.kv_proj(x).unflatten(-1, (2, 2, 6)).unbind(-3)
    window = {
        name: options[name]
        for name in ("stride", "dilation", "is_causal", "output_stride")
        if name in options
    }
    scale, size = options.get("qk_scale"), options.get("kernel_size", 3)
    want = layer.proj(
        na.neighborhood_attention(q, k, v, size, scale=scale, bias=layer.rpb, **window).flatten(-2)
    )
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("rank", LAYERS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attention_dropout_keeps_everything_else(rank, options):
    """With a dropout that drops nothing, training is evaluation; with one that drops, the mean is."""
    layer = layer_of(rank, **options, attn_drop=1e-12)
    x = torch.randn(INPUT[rank], dtype=torch.float64)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))
    layer.attn_drop.p = 0.5
    with torch.no_grad():
        many = torch.stack([layer.train()(x) for _ in range(200)])
    assert not torch.equal(many[0], many[1])
    deviation = (many.mean(0) - layer.eval()(x)).abs() / (many.std(0) / 200**0.5 + 1e-9)
    assert deviation.median() < 1.5


def test_parameters_are_those_of_natten():
    """Names and shapes that NATTEN 0.20 and later save."""
    shapes = {name: tuple(x.shape) for name, x in na.NeighborhoodAttention2D(24, 4, 3).state_dict().items()}
    assert shapes == {"qkv.weight": (72, 24), "qkv.bias": (72,), "proj.weight": (24, 24), "proj.bias": (24,)}
    layer = na.NeighborhoodAttention2D(24, 4, (3, 5), num_kv_heads=2, qkv_bias=False, rel_pos_bias=True)
    shapes = {name: tuple(x.shape) for name, x in layer.state_dict().items()}
    assert shapes == {
        "rpb": (4, 5, 9),
        "q_proj.weight": (24, 24),
        "kv_proj.weight": (24, 24),
        "proj.weight": (24, 24),
        "proj.bias": (24,),
    }


def test_state_travels_and_dropout_is_off_in_evaluation():
    layer, other = layer_of(2, attn_drop=0.5, proj_drop=0.5), layer_of(2)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    x = torch.randn(INPUT[2], dtype=torch.float64)
    torch.testing.assert_close(layer.eval()(x), other(x))


def test_learns():
    """A layer fits a target that its own window can express."""
    torch.manual_seed(0)
    layer = na.NeighborhoodAttention1D(8, 2, 3, rel_pos_bias=True)
    x = torch.randn(16, 12, 8)
    target = x.roll(1, 1)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = (layer(x) - target)[:, 1:-1].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert layer.rpb.grad.abs().sum() > 0


def test_repr_says_the_window():
    text = repr(na.NeighborhoodAttention3D(24, 4, (1, 3, 3), is_causal=(True, False, False), num_kv_heads=1))
    assert "4 heads over 1, kernel_size=(1, 3, 3), stride=(1, 1, 1)" in text
    assert "is_causal=(True, False, False)" in text


def test_bad_arguments():
    fails(
        ValueError,
        "embed_dim 30 is not a multiple of num_heads 4; change one of them",
        na.NeighborhoodAttention2D,
        30,
        4,
        3,
    )
    fails(
        ValueError,
        "num_heads 4 is not a multiple of num_kv_heads 3; change one of them",
        na.NeighborhoodAttention2D,
        32,
        4,
        3,
        num_kv_heads=3,
    )
    fails(
        ValueError,
        "num_heads is 0 on axis 0; pass an integer of 1 or more",
        na.NeighborhoodAttention1D,
        32,
        0,
        3,
    )
    fails(
        ValueError,
        "attn_drop is 1.5; pass a number from 0 to 1",
        na.NeighborhoodAttention1D,
        32,
        4,
        3,
        attn_drop=1.5,
    )
    fails(TypeError, "proj_drop is '0', of type str", na.NeighborhoodAttention1D, 32, 4, 3, proj_drop="0")
    fails(ValueError, "stride 4 is over kernel_size 3 on axis 0", na.NeighborhoodAttention1D, 32, 4, 3, 4)
    fails(
        ValueError,
        "kernel_size (3, 3) has 2 entries for 3 spatial axes",
        na.NeighborhoodAttention3D,
        32,
        4,
        (3, 3),
    )
    layer = na.NeighborhoodAttention2D(32, 4, 3)
    fails(TypeError, "input is of type list; pass a tensor", layer, [0.0])
    fails(
        ValueError,
        "input [1, 8, 32] must be [batch, height, width, 32], channels last",
        layer,
        torch.zeros(1, 8, 32),
    )
    fails(
        ValueError, "input [1, 32, 8, 8] must be [batch, height, width, 32]", layer, torch.zeros(1, 32, 8, 8)
    )
    fails(ValueError, "kernel_size 3 is over the 2 tokens of axis 1", layer, torch.zeros(1, 8, 2, 32))
