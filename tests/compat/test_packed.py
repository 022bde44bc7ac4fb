"""Packed sequences and permuted tokens of 0.21."""

import itertools

import numpy as np
import pytest
import torch

from tests import oracle
from vicinal.torch.compat import v020

LENGTHS, KEYS = [4, 1, 6], [3, 5, 6]


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def documents(lengths):
    return list(itertools.pairwise([0, *itertools.accumulate(lengths)]))


def dense(q, k, v, scale, causal):
    """Attention of one document, by the definition."""
    scores = scale * np.einsum("nhd,mhd->hnm", q, k)
    if causal:
        scores = np.where(np.arange(len(k)) <= np.arange(len(q))[:, None], scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    lse = np.log(weights.sum(-1)) + top[..., 0]
    out = np.einsum("hnm,mhd->nhd", weights / weights.sum(-1, keepdims=True), v)
    return out, lse.T


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("by", ["lengths", "offsets"])
def test_packed_attention(causal, by):
    q, k, v = draw(1, sum(LENGTHS), 2, 4), draw(1, sum(KEYS), 2, 4), draw(1, sum(KEYS), 2, 3)
    lengths = [torch.tensor(x, dtype=torch.int32) for x in (LENGTHS, KEYS)]
    if by == "lengths":
        given = dict(zip(("seqlens_Q", "seqlens_KV"), lengths, strict=True))
    else:
        names = ("cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")
        found = v020.generate_varlen_parameters(q, k, v, *lengths)
        assert found[2:] == (6, 6)
        given = dict(zip(names, found, strict=True))
    out, lse = v020.attention(q, k, v, causal, 0.3, **given, return_lse=True)
    for (a, b), (c, d) in zip(documents(LENGTHS), documents(KEYS), strict=True):
        parts = (q[0, a:b], k[0, c:d], v[0, c:d])
        want = dense(*(x.detach().numpy() for x in parts), 0.3, causal)
        assert np.abs(out[0, a:b].detach().numpy() - want[0]).max() < 1e-12
        assert np.abs(lse[0, a:b].detach().numpy() - want[1]).max() < 1e-12
    # A document's gradient comes from itself alone.
    (grad,) = torch.autograd.grad(out[0, :4].sum() + lse[0, :4].sum(), k)
    assert grad[0, :3].any()
    assert not grad[0, 3:].any()


def test_attention_without_a_pack():
    q = draw(2, 5, 2, 4)
    assert torch.equal(v020.attention(q, q, q), v020.attention(q, q, q, backend="flex-fmha"))
    assert v020.generate_varlen_parameters(q, q, q) == (None, None, 0, 0)


def test_packs_that_do_not_fit():
    q, lengths = draw(1, 6, 2, 4), torch.tensor([2, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"cumulative_seqlen_Q spans tokens 0 to 5"):
        v020.attention(q, q, q, seqlens_Q=lengths, seqlens_KV=lengths)
    with pytest.raises(ValueError, match="seqlens_Q and seqlens_KV belong together"):
        v020.attention(q, q, q, seqlens_Q=lengths)
    with pytest.raises(ValueError, match="pass a 1-D int32 array"):
        v020.attention(q, q, q, seqlens_Q=lengths.long(), seqlens_KV=lengths.long())
    with pytest.raises(ValueError, match="pass both or neither"):
        v020.attention(q, q, q, cumulative_seqlen_Q=lengths)
    with pytest.raises(NotImplementedError, match="cutlass-fmha"):
        v020.attention(q, q, q, backend="cutlass-fna")


LAYOUTS, SIZES, APART = [(5, 6), (3, 4), (7, 2)], [(3, 3), (3, 2), (2, 1)], [(1, 2), (1, 1), (3, 2)]


@pytest.mark.parametrize("ahead", [True, False], ids=["metadata", "lists"])
def test_neighborhoods_of_packed_inputs(ahead):
    tokens = sum(a * b for a, b in LAYOUTS)
    q, k, v = draw(1, tokens, 4, 4), draw(1, tokens, 2, 4), draw(1, tokens, 2, 3)
    window = {"kernel_size_list": SIZES, "dilation_list": APART, "is_causal": (False, True)}
    if ahead:
        metadata = v020.configure_varlen(LAYOUTS, 4, q.device, q.dtype, True, 3, **window)
        out, lse = v020.neighborhood_attention_varlen(q, k, v, metadata, scale=0.3, return_lse=True)
    else:
        out, lse = v020.neighborhood_attention_varlen(
            q, k, v, token_layout_list=LAYOUTS, **window, scale=0.3, return_lse=True
        )
    places = documents([a * b for a, b in LAYOUTS])
    for (a, b), layout, size, apart in zip(places, LAYOUTS, SIZES, APART, strict=True):
        parts = (x[:, a:b].unflatten(1, layout).detach().numpy() for x in (q, k, v))
        win = oracle.window(2, size, dilation=apart, is_causal=(False, True))
        exact = oracle.attend(*parts, win, 0.3)
        assert np.abs(out[:, a:b].unflatten(1, layout).detach().numpy() - exact.out).max() < 1e-12
        assert np.abs(lse[:, a:b].unflatten(1, layout).detach().numpy() - exact.lse).max() < 1e-12
    assert torch.isfinite(torch.autograd.grad(out.sum(), q)[0]).all()


def test_one_window_for_all_packed_inputs():
    q = draw(1, 9, 2, 4)
    out = v020.neighborhood_attention_varlen(q, q, q, token_layout_list=[(4,), (5,)], kernel_size=3, stride=2)
    exact = oracle.attend(*[q[:, 4:].detach().numpy()] * 3, oracle.window(1, 3, 2), 0.5)
    assert np.abs(out[:, 4:].detach().numpy() - exact.out).max() < 1e-12
    with pytest.raises(ValueError, match="metadata and token_layout_list are None"):
        v020.neighborhood_attention_varlen(q, q, q)
    with pytest.raises(ValueError, match="token_layout_list is empty"):
        v020.neighborhood_attention_varlen(q, q, q, token_layout_list=[])
    with pytest.raises(ValueError, match="stride_list has 1 entries for 2 packed inputs; pass one for each"):
        v020.neighborhood_attention_varlen(q, q, q, token_layout_list=[(4,), (5,)], stride_list=[1])
    with pytest.raises(NotImplementedError, match="unknown to NATTEN"):
        v020.configure_varlen([(9,)], 4, "cpu", q.dtype, False, backend="fast")


# Recorded: tokens 0 to 15 of a 4x4 map, dilated by 2, in tiles of one token; the first two of each group.
GROUPS = {True: ([0, 4, 1, 5], [8, 12, 9, 13]), False: ([0, 1, 4, 5], [2, 3, 6, 7])}
# Tokens 0 to 29 of a 5x6 map in 2x2 tiles, with zeros in the tiles that stick out.
TILES = {
    True: "0 6 1 7 12 18 13 19 24 0 25 0 2 8 3 9 14 20 15 21 26 0 27 0 4 10 5 11 16 22 17 23 28 0 29 0",
    False: "0 1 6 7 2 3 8 9 4 5 10 11 12 13 18 19 14 15 20 21 16 17 22 23 24 25 0 0 26 27 0 0 28 29 0 0",
}


@pytest.mark.parametrize("flip", [True, False])
def test_recorded_permutations(flip):
    x = torch.arange(30.0).view(1, 5, 6, 1, 1)
    out, layout, padded = v020.token_permute_operation(x, (2, 2), None, flip)
    assert (layout, padded) == ((5, 6), (6, 6))
    assert out.flatten().tolist() == [float(token) for token in TILES[flip].split()]
    x = torch.arange(16.0).view(1, 4, 4, 1, 1)
    out, layout, padded = v020.token_permute_operation(x, (1, 1), (2, 2), flip)
    assert (layout, padded, out.shape) == ((4, 4), (2, 2), (4, 4, 1, 1))
    assert (out[:, 0].flatten().tolist(), out[:, 1].flatten().tolist()) == GROUPS[flip]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("flip", [True, False])
def test_permuting_back(rank, flip):
    tile, apart, lengths = (3, 2, 2)[:rank], (2, 1, 3)[:rank], (7, 5, 4)[:rank]
    x = draw(2, *lengths, 3, 4)
    out, layout, padded = v020.token_permute_operation(x, tile, apart, flip)
    groups = int(np.prod(apart))
    assert out.shape == (2 * groups, int(np.prod(padded)), 3, 4)
    assert torch.equal(v020.token_unpermute_operation(out, layout, tile, apart, flip), x)
