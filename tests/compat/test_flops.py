"""Counts of operations: NATTEN's formulas, and what counters find in a model."""

from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vicinal.torch.compat import v014, v015, v017

SHAPE, SIZE = (2, 3, 9, 8, 4), (5, 3)
MACS = 2 * 3 * 9 * 8 * 15 * 4


@pytest.mark.parametrize("macs", [True, False])
@pytest.mark.parametrize("heads_last", [True, False])
def test_formulas(macs, heads_last):
    shape = (2, 9, 8, 3, 4) if heads_last else SHAPE
    window = (SIZE, (1, 1), (True, False), heads_last, macs)
    half = MACS if macs else 2 * MACS
    assert v017.na_qk_flop_count(shape, shape, *window) == half
    assert v017.na_av_flop_count((*shape[:-1], 15), shape, *window) == half
    assert v017.fna_flop_count(shape, shape, shape, *window) == 2 * half


def test_formulas_know_their_rank():
    with pytest.raises(ValueError, match="spatial axes"):
        v017.na_qk_flop_count(SHAPE, SHAPE, (3,), (1,), (False,), False)


def old_split(q, k, v):
    return v014.natten2dav(v014.natten2dqk(q, k, 3, 1).softmax(-1), v, 3, 1)


def test_pytorchs_counter():
    q, k, v = (torch.randn(SHAPE) for _ in "qkv")
    flops = 2 * 2 * prod(SHAPE) * 9
    with FlopCounterMode(display=False) as counter:
        old_split(q, k, v)
    assert counter.get_total_flops() == flops
    with FlopCounterMode(display=False) as counter:
        v017.na2d(*(x.movedim(1, -2) for x in (q, k, v)), 3)
    assert counter.get_total_flops() == flops


class Layers(torch.nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_fvcore(bias, drop):
    """Multiply-adds: three projections in, both products of the attention, one projection out."""
    pytest.importorskip("fvcore")
    layer = v014.NeighborhoodAttention2D(12, 3, 3, bias=bias, attn_drop=drop)
    tokens = 2 * 9 * 8
    attention = tokens * 9 * (12 + 12 + 3 * bias)
    total = tokens * 4 * 12 * 12 + attention
    assert v014.get_flops(Layers(layer), torch.randn(2, 9, 8, 12), disable_warnings=True) == total


def test_fvcore_counts_split_operations():
    nn = pytest.importorskip("fvcore.nn")

    class Model(torch.nn.Module):
        def forward(self, q, k, v, rpb):
            return v015.natten2dav(v015.natten2dqkrpb(q, k, rpb, 3, 1), v, 3, 1)

    q, k, v = (torch.randn(SHAPE) for _ in "qkv")
    counter = v015.add_natten_handle(nn.FlopCountAnalysis(Model(), (q, k, v, torch.randn(3, 5, 5))))
    counter = counter.unsupported_ops_warnings(False)
    weights = prod(SHAPE[:-1]) * 9
    assert counter.total() == weights * (4 + 1) + weights * 4
