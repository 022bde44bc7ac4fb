"""Outputs and gradients recorded from NATTEN itself, where the recordings lie beside the checkout."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import vicinal.torch as na

DATA = Path(__file__).parents[3] / "shared" / "data"


def cases(name):
    path = DATA / name
    if not path.exists():
        return []
    with np.load(path) as file:
        groups = {}
        for key in file.files:
            group, _, field = key.partition("/")
            if field:
                groups.setdefault(group, {})[field] = file[key]
    return [pytest.param(fields, id=f"{path.stem}-{group}") for group, fields in groups.items()]


def close(name, got, want):
    error = np.abs(got.detach().numpy() - want).max()
    assert error < 1e-5, f"{name}: {error:.2e}"


recorded = pytest.mark.skipif(not DATA.exists(), reason="the recordings are not beside this checkout")


@recorded
@pytest.mark.parametrize("case", cases("natten_0_17_cpu.npz"))
def test_operations_of_0_17(case):
    """Scores, outputs and gradients, through the split operations and through the fused one."""
    meta = ast.literal_eval(str(case["meta"]))
    window = {name: meta[name] for name in ("kernel_size", "dilation", "is_causal")}
    leaves = {
        name: torch.from_numpy(case[name]).requires_grad_() for name in ("q", "k", "v", "rpb") if name in case
    }
    q, k, v = (leaves[name] for name in "qkv")
    bias, grad = leaves.get("rpb"), torch.from_numpy(case["grad_out"])
    scores = na.qk(q, k, **window, bias=bias)
    seen = np.isfinite(scores.detach().numpy())
    close("scores", scores[torch.from_numpy(seen)], case["scores"][seen])
    split = na.av(scores.softmax(-1), v, **window)
    fused, lse = na.neighborhood_attention(q, k, v, **window, bias=bias, return_lse=True)
    close("lse", lse, case["lse"])
    for out in (split, fused):
        close("out", out, case["out"])
        for name, got in zip(leaves, torch.autograd.grad(out, tuple(leaves.values()), grad), strict=True):
            close(f"gradient of {name}", got, case[f"d{name}"])


@recorded
@pytest.mark.parametrize("case", cases("natten_0_21_flex.npz"))
def test_fused_operation_of_0_21(case):
    meta = ast.literal_eval(str(case["meta"]))
    q, k, v = (torch.from_numpy(case[name]) for name in "qkv")
    names = ("kernel_size", "stride", "dilation", "is_causal")
    out, lse = na.neighborhood_attention(q, k, v, **{n: meta[n] for n in names}, return_lse=True)
    close("out", out, case["out"])
    close("lse", lse, case["lse"])
