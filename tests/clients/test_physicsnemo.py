"""PhysicsNeMo's layers on NATTEN 0.21; Warp and timm, which they import for other things, are absent."""

import pytest
import torch

import vicinal.compat

from . import plain
from .packages import absent, bare

absent("s3fs", "timm", "timm.layers", "timm.layers.attention", "warp")
for package in ("physicsnemo", "physicsnemo.nn", "physicsnemo.nn.module"):
    bare(package)
bare("physicsnemo.nn.functional", drop_path=None)
with vicinal.compat.install("natten==0.21.7"):
    import natten
    from physicsnemo.nn.functional import natten as functional
    from physicsnemo.nn.module import dit_layers

LENGTHS = {1: (11,), 2: (8, 7), 3: (5, 6, 7)}


@pytest.fixture(autouse=True)
def _installed():
    """NATTEN is looked up at each call."""
    with vicinal.compat.install("natten==0.21.7"):
        yield


@pytest.mark.parametrize("rank", LENGTHS)
@pytest.mark.parametrize("options", [{}, {"dilation": 2, "scale": 0.3, "backend": "cutlass-fna"}], ids=str)
def test_functions(rank, options):
    q, k, v = (torch.randn(2, *LENGTHS[rank], 3, 12) for _ in "qkv")
    size = 3 if rank == 2 else 2 if options else 3
    found = getattr(functional, f"na{rank}d")(q, k, v, size, **options)
    known = {name: options[name] for name in options if name != "backend"}
    assert (found - plain.attention(q, k, v, size, **known)).abs().max() < 1e-5


def test_layer(monkeypatch):
    torch.manual_seed(0)
    layer = dit_layers.Natten2DSelfAttention(24, 2, attn_kernel=5, qk_norm=True, na2d_kwargs={"dilation": 1})
    x = torch.randn(2, 56, 24)
    answers = []
    for switch in (lambda: None, lambda: monkeypatch.setattr(dit_layers, "_na2d_func", plain.attention)):
        switch()
        layer.zero_grad()
        out = layer(x, (8, 7))
        out.square().sum().backward()
        answers.append([out, *(p.grad.clone() for p in layer.parameters())])
    for ours, theirs in zip(*answers, strict=True):
        assert (ours - theirs).abs().max() < 1e-4
    assert natten.__version__ == "0.21.7"
