"""stable-audio-tools' 1-D neighborhood attention, on NATTEN 0.14's split operations."""

import torch

import vicinal.compat

from . import plain

with vicinal.compat.install("natten==0.14.6"):
    import natten
    from stable_audio_tools.models import transformer


def test_attention(monkeypatch):
    torch.manual_seed(0)
    layer = transformer.Attention(32, dim_heads=16, natten_kernel_size=7, zero_init_output=False)
    x = torch.randn(2, 20, 32)

    def switch():
        monkeypatch.setattr(natten.functional, "natten1dqk", lambda q, k, **w: plain.qkrpb(q, k, None, **w))
        monkeypatch.setattr(natten.functional, "natten1dav", plain.av)

    answers = []
    for change in (lambda: None, switch):
        change()
        layer.zero_grad()
        out = layer(x)
        out.square().sum().backward()
        answers.append([out, *(p.grad.clone() for p in layer.parameters())])
    for ours, theirs in zip(*answers, strict=True):
        assert (ours - theirs).abs().max() < 1e-4
