"""Every portable kernel against the oracle, in Triton's interpreter: needs TRITON_INTERPRET=1."""

import mmap
import sys
from dataclasses import replace
from functools import partial

import hypothesis
import torch
from hypothesis import strategies as st

from tests import budget, oracle
from tests.torch import problems as make
from tests.triton import interpreting
from vicinal import Axis, Problem, catalog
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.triton import TRITON

# What stands in slots without a key; no product of the tests is as large.
HOLE = -1000.0


def sampled(problem):
    return (slice(None), *(slice(None, None, axis.output_stride) for axis in problem.axes))


def amid_nans(x):
    """`x` amid NaN: what reads outside shows, even under a weight of 0."""
    memory = x.new_full((3, *x.shape), float("nan"))
    memory[1] = x
    return memory[1]


def doubled(x):
    """`x` amid NaN, not contiguous."""
    return amid_nans(torch.stack([x, x], -2))[..., 0, :]


# Linux sets memory aside for a page of it once that is written.
UNRESERVED = 0x4000


def far(x, axis):
    """`x`, whose first and last element along an axis are over 2**31 elements apart."""
    rows = x.movedim(axis, 0)
    count, step = len(rows), 2**31 // (len(rows) - 1) + rows[0].numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | UNRESERVED
    memory = torch.frombuffer(mmap.mmap(-1, count * step * x.itemsize, flags), dtype=x.dtype)
    placed = memory.view(count, step)[:, : rows[0].numel()]
    placed.copy_(rows.flatten(1))
    return placed.unflatten(1, rows.shape[1:]).movedim(0, axis)


def operands(problem, seed, placed=doubled):
    """Operands of the public function, and as a backend gets them, none of them contiguous."""
    tensors = make.operands(problem, seed, gradients=False)
    strided = {name: (doubled if name == "bias" else placed)(x) for name, x in tensors.items()}
    strided["query"] = strided["query"][sampled(problem)]
    return tensors, Operands(**strided)


