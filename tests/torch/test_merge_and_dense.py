"""Dense attention, and attentions over parts of the keys put together."""

import pytest
import torch

import vicinal.torch as na
from tests import budget
from tests.errors import fails
from tests.torch import problems


def dense(query, key, value, is_causal, scale):
    """The definition, with every score kept."""
    group = query.shape[-2] // key.shape[-2]
    key, value = (x.repeat_interleave(group, -2) for x in (key, value))
    scores = torch.einsum("bnhd,bmhd->bhnm", query, key) * scale
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), value)
    return out, scores.logsumexp(-1).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (5, 12), (12, 5), (1, 3), (0, 4)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim"), [(4, 2, 8, 5), (3, 3, 4, 12), (2, 1, 7, 7)]
)
def test_attention(dtype, is_causal, queries, keys, heads, kv_heads, dim, value_dim):
    torch.manual_seed(0)
    shapes = (2, queries, heads, dim), (2, keys, kv_heads, dim), (2, keys, kv_heads, value_dim)
    operands = [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    wide = [x.detach().double().requires_grad_() for x in operands]
    got = na.attention(*operands, is_causal, scale=0.4, return_lse=True)
    want = dense(*wide, is_causal, 0.4)
    cotangents = [
        torch.randn(x.shape, dtype=torch.float64).to(y.dtype) for x, y in zip(want, got, strict=True)
    ]
    grads = torch.autograd.grad(got, operands, cotangents)
    exact = torch.autograd.grad(want, wide, [x.double() for x in cotangents])
    name = str(dtype).removeprefix("torch.")
    assert [x.dtype for x in (got[0], *grads)] == [dtype] * 4
    budget.check("out", problems.array(got[0]), problems.array(want[0]), name, rounded_weights=True)
    # PyTorch's own kernel approximates so the exponentials of 16-bit operands that fill a vector.
    powers = 2.0**-14 if dtype.itemsize == 2 else 0.0
    precision = "float64" if name == "float64" else "float32"
    lse, exact_lse = map(problems.array, (got[1], want[1]))
    budget.check("lse", lse, exact_lse, precision, powers=powers)
    for label, grad, true in zip(("query", "key", "value"), grads, exact, strict=True):
        budget.check(label, problems.array(grad), problems.array(true), name, rounded_weights=True)


def parts(count, gradients=True):
    torch.manual_seed(1)
    query = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=gradients)
    keys = [torch.randn(2, n + 2, 3, 4, dtype=torch.float64, requires_grad=gradients) for n in range(count)]
    values = [torch.randn(2, n + 2, 3, 5, dtype=torch.float64, requires_grad=gradients) for n in range(count)]
    return query, keys, values


@pytest.mark.parametrize("count", [1, 2, 5])
def test_merging_is_attention_over_all_keys(count):
    query, keys, values = parts(count)
    each = [na.attention(query, key, value, return_lse=True) for key, value in zip(keys, values, strict=True)]
    got = na.merge_attentions(*zip(*each, strict=True))
    want = na.attention(query, torch.cat(keys, 1), torch.cat(values, 1), return_lse=True)
    leaves = (query, *keys, *values)
    cotangents = [torch.randn_like(x) for x in want]
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)
    for x, y in zip(
        torch.autograd.grad(got, leaves, cotangents),
        torch.autograd.grad(want, leaves, cotangents),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_window_and_additional_tokens_merge():
    """A neighborhood merged with dense attention over other tokens is what additional tokens do."""
    q, k, v = (torch.randn(1, 7, 6, 2, 4, dtype=torch.float64) for _ in range(3))
    more_k, more_v = (torch.randn(1, 5, 2, 4, dtype=torch.float64) for _ in range(2))
    near, near_lse = na.na2d(q, k, v, 3, return_lse=True)
    far, far_lse = na.attention(q.flatten(1, 2), more_k, more_v, return_lse=True)
    merged = na.merge_attentions([near, far.view_as(near)], [near_lse, far_lse.view_as(near_lse)])
    joint = na.na2d(q, k, v, 3, additional_keys=more_k, additional_values=more_v, return_lse=True)
    for x, y in zip(merged, joint, strict=True):
        torch.testing.assert_close(x, y)


def test_parts_without_keys():
    """They count for nothing, whatever their output holds, and nothing becomes NaN."""
    out, lse = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3)
    nothing = torch.full_like(lse, -torch.inf)
    rubbish = torch.full_like(out, torch.nan)
    leaves = [x.requires_grad_() for x in (out, lse, rubbish, nothing)]
    merged, total = na.merge_attentions([out, rubbish], [lse, nothing])
    torch.testing.assert_close(merged, out)
    torch.testing.assert_close(total, lse)
    grads = torch.autograd.grad(merged.sum() + total.sum(), leaves)
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[2].any()
    merged, total = na.merge_attentions([rubbish, rubbish], [nothing, nothing])
    assert not merged.any()
    assert (total == -torch.inf).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(merged.sum(), [rubbish, nothing]))


