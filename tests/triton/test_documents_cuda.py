"""Documents of different shapes in one launch, on a GPU."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch._dynamo.testing import CompileCounterWithBackend

import vicinal.torch as na
from tests.documents import CASES, cases
from tests.torch.documents import check
from tests.triton.interpreted_documents import EXTRA, FORMS
from vicinal import Axis, Problem
from vicinal.problem import Documents
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.triton import TRITON

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
    pytest.mark.usefixtures("blank_is_nan"),
]

NEEDS = (True,) * 6
ALL = {**CASES, **EXTRA}


# Every problem compiles its own kernels, so that dtypes take turns.
DTYPES = ("float32", "float16", "bfloat16")
TURNS = [
    (name, form, DTYPES[(place + turn) % 3])
    for place, name in enumerate(ALL)
    for turn, form in enumerate(FORMS)
]


@pytest.mark.parametrize(("name", "form", "dtype"), TURNS)
def test_matches_the_oracle(name, form, dtype):
    check(FORMS[form], replace(ALL[name], dtype=dtype), rounded=dtype != "float32", device="cuda")


@pytest.mark.parametrize("share", range(6))
@pytest.mark.parametrize("form", FORMS)
def test_every_option_meets_every_other(form, share):
    # Shrinking would compile kernels for minutes; the error names the documents.
    @seed(share)
    @settings(max_examples=2, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(cases(DTYPES, (90, 14, 6)))
    def run(found):
        check(FORMS[form], found, share, rounded=found.dtype != "float32", device="cuda")

    run()


def noise(*shape, dtype=torch.bfloat16, seed=7):
    return torch.randn(shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda").to(dtype)


def attend(problem, operands):
    out, lse = TRITON.attend(problem, operands, 0.2)
    grad_out, grad_lse = noise(*out.shape, dtype=out.dtype), noise(*lse.shape, dtype=torch.float32)
    grads = TRITON.attend_back(problem, operands, out, lse, grad_out, grad_lse, 0.2, NEEDS)
    return [out, lse, *(grad for grad in grads if grad is not None)]


def problem_of(shapes, size, frame=None, **options):
    lengths = (1 << (max(extents) - 1).bit_length() for extents in zip(*shapes, strict=True))
    axes = tuple(Axis(length, kernel) for length, kernel in zip(lengths, size, strict=True))
    documents = Documents(shapes, frame, False)
    widths = {"heads": 4, "kv_heads": 2, "dim": 64, "value_dim": 64, "dtype": "bfloat16", **options}
    return Problem(axes, len(shapes), device="cuda", gradients=True, documents=documents, **widths)


def operands_of(problem):
    documents = problem.documents
    count = sum(map(torch.Size.numel, map(torch.Size, documents.shapes)))
    rows = (count,) if documents.frame is None else (problem.batch, *documents.frame)
    heads = (problem.heads, problem.kv_heads, problem.kv_heads)
    widths = (problem.dim, problem.dim, problem.value_dim)
    tensors = (noise(*rows, *pair, seed=n) for n, pair in enumerate(zip(heads, widths, strict=True)))
    return Operands(*tensors)


BITWISE = {
    "line": (((1024,), (700,), (999,), (1024,)), (255,)),
    "plane": (((64, 64), (50, 41), (33, 64)), (13, 13)),
    "volume": (((16, 24, 24), (12, 20, 31), (5, 17, 17)), (5, 7, 7)),
}


@pytest.mark.parametrize("name", BITWISE)
def test_results_are_those_of_the_fixed_shape_bit_by_bit(name):
    """Where tiles are the same: each document alone, its batch entry and its part of the gradients."""
    from vicinal.triton import plan

    shapes, size = BITWISE[name]
    problem = problem_of(shapes, size)
    operands = operands_of(problem)
    together = attend(problem, operands)
    grad_out = noise(*together[0].shape)
    grad_lse = noise(*together[1].shape, dtype=torch.float32)
    layout, same = na.VarlenLayout(shapes), [0, 0, 0]
    split = [layout.split(x) for x in (*operands[:3], grad_out, grad_lse, *together)]
    for place, shape in enumerate(shapes):
        query, key, value, flow, flow_lse, *mine = (parts[place][None] for parts in split)
        axes = tuple(map(Axis, shape, size))
        alone = replace(problem, axes=axes, batch=1, documents=None)
        out, lse = TRITON.attend(alone, Operands(query, key, value), 0.2)
        given = (mine[0].contiguous(), mine[1].contiguous(), flow.contiguous(), flow_lse.contiguous())
        grads = TRITON.attend_back(alone, Operands(query, key, value), *given, 0.2, NEEDS)
        results = ((out, lse), grads[:1], grads[1:3])
        kernels = (plan.forward, plan.query_gradient, plan.key_gradient)
        for kernel, (results_of, made) in enumerate(zip(results, ((0, 2), (2, 3), (3, 5)), strict=True)):
            boxes = [kernels[kernel](p)[:7] for p in (problem, alone)]
            if boxes[0] == boxes[1]:
                same[kernel] += 1
                for got, want in zip(mine[slice(*made)], results_of, strict=True):
                    assert torch.equal(got, want), (shape, kernel)
    assert min(same) > 0, same


@pytest.mark.parametrize("frame", [None, (70, 64)])
def test_the_same_bits_every_time(frame):
    problem = problem_of(((64, 64), (50, 41), (70, 13), (13, 13)), (13, 11), frame)
    operands = operands_of(problem)
    first = attend(problem, operands)
    for _ in range(4):
        assert all(torch.equal(x, y) for x, y in zip(first, attend(problem, operands), strict=True))


def test_no_wait_for_the_device_once_a_layout_is_known():
    layout = na.VarlenLayout([(30, 20), (17, 40), (9, 9)])
    sizes = torch.tensor(layout.shapes)
    packed = noise(layout.total_tokens, 4, 32).requires_grad_()
    padded = noise(3, 30, 40, 4, 32).requires_grad_()

    def both():
        out = na.neighborhood_attention_packed(packed, packed, packed, layout, 5)
        framed = na.na2d_varlen(padded, padded, padded, sizes, 5)
        torch.autograd.grad((out, framed), (packed, padded), (out.detach(), framed.detach()))

    both()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_graph_serves_all_layouts():
    counter = CompileCounterWithBackend("inductor")

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def step(query, key, value, layout):
        return na.neighborhood_attention_packed(query, key, value, layout, 5) * 2

    for shapes in ([40, 9, 7], [14, 30], [8, 8, 100, 6], [300, 5]):
        layout = na.VarlenLayout(shapes)
        # Of one tensor for all three, a graph would add up the gradients without rounding between.
        given = [noise(layout.total_tokens, 4, 32, seed=n).requires_grad_() for n in range(3)]
        out = step(*given, layout)
        grads = torch.autograd.grad(out, given, torch.ones_like(out))
        want = na.neighborhood_attention_packed(*given, layout, 5) * 2
        assert torch.equal(out, want)
        wanted = torch.autograd.grad(want, given, torch.ones_like(out))
        assert all(torch.equal(x, y) for x, y in zip(grads, wanted, strict=True))
    assert counter.frame_count == 1


def test_graph_capture():
    problem = problem_of(((32, 32), (20, 31), (40, 9)), (7, 7), (40, 32))
    operands = operands_of(problem)
    attend(problem, operands)
    graph, results = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        out, lse = TRITON.attend(problem, operands, 0.2)
        results = [out, lse, *TRITON.attend_back(problem, operands, out, lse, out, lse, 0.2, NEEDS)[:3]]
    operands.query.copy_(noise(*operands.query.shape, seed=3))
    graph.replay()
    out, lse = TRITON.attend(problem, operands, 0.2)
    again = [out, lse, *TRITON.attend_back(problem, operands, out, lse, out, lse, 0.2, NEEDS)[:3]]
    assert all(torch.equal(x, y) for x, y in zip(results, again, strict=True))


@pytest.mark.xdist_group("large")
def test_more_than_two_to_the_31_elements():
    shapes, heads = ((2**21,), (900,), (1100,)), 4
    problem = problem_of(shapes, (5,), heads=heads, kv_heads=heads, dim=256, value_dim=256)
    operands = operands_of(problem)
    found = attend(problem, operands)
    tail = replace(problem, batch=2, documents=Documents(shapes[1:], None, False))
    last = Operands(*(x[-2000:] for x in operands[:3]))
    out, lse = TRITON.attend(tail, last, 0.2)
    grad_out, grad_lse = noise(*found[0].shape), noise(*found[1].shape, dtype=torch.float32)
    grads = TRITON.attend_back(tail, last, out, lse, grad_out[-2000:], grad_lse[-2000:], 0.2, NEEDS)
    for got, want in zip(found, (out, lse, *grads[:3]), strict=True):
        assert want is not None
        assert torch.equal(got[-2000:], want)
