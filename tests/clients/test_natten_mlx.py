"""natten-mlx on its pure backend, which runs anywhere once it is imported, beside our names for it."""

import sys
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from vicinal.mlx.compat import natten_mlx as ours

from .apple import FUNCTIONS, LAYERS, LENGTHS, WINDOWS, arguments

# It refuses to be imported elsewhere than on a Mac.
with patch.object(sys, "platform", "darwin"):
    import natten_mlx

natten_mlx.set_backend("pure")


def draw(rank, heads=2, dim=4):
    generator = np.random.default_rng(0)
    return [mx.array(generator.standard_normal((2, *LENGTHS[rank], heads, dim)), mx.float32) for _ in "qkv"]


def close(ours, theirs):
    ours, theirs = np.array(ours), np.array(theirs)
    finite = np.isfinite(theirs)
    assert np.array_equal(finite, np.isfinite(ours))
    assert np.abs(ours[finite] - theirs[finite]).max() < 1e-5


@pytest.mark.parametrize("name", [*FUNCTIONS, *LAYERS, "merge_attentions"])
def test_arguments(name):
    assert arguments(ours, name) == arguments(natten_mlx, name)


def test_names():
    assert set(natten_mlx.__all__) - {"__version__"} == set(ours.__all__)


@pytest.mark.parametrize("rank", LENGTHS)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_fused(rank, window):
    tensors = draw(rank)
    calls = [getattr(package, f"na{rank}d") for package in (ours, natten_mlx)]
    close(*(call(*tensors, 3, **window) for call in calls))
    pull = [mx.ones_like(calls[0](*tensors, 3, **window))]
    found = [mx.vjp(lambda *x, call=call: [call(*x, 3, **window)], tensors, pull)[1] for call in calls]
    for pair in zip(*found, strict=True):
        close(*pair)


@pytest.mark.parametrize("rank", LENGTHS)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_split(rank, window):
    """Without a scale both take the same default."""
    q, k, v = draw(rank)
    rest = {name: window[name] for name in window if name != "scale"}
    outputs = []
    for package in (ours, natten_mlx):
        qk, av = (getattr(package, f"na{rank}d_{kind}") for kind in ("qk", "av"))
        scores = qk(q, k, 3, **window)
        outputs.append([scores, av(mx.softmax(scores, -1), v, 3, **rest)])
    # Slots that causality hides are the first there and the last here.
    close(*(mx.sort(scores, -1) for scores, _ in outputs))
    close(*(out for _, out in outputs))
    if "is_causal" not in window:
        close(*(scores for scores, _ in outputs))


@pytest.mark.parametrize("rank", LENGTHS)
def test_log_sum_exp_and_additional_tokens(rank):
    q, k, v = draw(rank)
    more = [mx.random.normal((2, 3, 2, 4)) for _ in "kv"]
    found = [
        getattr(package, f"na{rank}d")(q, k, v, 3, 1, 1, False, None, True, *more)
        for package in (ours, natten_mlx)
    ]
    for pair in zip(*found, strict=True):
        close(*pair)


@pytest.mark.parametrize("rank", LENGTHS)
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1, "stride": 2}], ids=["plain", "grouped"])
def test_layer(rank, options):
    theirs = getattr(natten_mlx, f"NeighborhoodAttention{rank}D")(8, 2, 3, **options)
    twin = getattr(ours, f"NeighborhoodAttention{rank}D")(8, 2, 3, **options)
    twin.load_weights(tree_flatten(theirs.parameters()))
    x = mx.random.normal((2, *LENGTHS[rank], 8))
    close(twin(x), theirs(x))


@pytest.mark.parametrize("rank", LENGTHS)
def test_padded(rank):
    sizes = np.array([LENGTHS[rank], [length - 2 for length in LENGTHS[rank]]], np.int32)
    sizes = mx.array(sizes[:, 0] if rank == 1 else sizes)
    tensors = draw(rank)
    close(*(getattr(package, f"na{rank}d_varlen")(*tensors, sizes, 3) for package in (ours, natten_mlx)))
