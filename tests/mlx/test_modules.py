"""Layers: their parameters, that they are the functions they are made of, and that they learn."""

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn, optimizers
from mlx.utils import tree_flatten

import vicinal.mlx as na
from tests import budget
from tests.mlx import problems

LAYERS = {1: na.NeighborhoodAttention1D, 2: na.NeighborhoodAttention2D, 3: na.NeighborhoodAttention3D}
INPUT = {1: (2, 11, 24), 2: (2, 7, 6, 24), 3: (1, 4, 5, 6, 24)}
OPTIONS = {
    "plain": {},
    "window": {"stride": 2, "dilation": 1, "is_causal": True, "qk_scale": 0.3},
    "dilated": {"dilation": 2, "rel_pos_bias": True, "kernel_size": 2},
    "grouped": {"num_kv_heads": 2, "qkv_bias": False, "output_stride": 2},
}
each_rank = pytest.mark.parametrize("rank", LAYERS)
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def layer_of(rank, **options):
    mx.random.seed(0)
    return LAYERS[rank](24, 4, options.pop("kernel_size", 3), **options)


def shapes(layer):
    return {name: x.shape for name, x in tree_flatten(layer.parameters())}


@each_rank
@each_option
def test_layer_is_its_functions(rank, options):
    layer = layer_of(rank, **options)
    x = mx.random.normal(INPUT[rank])
    heads = lambda y, count: y.reshape(*y.shape[:-1], count, 6)  # noqa: E731
    if layer.num_kv_heads == 4:
        q, k, v = (heads(part, 4) for part in mx.split(layer.qkv(x), 3, -1))
    else:
        q = heads(layer.q_proj(x), 4)
        k, v = (heads(part, 2) for part in mx.split(layer.kv_proj(x), 2, -1))
    names = ("stride", "dilation", "is_causal", "output_stride")
    window = {name: options[name] for name in names if name in options}
    scale, size = options.get("qk_scale"), options.get("kernel_size", 3)
    out = na.neighborhood_attention(q, k, v, size, scale=scale, bias=layer.rpb, **window)
    assert problems.same([layer(x)], [layer.proj(out.flatten(-2))])


@each_rank
@each_option
def test_attention_dropout_keeps_everything_else(rank, options):
    """With a dropout that drops nothing, training is evaluation; with one that drops, the mean is."""
    layer = layer_of(rank, **options, attn_drop=1e-9)
    x = mx.random.normal(INPUT[rank])
    wanted = problems.array(layer.eval()(x))
    budget.check("out", problems.array(layer.train()(x)), wanted, "float32")
    layer.attn_drop = nn.Dropout(0.5)
    many = np.stack([problems.array(layer.train()(x)) for _ in range(200)])
    assert not np.array_equal(many[0], many[1])
    deviation = np.abs(many.mean(0) - wanted) / (many.std(0) / 200**0.5 + 1e-9)
    assert np.median(deviation) < 1.5


def test_parameters_are_those_of_natten_and_natten_mlx():
    """Names and shapes that NATTEN 0.20 and later, and natten-mlx, save."""
    assert shapes(na.NeighborhoodAttention2D(24, 4, 3)) == {
        "qkv.weight": (72, 24),
        "qkv.bias": (72,),
        "proj.weight": (24, 24),
        "proj.bias": (24,),
    }
    layer = na.NeighborhoodAttention2D(24, 4, (3, 5), num_kv_heads=2, qkv_bias=False, rel_pos_bias=True)
    assert shapes(layer) == {
        "rpb": (4, 5, 9),
        "q_proj.weight": (24, 24),
        "kv_proj.weight": (24, 24),
        "proj.weight": (24, 24),
        "proj.bias": (24,),
    }


def test_dropout_is_off_in_evaluation():
    layer = layer_of(2, attn_drop=0.5, proj_drop=0.5).eval()
    x = mx.random.normal(INPUT[2])
    assert problems.same([layer(x)], [layer(x)])
    assert not problems.same([layer.train()(x)], [layer.eval()(x)])


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_layers(dtype):
    layer = layer_of(2, rel_pos_bias=True)
    x = mx.random.normal(INPUT[2])
    wanted = layer(x)
    layer.set_dtype(dtype)
    out = layer(x.astype(dtype))
    assert out.dtype == dtype
    assert mx.abs(out.astype(mx.float32) - wanted).max() < 0.05


def test_saved_weights_load(tmp_path):
    layer, other = layer_of(2, rel_pos_bias=True), LAYERS[2](24, 4, 3, rel_pos_bias=True)
    layer.save_weights(str(tmp_path / "weights.safetensors"))
    other.load_weights(str(tmp_path / "weights.safetensors"))
    x = mx.random.normal(INPUT[2])
    assert problems.same([layer(x)], [other(x)])


def test_a_layer_trains_compiled():
    """State in, state out: the way MLX training loops are written."""
    layer = layer_of(2, rel_pos_bias=True)
    optimizer = optimizers.Adam(1e-2)
    x, y = mx.random.normal(INPUT[2]), mx.random.normal(INPUT[2])
    step_loss = nn.value_and_grad(layer, lambda: (layer(x) - y).square().mean())
    state = [layer.state, optimizer.state]

    def step():
        loss, grads = step_loss()
        optimizer.update(layer, grads)
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)
    losses = [compiled().item() for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
