"""natten-mps on its pure backend, beside our names for it: odd windows, where it computes what it says."""

import natten_mps
import pytest
import torch

from vicinal.torch.compat import natten_mps as ours

from .apple import FUNCTIONS, LAYERS, LENGTHS, WINDOWS, arguments

natten_mps.set_backend("pure")


def draw(rank, heads=2, dim=4):
    torch.manual_seed(0)
    return [torch.randn(2, *LENGTHS[rank], heads, dim).requires_grad_() for _ in "qkv"]


def close(ours, theirs):
    finite = torch.isfinite(theirs)
    assert torch.equal(finite, torch.isfinite(ours))
    assert (ours[finite] - theirs[finite]).abs().max() < 1e-5


@pytest.mark.parametrize("name", [*FUNCTIONS, *LAYERS])
def test_arguments(name):
    assert arguments(ours, name) == arguments(natten_mps, name)


@pytest.mark.parametrize("rank", LENGTHS)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_fused(rank, window):
    tensors = draw(rank)
    found = [getattr(package, f"na{rank}d")(*tensors, 3, **window) for package in (ours, natten_mps)]
    close(*found)
    for pair in zip(*(torch.autograd.grad(out.square().sum(), tensors) for out in found), strict=True):
        close(*pair)


@pytest.mark.parametrize("rank", LENGTHS)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_split(rank, window):
    q, k, v = draw(rank)
    rest = {name: window[name] for name in window if name != "scale"}
    outputs = []
    for package in (ours, natten_mps):
        qk, av = (getattr(package, f"na{rank}d_{kind}") for kind in ("qk", "av"))
        scores = qk(q, k, 3, **window)
        outputs.append([scores, av(scores.softmax(-1), v, 3, **rest)])
    # Slots that causality hides are the first there and the last here.
    close(*(scores.sort().values for scores, _ in outputs))
    close(*(out for _, out in outputs))
    if "is_causal" not in window:
        close(*(scores for scores, _ in outputs))


@pytest.mark.parametrize("rank", LENGTHS)
def test_padded(rank):
    sizes = torch.tensor([LENGTHS[rank], [length - 2 for length in LENGTHS[rank]]])
    sizes = sizes[:, 0] if rank == 1 else sizes
    tensors = draw(rank)
    close(*(getattr(package, f"na{rank}d_varlen")(*tensors, sizes, 3) for package in (ours, natten_mps)))


@pytest.mark.parametrize("rank", LENGTHS)
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1, "stride": 2}], ids=["plain", "grouped"])
def test_layer(rank, options):
    theirs = getattr(natten_mps, f"NeighborhoodAttention{rank}D")(8, 2, 3, **options)
    twin = getattr(ours, f"NeighborhoodAttention{rank}D")(8, 2, 3, **options)
    twin.load_state_dict(theirs.state_dict())
    x = torch.randn(2, *LENGTHS[rank], 8)
    close(twin(x), theirs(x))


@pytest.mark.parametrize("rank", [1, 2])
def test_allin1(rank):
    from natten_mps.extras import allin1 as theirs

    from vicinal.torch.compat import allin1

    q, k, v = draw(rank, dim=12)
    rpb = torch.randn(2, *[5] * rank)
    found = [getattr(one, f"na{rank}d_qk_rpb")(q, k, rpb, 3, 2, scale=0.3) for one in (allin1, theirs)]
    close(*found)
    weights = found[0].softmax(-1)
    close(*(getattr(one, f"na{rank}d_av_fused")(weights, v, 3, 2) for one in (allin1, theirs)))
