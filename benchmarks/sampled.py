"""Rows of outputs and gradients, checked in float64 where all of them would take too long."""

from itertools import product
from math import prod

import torch

from vicinal import Problem
from vicinal.torch.backends.base import Operands


def indices(per_axis, lengths) -> torch.Tensor:
    """Flat indices of a product of ranges."""
    flat = [sum(i * prod(lengths[a + 1 :]) for a, i in enumerate(at)) for at in product(*per_axis)]
    return torch.tensor(flat, device="cuda")


def unflat(flat: int, lengths) -> list[int]:
    at = []
    for length in reversed(lengths):
        at.insert(0, flat % length)
        flat //= length
    return at


def worst(case: Problem, given: Operands, out, lse, grad_out, grads: Operands) -> float:
    """Largest relative error of sampled rows of outputs and gradients."""
    scale, group, errors = case.dim**-0.5, case.heads // case.kv_heads, []
    flat = lambda x: x.flatten(1, case.rank)[0].double()  # noqa: E731
    q, k, v, o, do, dq, dk, dv = map(flat, (*given[:3], out, grad_out, *grads[:3]))
    lse = lse.flatten(1, case.rank)[0].double()
    delta = (o * do).sum(-1)

    def off(tensor, at, row):
        # Rows near zero, as the gradient of a query that sees one key, are held against a usual row.
        usual = tensor.norm() / (tensor.numel() / row.numel()) ** 0.5
        errors.append(((tensor[at] - row).norm() / torch.maximum(row.norm(), usual)).item())

    tokens = prod(case.lengths)
    for token in [0, tokens - 1, *torch.randint(tokens, (6,)).tolist()]:
        head = token % case.heads
        at = unflat(token, case.lengths)
        seen = indices([axis.keys(i) for axis, i in zip(case.axes, at, strict=True)], case.lengths)
        keys, values = k[seen, head // group], v[seen, head // group]
        scores = keys @ q[token, head] * scale
        weights = scores.softmax(0)
        off(o, (token, head), weights @ values)
        errors.append((lse[token, head] - scores.logsumexp(0)).abs().item())
        slopes = weights * (values @ do[token, head] - delta[token, head])
        off(dq, (token, head), scale * slopes @ keys)
        seen = indices([axis.queries(i) for axis, i in zip(case.axes, at, strict=True)], case.lengths)
        kv_head, sums = head // group, [0.0, 0.0]
        for member in range(kv_head * group, (kv_head + 1) * group):
            weights = (q[seen, member] @ k[token, kv_head] * scale - lse[seen, member]).exp()
            slopes = weights * (do[seen, member] @ v[token, kv_head] - delta[seen, member])
            sums = [sums[0] + scale * slopes @ q[seen, member], sums[1] + weights @ do[seen, member]]
        off(dk, (token, kv_head), sums[0])
        off(dv, (token, kv_head), sums[1])
    return max(errors)
