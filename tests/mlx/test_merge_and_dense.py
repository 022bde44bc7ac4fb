"""Dense attention, and attentions over parts of the keys put together."""

import mlx.core as mx
import numpy as np
import pytest

import vicinal.mlx as na
from tests import budget
from tests.mlx import problems
from tests.mlx.test_blocked import counts_memory, peak
from vicinal.mlx import dense as module
from vicinal.mlx import ops


def dense(query, key, value, is_causal, scale, grad_out, grad_lse):
    """The definition in float64, with its gradients."""
    group = query.shape[-2] // key.shape[-2]
    wide_key, wide_value = (np.repeat(x, group, -2) for x in (key, value))
    scores = np.einsum("bnhd,bmhd->bnhm", query, wide_key) * scale
    if is_causal:
        hidden = np.arange(key.shape[1]) > np.arange(query.shape[1])[:, None]
        scores = np.where(hidden[:, None], -np.inf, scores)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    lse = (top + np.log(weights.sum(-1, keepdims=True)))[..., 0]
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bnhm,bmhd->bnhd", weights, wide_value)
    gain = np.einsum("bnhd,bmhd->bnhm", grad_out, wide_value)
    slope = weights * (gain - (weights * gain).sum(-1, keepdims=True) + grad_lse[..., None])
    shared = lambda x: x.reshape(*x.shape[:2], key.shape[-2], group, -1).sum(-2)  # noqa: E731
    grads = (
        scale * np.einsum("bnhm,bmhd->bnhd", slope, wide_key),
        shared(scale * np.einsum("bnhm,bnhd->bmhd", slope, query)),
        shared(np.einsum("bnhm,bnhd->bmhd", weights, grad_out)),
    )
    return (out, lse), grads


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (5, 12), (12, 5), (1, 3), (0, 4)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim"), [(4, 2, 8, 5), (3, 3, 4, 12), (2, 1, 7, 7)]
)
def test_attention(dtype, is_causal, queries, keys, heads, kv_heads, dim, value_dim):
    check(dtype, is_causal, (queries, keys), (heads, kv_heads), (dim, value_dim))


def check(dtype, is_causal, tokens, counts, dims):
    """Output, log-sum-exp and gradients are those of the definition."""
    (queries, keys), (heads, kv_heads), (dim, value_dim) = tokens, counts, dims
    generator = np.random.default_rng(0)
    shapes = (2, queries, heads, dim), (2, keys, kv_heads, dim), (2, keys, kv_heads, value_dim)
    operands = [problems.random(generator, shape, dtype) for shape in shapes]
    pulls = [
        problems.random(generator, (2, queries, heads, value_dim), dtype),
        problems.random(generator, (2, queries, heads)),
    ]
    attend = lambda *x: na.attention(*x, is_causal, scale=0.4, return_lse=True)  # noqa: E731
    (out, lse), grads = mx.vjp(attend, operands, pulls)
    (want, want_lse), wanted = dense(
        *map(problems.array, operands), is_causal, 0.4, *map(problems.array, pulls)
    )
    assert lse.dtype == mx.float32
    # On a GPU, MLX's attention rounds the weights.
    rounded = ops.device() != "cpu" and dtype != "float32"
    budget.check("out", problems.array(out), want, dtype, rounded)
    budget.check("lse", problems.array(lse), want_lse, "float32")
    for name, grad, true, x in zip(("query", "key", "value"), grads, wanted, operands, strict=True):
        assert grad.dtype == x.dtype
        # The gradients through output and log-sum-exp are rounded before they are added.
        budget.check(name, problems.array(grad), true, dtype, rounded_weights=True)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("budget", [1, 1 << 10])
def test_any_piece(is_causal, budget, monkeypatch):
    """One query at a time, and some of them."""
    monkeypatch.setattr(module, "CPU_BUDGET", budget)
    monkeypatch.setattr(module, "GPU_BUDGET", budget)
    assert len(module._pieces(mx.zeros((2, 2, 2, 23, 8)), mx.zeros((2, 2, 23, 8)), budget)) > 5
    check("float32", is_causal, (23, 23), (4, 2), (8, 5))
    check("float16", is_causal, (23, 31), (4, 2), (8, 5))


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_log_sum_exp_of_large_scores(size):
    """Scores up to thousands, of both signs, far from zero and far from one another."""
    generator = np.random.default_rng(4)
    query, key, value = (problems.random(generator, (1, 40, 2, 16)) for _ in range(3))
    out, lse = na.attention(size * query, size * key, value, return_lse=True)
    zeros = np.zeros((1, 40, 2, 16)), np.zeros((1, 40, 2))
    exact = [size * problems.array(x) for x in (query, key)]
    (want, want_lse), _ = dense(*exact, problems.array(value), False, 0.25, *zeros)
    assert np.abs(problems.array(lse) - want_lse).max() < 2e-6 * max(1.0, np.abs(want_lse).max())
    assert np.abs(problems.array(out) - want).max() < 2e-5 * max(1.0, size**2)


