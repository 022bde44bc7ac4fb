"""Large problems of the Hopper backend that keep slopes: sampled gradients in float64, and memory."""

from math import prod

import pytest
import torch

from tests.triton.keeping import keeping, planned
from tests.triton.test_hopper_cuda import problem
from vicinal import settings
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.hopper import HOPPER
from vicinal.triton import hopper_kept_plan, hopper_plan

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("blank_is_nan")]
ALL = (True,) * 3 + (False,) * 3


def sampled_error(case, given, out, lse, grad_out, grads, count=6):
    """Largest error of gradients of some queries and keys along one axis, in float64, over their norms."""
    (axis,), group = case.axes, case.heads // case.kv_heads
    scale, worst = case.dim**-0.5, 0.0
    for token in [0, axis.length - 1, *torch.randint(axis.length, (count,)).tolist()]:
        head = token % case.heads
        own = head // group

        def rows(x, seen, head):
            return x[-1, seen, head].double()

        def slopes(queries, keys, head):
            """Weights and slopes of queries, or of one, with keys, or with one."""
            q, do, o = (rows(x, queries, head) for x in (given.query, grad_out, out))
            k, v = (rows(x, keys, head // group) for x in (given.key, given.value))
            weights = (q @ k.T * scale - lse[-1, queries, head].double()[:, None]).exp()
            return weights, weights * (do @ v.T - (do * o).sum(-1)[:, None])

        one, seen = slice(token, token + 1), axis.keys(token)
        keys = slice(seen.start, seen.stop)
        wanted = [(0, head, scale * slopes(one, keys, head)[1] @ rows(given.key, keys, own))]
        seen = axis.queries(token)
        queries = slice(seen.start, seen.stop)
        key = value = 0.0
        for member in range(own * group, (own + 1) * group):
            weights, slope = slopes(queries, one, member)
            key = key + scale * slope.T @ rows(given.query, queries, member)
            value = value + weights.T @ rows(grad_out, queries, member)
        wanted += [(1, own, key), (2, own, value)]
        for place, at, row in wanted:
            usual = grads[place].double().norm() / prod(grads[place].shape[:-1]) ** 0.5
            error = (rows(grads[place], one, at) - row).norm() / torch.maximum(row.norm(), usual)
            worst = max(worst, error.item())
    return worst


def peak(call):
    """What a call returns, and the most memory that it takes beside what is there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = call()
    torch.cuda.synchronize()
    return found, torch.cuda.max_memory_allocated() - before


@pytest.mark.xdist_group("large")
@pytest.mark.parametrize(
    "options",
    [{}, {"dim": 96, "stride": 256}, {"kv_heads": 8, "causal": True, "dtype": "float16"}, {"batch": 2}],
    ids=str,
)
def test_large_problems_keep_slopes_by_default_in_bounded_memory(options, monkeypatch):
    case = problem((32768,), 2048, **{"heads": 24, "dim": 128, **options})
    # The variable is read once.
    monkeypatch.setattr(settings, "workspace", lambda: True)
    assert hopper_kept_plan.kept(case).turns > 1
    make = lambda heads: torch.randn(  # noqa: E731
        case.batch, *case.lengths, heads, case.dim, device="cuda", dtype=getattr(torch, case.dtype)
    )
    given, grad_out = Operands(make(case.heads), make(case.kv_heads), make(case.kv_heads)), make(case.heads)
    scale = case.dim**-0.5
    out, lse = HOPPER.attend(case, given, scale)
    call = lambda: HOPPER.attend_back(case, given, out, lse, grad_out, None, scale, ALL)[:3]  # noqa: E731
    # Counters of streams, and what compiling takes, are there before.
    call()
    kept, most = peak(call)
    monkeypatch.setattr(settings, "workspace", lambda: False)
    assert hopper_kept_plan.kept(case) is None
    call()
    anew, least = peak(call)
    room = hopper_kept_plan._room(hopper_plan.three_axes(case))
    assert 0 < most - least <= room
    # Each is as far from the exact gradients as `compare` allows.
    rounding = 2 * {"bfloat16": 5e-3, "float16": 8e-4}[case.dtype]
    for one, other in zip(kept, anew, strict=True):
        assert (one.float() - other.float()).norm() < rounding * other.float().norm()
    assert sampled_error(case, given, out, lse, grad_out, kept) < 1e-2


@pytest.mark.xdist_group("large")
def test_more_than_2_31_slopes():
    case = problem((32768,), 2048, heads=48, dim=128)
    assert 48 * planned(case, 48).blocks * 64 * 64 > 2**31
    make = lambda: torch.randn(1, 32768, 48, 128, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    given, grad_out = Operands(make(), make(), make()), make()
    out, lse = HOPPER.attend(case, given, 0.1)
    results = []
    for heads in (48, 1):
        with keeping(heads):
            results.append(HOPPER.attend_back(case, given, out, lse, grad_out, None, 0.1, ALL)[:3])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    assert all(x.isfinite().all() for x in results[0])
