"""Layers of older names on MLX, and what stands around operations: packages, versions, switches."""

import copy
import importlib
from importlib import metadata

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import vicinal.compat
import vicinal.mlx as na
from tests import budget
from vicinal.mlx import compat
from vicinal.mlx.compat import natten_mlx, switches, v014, v015, v017, v020

torch = pytest.importorskip("torch")

from vicinal.torch import compat as other  # noqa: E402

LENGTHS = {1: (11,), 2: (7, 8), 3: (6, 6, 6)}
RANKS = pytest.mark.parametrize("rank", [1, 2, 3])

LAYERS = {
    "v014": ((12, 3, 3, None), {"dim": 12, "num_heads": 3, "kernel_size": 3, "bias": False}),
    "v015": ((12, 3, 3), {"dim": 12, "num_heads": 3, "kernel_size": 3, "dilation": 2}),
    "v017": ((12, 3, 3, None, None), {"dim": 12, "num_heads": 3, "kernel_size": 3, "rel_pos_bias": True}),
    "v020": ((12, 3, 3, 2), {"embed_dim": 12, "num_heads": 3, "kernel_size": 3, "dilation": None}),
    "natten_mlx": ((12, 3, 4, 2), {"embed_dim": 12, "num_heads": 3, "kernel_size": 3, "num_kv_heads": 1}),
}


def twins(era, rank, *args, **kwargs):
    """The layer of MLX and that of PyTorch, with the same parameters."""
    eras = (getattr(compat, era), getattr(other, era.replace("mlx", "mps")))
    mine, theirs = (getattr(module, f"NeighborhoodAttention{rank}D")(*args, **kwargs) for module in eras)
    return na.load_torch_state(mine, theirs.state_dict()), theirs