@counts_memory
@pytest.mark.parametrize("is_causal", [False, True])
def test_no_scores_are_kept(is_causal):
    """Forward, with gradients, and through the window that covers all; scores are many times what is held."""
    tokens, heads = 4000, 2
    arrays = [mx.random.normal((1, tokens, heads, 16)) for _ in range(4)]
    scores = 4 * heads * tokens**2

    def attend(*x):
        if is_causal:
            return na.attention(*x[:3], True, return_lse=True)
        return na.na1d(*x[:3], tokens, return_lse=True, backend="full")

    def gradients(*x):
        return mx.vjp(attend, list(x[:3]), [x[3], x[3][..., 0]])[1]

    assert peak(attend, *arrays) < 16 * arrays[0].nbytes + 6 * module.CPU_BUDGET < scores / 2
    assert peak(gradients, *arrays) < 16 * arrays[0].nbytes + 10 * module.CPU_BUDGET < scores / 1.5


def parts(count):
    generator = np.random.default_rng(1)
    query = problems.random(generator, (2, 6, 3, 4))
    keys = [problems.random(generator, (2, n + 2, 3, 4)) for n in range(count)]
    values = [problems.random(generator, (2, n + 2, 3, 5)) for n in range(count)]
    return query, keys, values


@pytest.mark.parametrize("count", [1, 2, 5])
def test_merging_is_attention_over_all_keys(count):
    query, keys, values = parts(count)

    def merged(query, keys, values):
        found = [na.attention(query, *both, return_lse=True) for both in zip(keys, values, strict=True)]
        return na.merge_attentions(*zip(*found, strict=True))

    def whole(query, keys, values):
        return na.attention(query, mx.concatenate(keys, 1), mx.concatenate(values, 1), return_lse=True)

    for one, other in zip(merged(query, keys, values), whole(query, keys, values), strict=True):
        budget.check("merged", problems.array(one), problems.array(other), "float32")
    grads = [
        mx.grad(lambda *x, f=f: f(*x)[0].square().sum() + f(*x)[1].sum(), argnums=(0, 1, 2))(
            query, keys, values
        )
        for f in (merged, whole)
    ]
    (one, *ones), (other, *others) = grads
    flat = lambda query, lists: [query, *(x for xs in lists for x in xs)]  # noqa: E731
    for grad, true in zip(flat(one, ones), flat(other, others), strict=True):
        budget.check("gradient", problems.array(grad), problems.array(true), "float32")


def test_merging_parts_that_saw_nothing():
    """Their outputs count for nothing, whatever they hold; where all are empty the result is 0 and -inf."""
    generator = np.random.default_rng(2)
    outputs = [problems.random(generator, (1, 3, 1, 4)) for _ in range(2)]
    outputs[0][0, 0] = float("nan")
    outputs[1][0, 2] = float("nan")
    outputs[0][0, 2] = float("inf")
    lses = [mx.array([[[-np.inf], [0.5], [-np.inf]]]), mx.array([[[1.5], [-np.inf], [-np.inf]]])]
    out, lse = na.merge_attentions(outputs, lses)
    assert np.array_equal(np.array(lse)[0, :, 0], [1.5, 0.5, -np.inf])
    assert np.array_equal(np.array(out[0, 0]), np.array(outputs[1][0, 0]))
    assert np.array_equal(np.array(out[0, 1]), np.array(outputs[0][0, 1]))
    assert not np.array(out[0, 2]).any()

    def loss(*x):
        return sum(
            mx.where(part == -float("inf"), 0, part).sum() for part in na.merge_attentions(x[:2], x[2:])
        )

    for grad in mx.grad(loss, argnums=(0, 1, 2, 3))(*outputs, *lses):
        assert np.isfinite(np.array(grad)).all()


def test_half_precision_merges_in_float32():
    query, keys, values = parts(3)
    half = lambda x: x.astype(mx.bfloat16)  # noqa: E731
    found = [
        na.attention(*map(half, (query, *both)), return_lse=True) for both in zip(keys, values, strict=True)
    ]
    out, lse = na.merge_attentions(*zip(*found, strict=True))
    assert out.dtype == mx.bfloat16
    assert lse.dtype == mx.float32
    want = na.merge_attentions([x.astype(mx.float32) for x, _ in found], [x for _, x in found])[0]
    budget.check("out", problems.array(out), problems.array(want), "bfloat16")
