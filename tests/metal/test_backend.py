"""The Metal backend as PyTorch sees it: what it refuses, and what autograd makes of it."""

from dataclasses import replace

import pytest
import torch

import vicinal.torch as na
from tests.metal import checking
from vicinal.catalog import named
from vicinal.torch import backends, ops
from vicinal.torch.backends.metal import METAL, METAL_PLAIN, Metal

PLAIN_KERNELS = {
    f"{name}_plain"
    for name in ("attend", "attend_back_query", "attend_back_key", "dot_walk", "mix_walk", "mix_back_walk")
}
PROBLEM = replace(named("odd_2d").problem, device="mps")


@pytest.mark.parametrize("backend", [METAL, METAL_PLAIN], ids=lambda backend: backend.name)
def test_refusals_have_reasons(backend, monkeypatch):
    if not checking.HAS_METAL:
        assert backend.refusal(replace(PROBLEM, dtype="bfloat16")) is None
    recent = {"is": True}
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: recent["is"])
    assert backend.refusal(PROBLEM) is None
    assert backend.refusal(replace(PROBLEM, device="cpu")) == "runs on mps, not cpu"
    assert backend.refusal(replace(PROBLEM, dtype="float64")) == "has no float64"
    assert backend.refusal(replace(PROBLEM, dim=257)) == "head dim 257 is over 256"
    assert backend.refusal(replace(PROBLEM, value_dim=300)) == "head dim 300 is over 256"
    assert backend.refusal(replace(PROBLEM, dtype="bfloat16")) is None
    assert backend.refusal(replace(PROBLEM, batch=2**20)) == "2**27 queries or more, of all heads"
    recent["is"] = False
    assert backend.refusal(replace(PROBLEM, dtype="bfloat16")) == "bfloat16 needs macOS 14"
    assert backend.refusal(PROBLEM) is None


@pytest.fixture
def only_metal(monkeypatch):
    """The Metal backend takes tensors of any device, and is the only one."""

    class Anywhere(Metal):
        def refusal(self, problem):
            return super().refusal(replace(problem, device="mps"))

    monkeypatch.setattr(backends, "BACKENDS", (Anywhere("metal", most_waste=8.0),))
    ops._chosen.cache_clear()
    yield
    ops._chosen.cache_clear()


@pytest.mark.usefixtures("only_metal", "session")
def test_gradients_and_their_gradients():
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, 6, 5, 2, 4, generator=generator).to(checking.DEVICE).requires_grad_() for _ in range(3)
    ]

    def second(**options):
        out = na.na2d(*tensors, kernel_size=(3, 5), is_causal=(True, False), **options)
        grads = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
        return [out, *grads, *torch.autograd.grad(sum(grad.sin().sum() for grad in grads), tensors)]

    found = second()
    backends.BACKENDS = (backends.REFERENCE,)
    ops._chosen.cache_clear()
    for actual, wanted in zip(found, second(), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("only_metal", "session")
def test_split_operations():
    x, y = (torch.randn(1, 9, 2, 4, device=checking.DEVICE, requires_grad=True) for _ in range(2))
    weights = na.na1d_qk(x, y, 3, is_causal=True).softmax(-1)
    out = na.na1d_av(weights, y, 3, is_causal=True)
    whole = na.na1d(x, y, y, 3, is_causal=True)
    torch.testing.assert_close(out, whole)
    split = torch.autograd.grad(out.square().sum(), (x, y))
    fused = torch.autograd.grad(whole.square().sum(), (x, y))
    torch.testing.assert_close(split, fused, rtol=1e-4, atol=1e-5)


def test_tiny_windows_run_plainly():
    """And all others by tiles, as do the additional tokens of every problem."""
    with checking.opened() as session:
        if session is None:
            pytest.skip("kernel names are the checker's")
        for name in ("one_key", "odd_2d", "extra"):
            checking.run(METAL, named(name).problem)
            plain = {kernel.split("_float")[0] for kernel, _ in session.launches if "plain" in kernel}
            assert plain == (PLAIN_KERNELS if name == "one_key" else set())
            session.launches.clear()
