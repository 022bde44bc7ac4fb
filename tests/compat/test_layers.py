"""Layers of each era: constructors, parameters, padding, attributes that clients read."""

import copy
import pickle

import pytest
import torch

import vicinal.torch as na
from vicinal.torch.compat import natten_mps, v014, v015, v017, v020

INPUT = {1: (2, 9, 12), 2: (2, 7, 8, 12), 3: (2, 5, 6, 7, 12)}


def layer(era, rank, *args, **kwargs):
    torch.manual_seed(0)
    return getattr(era, f"NeighborhoodAttention{rank}D")(*args, **kwargs).double()


def modern(rank, like, *args, **kwargs):
    """The public layer with the parameters of `like`."""
    twin = getattr(na, f"NeighborhoodAttention{rank}D")(*args, **kwargs).double()
    twin.load_state_dict(like.state_dict())
    return twin


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("era", [v014, v015], ids=["v014", "v015"])
@pytest.mark.parametrize("rank", [1, 2])
def test_bias_is_on_until_0_15(era, rank):
    ours = layer(era, rank, 12, 3, 3, 2, True, True, 0.7, 0.0, 0.0)
    assert ours.rpb.shape == (3, *[5] * rank)
    assert ours.rpb.abs().max() < 0.2
    twin = modern(rank, ours, 12, 3, 3, dilation=2, qk_scale=0.7, rel_pos_bias=True)
    x = draw(*INPUT[rank])
    assert torch.equal(ours(x), twin(x))
    assert layer(era, rank, 12, 3, 3, bias=False).rpb is None


def test_bias_is_off_in_0_17():
    for rank in (1, 2, 3):
        size = [3, 2, 2][:rank]
        ours = layer(v017, rank, 12, 3, size, None, None)
        assert "rpb" not in ours.state_dict()
        twin = modern(rank, ours, 12, 3, size)
        x = draw(*INPUT[rank])
        assert torch.equal(ours(x), twin(x))
        biased = layer(v017, rank, 12, 3, size, rel_pos_bias=True)
        assert biased.rpb.shape == (3, *(2 * n - 1 for n in size))


def test_0_17_refuses_causal_bias():
    with pytest.raises(NotImplementedError, match="relative position bias"):
        v017.NeighborhoodAttention2D(12, 3, 3, is_causal=(False, True), rel_pos_bias=True)
    v017.NeighborhoodAttention2D(12, 3, 3, is_causal=(False, False), rel_pos_bias=True)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_0_21(rank):
    size, stride, causal = [5, 3, 3][:rank], [2, 1, 3][:rank], (True, False, False)[:rank]
    ours = layer(v020, rank, 12, 3, size, stride, 1, causal, False, 0.7, 0.0)
    assert ours.qkv.bias is None
    assert (ours.na_dim, ours.embed_dim, ours.num_heads, ours.head_dim, ours.scale) == (rank, 12, 3, 4, 0.7)
    twin = modern(rank, ours, 12, 3, size, stride, is_causal=causal, qkv_bias=False, qk_scale=0.7)
    x = draw(*INPUT[rank])
    assert torch.equal(ours(x), twin(x))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("short", ["every axis", "one axis"])
def test_small_inputs_are_padded(rank, short):
    """Zeros at the end, before the projections: they are keys, of the projections' bias."""
    ours = layer(v015, rank, 12, 3, 3, dilation=2)
    lengths = [4] * rank if short == "every axis" else [5, 7, 8][:rank]
    x = draw(2, *lengths, 12).requires_grad_()
    full = torch.zeros(2, *(max(6, length) for length in lengths), 12, dtype=torch.float64)
    cut = (slice(None), *map(slice, lengths))
    full[cut] = x.detach()
    twin = modern(rank, ours, 12, 3, 3, dilation=2, rel_pos_bias=True)
    out = ours(x)
    assert torch.equal(out, twin(full)[cut])
    out.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_0_17_does_not_pad():
    with pytest.raises(ValueError, match="over the 2 tokens"):
        layer(v017, 1, 12, 3, 3)(draw(1, 2, 12))


def test_depth_has_its_own_window_in_0_15():
    ours = layer(v015, 3, 12, 3, 3, 5, 2, 1)
    attributes = ("kernel_size", "kernel_size_d", "dilation", "dilation_d", "window_size", "window_size_d")
    assert tuple(getattr(ours, name) for name in attributes) == (3, 5, 2, 1, 6, 5)
    twin = modern(3, ours, 12, 3, (5, 3, 3), dilation=(1, 2, 2), rel_pos_bias=True)
    x = draw(1, 5, 6, 7, 12)
    assert torch.equal(ours(x), twin(x))
    small = ours(draw(1, 2, 3, 4, 12))
    assert small.shape == (1, 2, 3, 4, 12)


def test_attributes():
    old = layer(v014, 2, 12, 3, kernel_size=3, dilation=None)
    assert (old.kernel_size, old.dilation, old.window_size, old.num_heads, old.head_dim) == (3, 1, 3, 3, 4)
    assert old.dilation * (old.kernel_size - 1) == 2
    newer = layer(v017, 2, 12, 3, kernel_size=[3, 5], dilation=None, attn_drop=0.25)
    assert (newer.kernel_size, newer.dilation, newer.is_causal) == ((3, 5), (1, 1), (False, False))
    assert (newer.attn_drop_rate, newer.use_experimental_ops) == (0.25, False)
    strided = layer(natten_mps, 2, 12, 3, 3, 2)
    assert strided.stride == (2, 2)


@pytest.mark.parametrize("era", [v014, v015, v017, v020, natten_mps], ids=lambda era: era.__name__)
def test_layers_copy_pickle_and_print(era):
    ours = layer(era, 2, 12, 3, 3)
    x = draw(*INPUT[2])
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(x), ours(x))
    assert "3 heads" in repr(ours)


@pytest.mark.parametrize("era", [v014, v015, v017, natten_mps], ids=lambda era: era.__name__)
def test_dropout_of_weights_keeps_the_window(era):
    """At a rate of nearly nothing, dropout in training gives what evaluation gives."""
    ours = layer(era, 2, 12, 3, 3, dilation=2, attn_drop=1e-12)
    x = draw(*INPUT[2])
    assert torch.allclose(ours.train()(x), ours.eval()(x), atol=1e-10)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_natten_mps_padded_batches(rank, stride):
    ours = layer(natten_mps, rank, 12, 4, 3, stride, 1, False, 2)
    lengths = INPUT[rank][1:-1]
    x = draw(2, *lengths, 12)
    sizes = torch.tensor([lengths, [length - 2 for length in lengths]])
    out = ours(x, sizes[:, 0] if rank == 1 else sizes)
    twin = modern(rank, ours, 12, 4, 3, num_kv_heads=2, output_stride=stride)
    whole = twin(x[:1])
    assert torch.allclose(out[:1], whole, atol=1e-12)
    part = twin(x[1:][(slice(None), *map(slice, sizes[1].tolist()))])
    cut = (slice(None), *map(slice, part.shape[1:-1]))
    assert torch.allclose(out[1:][cut], part, atol=1e-12)
    rest = out[1:].clone()
    rest[cut] = 0
    assert not rest.any()


@pytest.mark.parametrize("era", [v014, v015, v017, v020, natten_mps], ids=lambda era: era.__name__)
def test_layers_compile(era):
    """In one graph; those of 0.14 and 0.15 with an input that they pad."""
    ours = layer(era, 2, 12, 3, 5, 1)
    x = draw(2, 4, 8, 12) if era in (v014, v015) else draw(*INPUT[2])
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), ours(x), atol=1e-10)
