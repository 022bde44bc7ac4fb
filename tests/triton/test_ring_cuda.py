"""Sweeps over rings on a GPU, against float64 arithmetic."""

from dataclasses import replace
from itertools import cycle
from math import prod

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from tests.triton.test_cuda import NEEDS, assert_near, check_by_reference, noise, run
from vicinal import Axis, Problem
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.reference import REFERENCE
from vicinal.torch.backends.triton import TRITON
from vicinal.triton import support

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
    pytest.mark.usefixtures("blank_is_nan"),
    pytest.mark.skipif(support.installed() != support.GLUON, reason="rings take Triton 3.6"),
]

WINDOWS = {
    "line": (Axis(300, 7),),
    "long_line": (Axis(257, 65),),
    "plane": (Axis(56, 7), Axis(61, 7)),
    "wide": (Axis(40, 9), Axis(33, 9)),
    "whole": (Axis(14, 7), Axis(14, 7)),
    "cube": (Axis(17, 3), Axis(12, 3), Axis(10, 3)),
    "brick": (Axis(9, 3), Axis(12, 5), Axis(11, 3)),
    "stride": (Axis(40, 6, 3), Axis(45, 7, 4)),
    "dilation": (Axis(57, 7, 1, 8), Axis(50, 5, 2, 9)),
    "causal": (Axis(41, 7, 1, 1, True), Axis(33, 5)),
    "causal_dilation": (Axis(41, 7, 1, 3, True), Axis(33, 5, 2, 2, True)),
    "output_stride": (Axis(65, 9, 2, 1, False, 3), Axis(40, 5, 1, 2, True, 2)),
    "even": (Axis(31, 4), Axis(30, 8)),
    "one": (Axis(1, 1), Axis(50, 3)),
}


def problem(axes, dim=32, value_dim=None, dtype="bfloat16", batch=2, heads=3, kv_heads=None):
    value_dim, kv_heads = value_dim or dim, kv_heads or heads
    return Problem(axes, batch, heads, kv_heads, dim, value_dim, dtype, "cuda", gradients=True)


def sweeps(found):
    from vicinal.triton import ring_plan

    return ring_plan.forward(found), ring_plan.query_gradient(found), ring_plan.key_gradient(found)


@pytest.mark.parametrize("dims", [(16, 16), (32, 32), (64, 64), (32, 64)], ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name, dims):
    found = problem(WINDOWS[name], *dims)
    assert any(sweeps(found))
    check_by_reference(found)


@pytest.mark.parametrize("name", ["plane", "dilation", "cube"])
def test_float16_and_grouped_heads(name):
    check_by_reference(problem(WINDOWS[name], dtype="float16", heads=4, kv_heads=2))


@pytest.mark.parametrize("name", ["plane", "wide", "cube", "dilation"])
def test_repeats_are_bitwise_equal(name):
    found = problem(WINDOWS[name], batch=8)
    assert all(sweeps(found))
    shape = (8, *found.lengths, 3, 32)
    operands = Operands(*(noise(shape, torch.bfloat16, seed) for seed in range(3)))
    first = run(found, operands)
    for _ in range(6):
        for result, x in run(found, operands).items():
            assert torch.equal(x, first[result]), result


@pytest.fixture
def few_programs(monkeypatch):
    """As where there are many more tiles than programs, which go on from one to the next."""
    from vicinal.triton import ring_plan

    monkeypatch.setattr(ring_plan, "MULTIPROCESSORS", 1)
    monkeypatch.setattr(ring_plan, "PLACES", 1)


# Besides, every other key of a sweep is seen by no output.
TURNING = {**WINDOWS, "unseen": (Axis(17, 8, 6), Axis(20, 1, 1, 3, True, 2))}


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(
    ("axes", "dim"), list(zip(TURNING.values(), cycle((32, 64, 16)), strict=False)), ids=TURNING
)
def test_programs_go_on_to_other_tiles(axes, dim):
    # Of another batch than elsewhere: plans are kept.
    found = problem(axes, dim, batch=4)
    assert any(sweep.spec.steps > 1 for sweep in sweeps(found) if sweep is not None)
    check_by_reference(found)
    check_walks(found)


