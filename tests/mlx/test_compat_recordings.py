"""Outputs and gradients recorded from NATTEN, through its names on MLX, where they lie beside us."""

import mlx.core as mx
import numpy as np
import pytest

from tests.recordings import cases, of_0_14, recorded
from vicinal.mlx.compat import v014, v017, v020


def close(name, got, want):
    error = np.abs(np.array(got) - want).max()
    assert error < 1e-5, f"{name}: {error:.2e}"


def check(fields, attend):
    """`attend(q, k, v, rpb)`, heads first and scaled, against outputs and gradients recorded heads last."""
    names = [name for name in ("q", "k", "v", "rpb") if name in fields]

    def call(*leaves):
        operands = dict(zip(names, leaves, strict=True))
        q, k, v = (mx.moveaxis(operands[name], -2, 1) for name in "qkv")
        out = attend(q * q.shape[-1] ** -0.5, k, v, operands.get("rpb"))
        return [mx.moveaxis(out, 1, -2)]

    leaves = [mx.array(fields[name]) for name in names]
    (out,), grads = mx.vjp(call, leaves, [mx.array(fields["grad_out"])])
    close("out", out, fields["out"])
    for name, got in zip(names, grads, strict=True):
        close(f"gradient of {name}", got, fields[f"d{name}"])


@recorded
@pytest.mark.parametrize(("meta", "fields"), cases("natten_0_17_cpu.npz"))
def test_0_17(meta, fields):
    qk, av, fused = (getattr(v017, f"na{meta['rank']}d{kind}") for kind in ("_qk", "_av", ""))
    size, apart, causal = window = [meta[name] for name in ("kernel_size", "dilation", "is_causal")]

    def attend(q, k, v, rpb):
        scores = qk(q, k, size, apart, is_causal=causal, rpb=rpb)
        seen = np.isfinite(fields["scores"])
        close("scores", np.array(mx.moveaxis(scores, 1, -2))[seen], fields["scores"][seen])
        return av(mx.softmax(scores, -1), v, size, apart, is_causal=causal)

    check(fields, attend)
    rpb = mx.array(fields["rpb"]) if "rpb" in fields else None
    close("fused", fused(*(mx.array(fields[name]) for name in "qkv"), *window, rpb), fields["out"])


@recorded
@pytest.mark.parametrize(("meta", "fields"), cases("natten_0_17_cpu.npz", of_0_14))
def test_0_14(meta, fields):
    qkrpb, av = (getattr(v014, f"natten{meta['rank']}d{kind}") for kind in ("qkrpb", "av"))
    window = meta["kernel_size"][0], meta["dilation"][0]
    check(fields, lambda q, k, v, rpb: av(mx.softmax(qkrpb(q, k, rpb, *window), -1), v, *window))


@recorded
@pytest.mark.parametrize(("meta", "fields"), cases("natten_0_21_flex.npz"))
def test_0_21(meta, fields):
    q, k, v = (mx.array(fields[name]) for name in "qkv")
    window = [meta[name] for name in ("kernel_size", "stride", "dilation", "is_causal")]
    out, lse = getattr(v020, f"na{meta['rank']}d")(q, k, v, *window, return_lse=True)
    close("out", out, fields["out"])
    close("lse", lse, fields["lse"])