def test_merge_gradcheck():
    make = lambda *shape: torch.randn(shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    leaves = make(1, 2, 1, 2), make(1, 2, 1, 2), make(1, 2, 1), make(1, 2, 1)
    function = lambda a, b, x, y: na.merge_attentions([a, b], [x, y])  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_merge_keeps_the_dtype_of_outputs():
    out, lse = torch.randn(1, 3, 2, 4).bfloat16(), torch.randn(1, 3, 2)
    merged, total = na.merge_attentions([out, out], [lse, lse])
    assert (merged.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(merged, out)


def test_large_log_sum_exps_do_not_overflow():
    out = torch.ones(1, 1, 1, 1)
    merged, total = na.merge_attentions(
        [out, 3 * out], [torch.full((1, 1, 1), 1e4), torch.full((1, 1, 1), 1e4)]
    )
    assert merged.item() == 2.0
    assert total.item() == pytest.approx(1e4 + 0.6931, abs=1e-2)


def test_bad_operands():
    rows = torch.zeros(2, 8, 4, 16)
    fails(
        ValueError,
        "query [2, 8, 6, 4, 16] has 5 axes; dense attention takes [batch, tokens, heads, dim]",
        na.attention,
        *[torch.zeros(2, 8, 6, 4, 16)] * 3,
    )
    fails(
        ValueError,
        "key [2, 0, 4, 16] holds no tokens; pass at least one",
        na.attention,
        rows,
        rows[:, :0],
        rows[:, :0],
    )
    fails(ValueError, "query [2, 8, 4, 0] has head dim 0", na.attention, rows[..., :0], rows[..., :0], rows)
    fails(ValueError, "value [2, 8, 4, 0] has head dim 0", na.attention, rows, rows, rows[..., :0])
    fails(TypeError, "is_causal is 1; dense attention takes True or False", na.attention, rows, rows, rows, 1)
    fails(
        ValueError,
        "query has 4 heads, not a multiple of the 3",
        na.attention,
        rows,
        rows[..., :3, :],
        rows[..., :3, :],
    )


def test_bad_parts():
    out, lse = torch.zeros(2, 8, 4, 16), torch.zeros(2, 8, 4)
    fails(
        ValueError,
        "0 outputs and 0 log-sum-exps; pass one of each for every part",
        na.merge_attentions,
        [],
        [],
    )
    fails(TypeError, "lse 0 is of type NoneType; pass a tensor", na.merge_attentions, [out], [None])
    message = "outputs is of type torch.Tensor; pass a list with one for every part"
    fails(TypeError, message, na.merge_attentions, out, lse)
    fails(TypeError, "lses is of type torch.Tensor; pass a list", na.merge_attentions, [out], lse)
    fails(
        TypeError, "output 0 has dtype torch.int64; pass float64,", na.merge_attentions, [out.long()], [lse]
    )
    fails(ValueError, "2 outputs and 1 log-sum-exps", na.merge_attentions, [out, out], [lse])
    fails(ValueError, "part 1 has output [2, 8, 4, 8]", na.merge_attentions, [out, out[..., :8]], [lse, lse])
    fails(
        ValueError,
        "part 0 has output [2, 8, 4, 16] and log-sum-exp [2, 8, 4, 1]",
        na.merge_attentions,
        [out],
        [lse[..., None]],
    )
    fails(
        ValueError,
        "lse 1 has dtype torch.float64, lse 0 has torch.float32",
        na.merge_attentions,
        [out] * 2,
        [lse, lse.double()],
    )