@st.composite
def any_problem(draw):
    rank = draw(st.integers(1, 3))
    longest, largest = ((200, 40), (28, 9), (9, 4))[rank - 1]
    axes = []
    for _ in range(rank):
        length, size = draw(st.integers(longest // 3, longest)), draw(st.integers(1, largest))
        size = min(size, length)
        stride, dilation = draw(st.integers(1, size)), draw(st.integers(1, min(3, length // size)))
        axes.append(Axis(length, size, stride, dilation, draw(st.booleans()), draw(st.integers(1, 2))))
    dims = st.sampled_from((16, 32, 64))
    kv_heads = draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 2))
    dtype = draw(st.sampled_from(("float16", "bfloat16")))
    return problem(tuple(axes), draw(dims), draw(dims), dtype, draw(st.sampled_from((5, 6))), heads, kv_heads)


@pytest.mark.parametrize("shard", range(6))
def test_any_options(shard, request):
    if shard % 2:
        request.getfixturevalue("few_programs")

    # Shrinking would compile kernels for minutes; the error names the problem.
    @seed(shard)
    @settings(max_examples=2, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(any_problem())
    def check(found):
        # Whatever the seed, the smallest problem comes first.
        assume(prod(found.window) > 1 and all(sweeps(found)[:2]))
        check_by_reference(found, shard)
        check_walks(found)

    check()


@pytest.mark.xdist_group("large")
def test_more_than_two_to_the_31_elements():
    found = problem((Axis(1024, 3), Axis(1024, 3)), dim=64, batch=33, heads=1)
    assert all(sweeps(found))
    operands = Operands(*(noise((33, 1024, 1024, 1, 64), torch.bfloat16, seed) for seed in range(3)))
    assert operands.query.numel() > 2**31
    out, lse = TRITON.attend(found, operands, 0.2)
    grads = TRITON.attend_back(found, operands, out, lse, out, None, 0.2, NEEDS)
    last, alone = Operands(*(x[-1:] for x in operands[:3])), replace(found, batch=1)
    exact = dict(zip(("out", "lse"), TRITON.attend(alone, last, 0.2), strict=True))
    back = TRITON.attend_back(alone, last, exact["out"], exact["lse"], exact["out"], None, 0.2, NEEDS)
    names = ("out", "lse", "query", "key", "value")
    exact |= dict(zip(names[2:], back[:3], strict=True))
    assert_near(dict(zip(names, (x[-1:] for x in (out, lse, *grads[:3])), strict=True)), exact, "bfloat16")


def test_operands_that_no_sweep_can_copy():
    found = problem(WINDOWS["plane"], batch=1)
    shape = (1, *found.lengths, 3, 32)
    odd = [torch.empty(noise(shape).numel() + 1, device="cuda", dtype=torch.bfloat16)[1:] for _ in range(3)]
    operands = Operands(*(x.view(shape).copy_(noise(shape, seed=i)) for i, x in enumerate(odd)))
    assert operands.query.data_ptr() % 16
    wide = Operands(*(None if x is None else x.double() for x in operands))
    exact = Problem(found.axes, 1, 3, 3, 32, 32, "float64", "cuda", gradients=True)
    assert_near(run(found, operands), run(exact, wide, backend=REFERENCE), "bfloat16")


def test_strided_operands():
    found = problem(WINDOWS["plane"], batch=2)
    packed = noise((2, *found.lengths, 3, 3, 32), torch.bfloat16)
    views = Operands(*(packed[..., part, :, :] for part in range(3)))
    plain = Operands(*(x.contiguous() for x in views[:3]))
    exact = run(found, plain)
    for name, x in run(found, views).items():
        assert torch.equal(x, exact[name]), name


def test_only_what_is_needed():
    found = problem(WINDOWS["plane"], batch=1)
    shape = (1, *found.lengths, 3, 32)
    operands = Operands(*(noise(shape, torch.bfloat16, seed) for seed in range(3)))
    out, lse = TRITON.attend(found, operands, 0.2)
    grad = noise(shape, torch.bfloat16, 9)
    whole = TRITON.attend_back(found, operands, out, lse, grad, None, 0.2, NEEDS)
    for index in range(3):
        needs = tuple(place == index for place in range(6))
        some = TRITON.attend_back(found, operands, out, lse, grad, None, 0.2, needs)
        assert [x is not None for x in some] == list(needs)
        assert torch.allclose(some[index].float(), whole[index].float(), atol=2e-2)


def check_walks(found):
    """Split operations against float64, and twice the same; values are as wide as keys."""
    found = replace(found, value_dim=found.dim)
    x = noise((found.batch, *found.outputs, found.heads, found.dim), seed=0)
    y = noise((found.batch, *found.lengths, found.kv_heads, found.dim), seed=1)
    weights = noise((found.batch, *found.outputs, found.heads, prod(found.window)), seed=2)
    rows = [x.to(getattr(torch, found.dtype)) for x in (x, y, weights)]
    exact = walks(replace(found, dtype="float64"), REFERENCE, *(x.double() for x in rows))
    first = walks(found, TRITON, *rows)
    assert_near(first, exact, found.dtype)
    for result, x in walks(found, TRITON, *rows).items():
        assert torch.equal(x, first[result]), result


def walks(found, backend, x, y, weights):
    """`dot`, `mix` and `mix_back` of a backend."""
    each = {name: replace(found, operation=name) for name in ("dot", "mix", "mix_back")}
    return {
        "dot": backend.dot(each["dot"], x, y, None, 0.3, 7.0),
        "mix": backend.mix(each["mix"], weights, y),
        "mix_back": backend.mix_back(each["mix_back"], weights, x),
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("dim", [16, 32, 64])
@pytest.mark.parametrize("name", WINDOWS)
def test_walks(name, dim, dtype):
    from vicinal.triton import ring_plan

    found = problem(WINDOWS[name], dim, dtype=dtype)
    kinds = ("dot", "mix", "mix_back")
    assert any(ring_plan.walk(replace(found, operation=kind)) for kind in kinds)
    check_walks(found)


def test_walks_of_grouped_heads():
    check_walks(problem(WINDOWS["plane"], heads=4, kv_heads=2))


@pytest.mark.parametrize("name", ["plane", "cube", "dilation", "causal", "output_stride", "stride"])
def test_bias_of_scores(name):
    found = replace(problem(WINDOWS[name], heads=4, kv_heads=2), operation="dot", bias=True)
    x = noise((2, *found.outputs, 4, 32), torch.bfloat16, 1)
    y = noise((2, *found.lengths, 2, 32), torch.bfloat16, 2)
    bias = noise((4, *(2 * size - 1 for size in found.window)), seed=3)
    exact = REFERENCE.dot(replace(found, dtype="float64"), x.double(), y.double(), bias.double(), 0.3, 7.0)
    assert_near({"dot": TRITON.dot(found, x, y, bias, 0.3, 7.0)}, {"dot": exact}, "bfloat16")
