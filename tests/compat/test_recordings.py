"""Outputs and gradients recorded from NATTEN, through its names, where they lie beside the checkout."""

import numpy as np
import pytest
import torch

from tests.recordings import cases, of_0_14, recorded
from vicinal.torch.compat import v014, v017, v020


def first(x):
    return x.movedim(-2, 1)


def close(name, got, want):
    error = np.abs(got.detach().numpy() - want).max()
    assert error < 1e-5, f"{name}: {error:.2e}"


def compare(fields, leaves, scores, out):
    """Scores and output, heads first, and gradients of all operands, against what was recorded heads last."""
    seen = np.isfinite(fields["scores"])
    scores, out = (x.movedim(1, -2) for x in (scores, out))
    close("scores", scores[torch.from_numpy(seen)], fields["scores"][seen])
    close("out", out, fields["out"])
    grads = torch.autograd.grad(out, tuple(leaves.values()), torch.from_numpy(fields["grad_out"]))
    for name, got in zip(leaves, grads, strict=True):
        close(f"gradient of {name}", got, fields[f"d{name}"])


def operands(fields):
    names = [name for name in ("q", "k", "v", "rpb") if name in fields]
    leaves = {name: torch.from_numpy(fields[name]).requires_grad_() for name in names}
    q, k, v = (first(leaves[name]) for name in "qkv")
    return leaves, q * q.shape[-1] ** -0.5, k, v, leaves.get("rpb")


@recorded
@pytest.mark.parametrize(("meta", "fields"), cases("natten_0_17_cpu.npz"))
def test_0_17_split(meta, fields):
    qk, av = (getattr(v017, f"na{meta['rank']}d_{kind}") for kind in ("qk", "av"))
    leaves, q, k, v, rpb = operands(fields)
    size, apart, causal = (meta[name] for name in ("kernel_size", "dilation", "is_causal"))
    scores = qk(q, k, size, apart, is_causal=causal, rpb=rpb)
    out = av(scores.softmax(-1), v, size, apart, is_causal=causal)
    compare(fields, leaves, scores, out)


@recorded
@pytest.mark.parametrize(("meta", "fields"), cases("natten_0_17_cpu.npz"))
def test_0_17_fused(meta, fields):
    leaves, *_, rpb = operands(fields)
    q, k, v = (leaves[name] for name in "qkv")
    out = getattr(v017, f"na{meta['rank']}d")(
        q, k, v, *(meta[n] for n in ("kernel_size", "dilation", "is_causal")), rpb
    )
    close("out", out, fields["out"])
    grads = torch.autograd.grad(out, tuple(leaves.values()), torch.from_numpy(fields["grad_out"]))
    for name, got in zip(leaves, grads, strict=True):
        close(f"gradient of {name}", got, fields[f"d{name}"])


@recorded
@pytest.mark.parametrize(("meta", "fields"), cases("natten_0_17_cpu.npz", of_0_14))
def test_0_14(meta, fields):
    qkrpb, av = (getattr(v014, f"natten{meta['rank']}d{kind}") for kind in ("qkrpb", "av"))
    leaves, q, k, v, rpb = operands(fields)
    window = meta["kernel_size"][0], meta["dilation"][0]
    scores = qkrpb(q, k, rpb, *window)
    compare(fields, leaves, scores, av(scores.softmax(-1), v, *window))


@recorded
def test_0_14_has_recordings():
    found = [meta["rpb"] for meta in (case.values[0] for case in cases("natten_0_17_cpu.npz", of_0_14))]
    assert sum(found) >= 3
    assert len(found) - sum(found) >= 3


@recorded
@pytest.mark.parametrize(("meta", "fields"), cases("natten_0_21_flex.npz"))
def test_0_21(meta, fields):
    q, k, v = (torch.from_numpy(fields[name]) for name in "qkv")
    window = [meta[name] for name in ("kernel_size", "stride", "dilation", "is_causal")]
    out, lse = getattr(v020, f"na{meta['rank']}d")(q, k, v, *window, return_lse=True)
    close("out", out, fields["out"])
    close("lse", lse, fields["lse"])