@RANKS
@pytest.mark.parametrize("era", LAYERS)
@pytest.mark.parametrize("how", [0, 1], ids=["by place", "by name"])
def test_layers(era, rank, how):
    if era == "v014" and rank == 3:
        assert not hasattr(v014, "NeighborhoodAttention3D")
        return
    given = LAYERS[era][how]
    args, kwargs = ((), given) if how else (given, {})
    mine, theirs = twins(era, rank, *args, **kwargs)
    assert set(dict(tree_flatten(mine.parameters()))) == set(theirs.state_dict())
    x = np.random.default_rng(0).standard_normal((2, *LENGTHS[rank], 12)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs.double()(torch.tensor(x, dtype=torch.float64))
    budget.check("out", np.array(mine(mx.array(x))), wanted.numpy(), "float32")
    assert mx.array_equal(copy.deepcopy(mine)(mx.array(x)), mine(mx.array(x)))


@RANKS
@pytest.mark.parametrize("lengths", [(4, 4, 4), (5, 7, 8)], ids=["every axis", "one axis"])
def test_small_inputs_are_padded(rank, lengths):
    mine, theirs = twins("v015", rank, 12, 3, 3, dilation=2)
    x = np.random.default_rng(0).standard_normal((2, *lengths[:rank], 12)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs.double()(torch.tensor(x, dtype=torch.float64))
    budget.check("out", np.array(mine(mx.array(x))), wanted.numpy(), "float32")
    with pytest.raises(ValueError, match="over the 2 tokens"):
        v017.NeighborhoodAttention1D(12, 3, 3)(mx.zeros((1, 2, 12)))


@RANKS
def test_natten_mlx_layers_take_sizes(rank):
    """Padding is zero, whatever it holds; stride, causality and grouped heads hold for each sample."""
    mine, theirs = twins("natten_mlx", rank, 12, 3, 3, 2, is_causal=True, num_kv_heads=1)
    sizes = np.array([LENGTHS[rank], [length - 2 for length in LENGTHS[rank]]])
    x = np.random.default_rng(0).standard_normal((2, *LENGTHS[rank], 12)).astype(np.float32)
    x[1, -2:] = np.nan
    given = sizes[:, 0] if rank == 1 else sizes
    with torch.no_grad():
        wanted = theirs.double()(torch.tensor(x, dtype=torch.float64), torch.tensor(given))
    name = "seq_lens" if rank == 1 else "spatial_sizes"
    out = np.array(mine(mx.array(x), **{name: mx.array(given)}))
    budget.check("out", out, wanted.numpy(), "float32")
    assert not out[1, -1].any()


def test_attributes():
    old = v014.NeighborhoodAttention2D(dim=12, num_heads=3, kernel_size=3, dilation=None)
    assert (old.kernel_size, old.dilation, old.window_size, old.head_dim) == (3, 1, 3, 4)
    deep = v015.NeighborhoodAttention3D(12, 3, 3, 5, 2, 1)
    names = ("kernel_size", "kernel_size_d", "dilation", "dilation_d", "window_size", "window_size_d")
    assert tuple(getattr(deep, name) for name in names) == (3, 5, 2, 1, 6, 5)
    newer = v017.NeighborhoodAttention2D(12, 3, kernel_size=[3, 5], dilation=None)
    assert (newer.kernel_size, newer.dilation, newer.is_causal) == ((3, 5), (1, 1), (False, False))
    assert v020.NeighborhoodAttention3D(12, 3, 3).na_dim == 3
    assert natten_mlx.NeighborhoodAttention2D(12, 3, 3, 2).stride == (2, 2)


def test_layers_drop_weights_in_training():
    """Scale, stride and causality hold there too: without a drop in it, training changes nothing."""
    layer = natten_mlx.NeighborhoodAttention1D(12, 3, 3, 2, is_causal=True, attn_drop=0.5)
    x = mx.random.normal((2, 11, 12))
    quiet = layer.eval()(x)
    layer.train()
    layer.attn_drop = lambda weights: weights
    assert mx.allclose(layer(x), quiet, atol=1e-5)


def test_install():
    with vicinal.compat.install("natten_mlx==0.3.3"):
        package = importlib.import_module("natten_mlx")
        assert package.__version__ == metadata.version("natten-mlx") == "0.3.3"
        assert package.nn.NeighborhoodAttention2D is package.NeighborhoodAttention2D
        assert package.compat.for_version("0.17.5").na2d_qk is package.compat.v017.na2d_qk
        assert importlib.import_module("natten_mlx.extras.allin1").na1d_qk_rpb is compat.allin1.na1d_qk_rpb
        functional = importlib.import_module("natten_mlx.extras.allin1.functional")
        assert functional.natten2dav is compat.allin1.natten2dav
        public = {name for name in vars(package) if not name.startswith("_")}
        assert set(natten_mlx.__all__) <= public
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("natten_mlx")


def test_versions():
    eras = {"0.14.6": v014, "0.15.1": v015, "0.17.5": v017, "0.19": v017, "0.21.7": v020}
    for version, era in eras.items():
        assert compat.for_version(version) is era
    with pytest.raises(ValueError, match="not known here"):
        compat.for_version("0.22")


def test_a_mode_of_natten_mlx():
    assert natten_mlx.has_metal() == mx.metal.is_available()
    assert natten_mlx.has_nanobind() is False
    assert natten_mlx.get_backend() == "auto"
    natten_mlx.set_backend("pure")
    assert natten_mlx.get_backend() == "pure"
    natten_mlx.set_backend("auto")
    with pytest.raises(ValueError, match="unknown to natten-mlx"):
        natten_mlx.set_backend("metal")
    with pytest.raises(NotImplementedError, match="nanobind"):
        natten_mlx.set_backend("nanobind")
    matrix = natten_mlx.get_support_matrix()
    assert next(name for name, tier in matrix.items() if tier["available"]) == "pure"
    assert matrix["fast_metal"]["available"] == natten_mlx.has_metal()


def test_switches_are_kept():
    v017.use_fused_na(True)
    v017.use_autotuner(True)
    v020.set_memory_usage_preference("strict")
    assert v017.is_fna_enabled()
    assert v017.is_autotuner_enabled()
    assert v020.is_memory_usage_strict()
    switches.NattenContext.reset()
    assert not v017.is_fna_enabled()
    assert switches.has_cuda() == mx.cuda.is_available()
    shape = (1, 8, 2, 4)
    assert v017.fna_flop_count(shape, shape, shape, (3,), (1,), (False,), True) == 2 * 2 * 192
    assert v014.add_natten_handle(3) == 3