def noise(shape, seed, dtype=torch.float32):
    return amid_nans(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def check_attend(problem, seed=0, scale=0.3, placed=doubled):
    tensors, given = operands(problem, seed, placed)
    out, lse = TRITON.attend(problem, given, scale)
    grad_out, grad_lse = noise(out.shape, seed + 1, out.dtype), noise(lse.shape, seed + 2)
    if placed is not doubled:
        grad_out = placed(grad_out)
    grads = TRITON.attend_back(problem, given, out, lse, grad_out, grad_lse, scale, (True,) * 6)
    exact = make.exact(problem, tensors, scale, make.array(grad_out), make.array(grad_lse))
    rounded = problem.dtype != "float32"
    budget.check("out", make.array(out), exact.out, problem.dtype, rounded)
    budget.check("lse", make.array(lse), exact.lse, "float32")
    for name, grad in grads._asdict().items():
        if name not in tensors:
            assert grad is None
            continue
        wanted = getattr(exact, name)
        wanted = wanted[sampled(problem)] if name == "query" else wanted
        budget.check(name, make.array(grad), wanted, problem.dtype, rounded)


def check_flows(problem, scale=0.3):
    """Gradients where only one result has any, and where not all are needed."""
    tensors, given = operands(problem, 0)
    out, lse = TRITON.attend(problem, given, scale)
    grad_out, grad_lse = noise(out.shape, 1, out.dtype), noise(lse.shape, 2)
    for flow in ((grad_out, None), (None, grad_lse), (torch.stack([grad_out] * 2, -1)[..., 0], grad_lse)):
        grads = TRITON.attend_back(problem, given, out, lse, *flow, scale, (True,) * 6)
        arrays = [make.array(x * 0 if y is None else y) for x, y in zip((out, lse), flow, strict=True)]
        exact = make.exact(problem, tensors, scale, *arrays)
        for name in tensors:
            budget.check(name, make.array(getattr(grads, name)), getattr(exact, name), problem.dtype)
    for place, whole in enumerate(grads):
        needs = tuple(other == place for other in range(6))
        some = TRITON.attend_back(problem, given, out, lse, *flow, scale, needs)
        assert torch.equal(some[place], whole)
        assert all(x is None for x in some[:place] + some[place + 1 :])


def check_walks(problem, seed=0, scale=0.3, placed=doubled):
    tensors, given = operands(problem, seed, placed)
    win = oracle.window(problem.rank, **make.window(problem))
    rounded = problem.dtype != "float32"
    bias = None if given.bias is None else make.array(given.bias)
    walk = replace(problem, operation="dot", extra=0)
    weights = TRITON.dot(walk, given.query, given.key, given.bias, scale, HOLE)
    exact = oracle.dot(
        make.array(tensors["query"])[sampled(problem)], make.array(given.key), win, scale, bias, HOLE
    )
    budget.check("dot", make.array(weights), exact, problem.dtype, rounded)
    walk = replace(walk, operation="mix", dim=problem.value_dim, bias=False)
    # A slot without a key is never read: its NaN reaches no result.
    holes = make.array(weights) == HOLE
    poisoned = weights.masked_fill(torch.from_numpy(holes), float("nan"))
    clean = make.array(weights.masked_fill(torch.from_numpy(holes), 0.0))
    mixed = TRITON.mix(walk, poisoned, given.value)
    exact = oracle.mix(clean, make.array(given.value), win)
    budget.check("mix", make.array(mixed), exact, problem.dtype, rounded)
    x = noise((*given.query.shape[:-1], problem.value_dim), seed + 3, given.query.dtype)
    if placed is not doubled:
        x = placed(x)
    back = TRITON.mix_back(replace(walk, operation="mix_back"), poisoned, x)
    exact = oracle.mix_back(clean, make.array(x), problem.lengths, problem.kv_heads, win)
    budget.check("mix_back", make.array(back), exact, problem.dtype, rounded)


@st.composite
def any_axis(draw, longest):
    length = draw(st.integers(1, longest))
    size = draw(st.integers(1, length))
    return Axis(
        length,
        size,
        draw(st.integers(1, size)),
        draw(st.integers(1, length // size)),
        draw(st.booleans()),
        draw(st.integers(1, 3)),
    )


@st.composite
def any_problem(draw):
    rank = draw(st.integers(1, 3))
    axes = tuple(draw(any_axis((18, 6, 3)[rank - 1])) for _ in range(rank))
    kv_heads = draw(st.integers(1, 2))
    return Problem(
        axes,
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=draw(st.integers(1, 20)),
        value_dim=draw(st.integers(1, 20)),
        dtype=draw(st.sampled_from(["float32", "float16"])),
        bias=draw(st.booleans()),
        extra=draw(st.sampled_from([0, 1, 19])),
        gradients=True,
    )


def check(name):
    # The interpreter multiplies no bfloat16, and Triton has no float64 products.
    problem = replace(catalog.named(name).problem, gradients=True)
    check_attend(problem)
    check_walks(problem)


def check_far():
    """Operands that need offsets of 64 bits, along each axis and between heads."""
    line = Problem((Axis(7, 3),), 2, 2, 2, 4, 4, "float16", gradients=True)
    plane = Problem(
        (Axis(5, 3, 2), Axis(6, 2, 1, 2, True)), 2, 4, 2, 4, 6, "float16", bias=True, extra=3, gradients=True
    )
    for problem, axes in ((line, (1, -2)), (plane, (1, 2, -2))):
        for axis in axes:
            placed = partial(far, axis=axis)
            check_attend(problem, placed=placed)
            check_walks(problem, placed=placed)


def check_any(count):
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(any_problem(), st.integers(0, 99), st.sampled_from([0.3, 0.0, -0.7]))
    def test(problem, seed, scale):
        hypothesis.note(str(problem))
        check_attend(problem, seed, scale)
        check_walks(problem, seed, scale)

    test()


if __name__ == "__main__":
    interpreting.start()
    if sys.argv[1] == "any":
        check_any(int(sys.argv[2]))
    elif sys.argv[1] == "far":
        check_far()
    elif sys.argv[1] == "flows":
        check_flows(Problem((Axis(5, 3), Axis(4, 3)), 2, 2, 1, 4, 4, bias=True, extra=3, gradients=True))
    else:
        for case in sys.argv[1:]:
            check(case)
