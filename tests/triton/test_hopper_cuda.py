"""The Hopper backend against the float64 oracle, on a GPU of compute capability 9.0."""

from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from tests import budget, oracle
from vicinal import Axis, Problem
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.hopper import HOPPER
from vicinal.triton import hopper_plan

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("blank_is_nan")]


def problem(lengths, size, stride=1, dilation=1, causal=False, output_stride=1, **options):
    rank = len(lengths)
    spread = [
        x if isinstance(x, tuple) else (x,) * rank for x in (size, stride, dilation, causal, output_stride)
    ]
    axes = tuple(Axis(*numbers) for numbers in zip(lengths, *spread, strict=True))
    options = {"heads": 2, "dim": 64, "dtype": "bfloat16", "device": "cuda"} | options
    options.setdefault("kv_heads", options["heads"])
    options.setdefault("value_dim", options["dim"])
    return Problem(axes, gradients=True, **options)


CASES = (
    problem((300,), 65),
    problem((257,), 64, dim=128, batch=2),
    problem((256,), 100, stride=16, dim=32, dtype="float16"),
    problem((333,), 90, causal=True, heads=4, kv_heads=2, dim=128),
    problem((301,), 77, stride=13, causal=True, dim=32, batch=3),
    problem((150,), 20, stride=20),
    problem((129,), 129, causal=True, dtype="float16"),
    problem((200,), 30, output_stride=3),
    problem((190,), 2, output_stride=5, stride=2),
    problem((31, 37), (13, 16), dim=128),
    problem((32, 32), 9, stride=(4, 8), heads=6, kv_heads=1),
    problem((24, 41), (8, 11), stride=(3, 5), causal=(True, False), dtype="float16", dim=128),
    problem((29, 23), (7, 9), causal=True, dim=32),
    problem((20, 31), (20, 9), dim=64, value_dim=128),
    problem((25, 26), (5, 8), dim=128, value_dim=32, batch=2),
    problem((300,), 65, stride=3, dim=32, value_dim=64, causal=True),
    problem((25, 40), (9, 28), dim=64, value_dim=32),
    problem((30, 30), 10, output_stride=(2, 3), causal=(False, True)),
    problem((22, 21), (1, 8), dim=96),
    problem((22, 21), 7, dim=80, dtype="float16", batch=2),
    problem((22, 21), 7, dim=48, value_dim=40),
    problem((33, 17), (8, 7), dim=256),
    problem((33, 17), (8, 7), dim=8, value_dim=256, causal=True),
    problem((7, 12, 11), (3, 6, 5), dim=128),
    problem((8, 9, 10), (4, 4, 4), stride=(4, 2, 1), batch=2, heads=4, kv_heads=2),
    problem((7, 9, 10), (5, 4, 6), causal=(True, False, True), batch=3, dim=96, dtype="float16"),
    problem((6, 7, 8), (2, 3, 4), output_stride=(1, 2, 3), batch=2),
    problem((6, 16, 16), (6, 8, 8), stride=(1, 8, 8), dim=256, heads=1),
)
NARROW = (
    problem((400,), 300),
    problem((950,), 290, stride=3, causal=True, heads=4, kv_heads=2, dtype="float16"),
    problem((24, 24), (13, 17), causal=(True, False), batch=2),
    problem((23, 47), (13, 29), dim=32, value_dim=64, heads=4, kv_heads=2),
    problem((48, 24), (19, 17), dilation=(2, 1), dim=32),
    problem((6, 12, 16), (5, 9, 5), output_stride=(1, 2, 1)),
    problem((64, 48), (48, 32), stride=16),
)
DILATED = (
    problem((260,), 50, dilation=4),
    problem((261,), 30, dilation=3, causal=True, dim=128, batch=2),
    problem((263,), 20, dilation=7, stride=4, heads=4, kv_heads=2, dtype="float16"),
    problem((33, 29), (7, 5), dilation=(3, 4), dim=128),
    problem((32, 32), (8, 12), dilation=(1, 2), stride=(2, 3), causal=(True, False)),
    problem((8, 13, 15), (4, 5, 3), dilation=(2, 1, 5), batch=2, dim=96, value_dim=64),
)


def operands(case, seed=0, tokens="outputs"):
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).cuda()  # noqa: E731
    return Operands(
        make(case.batch, *getattr(case, tokens), case.heads, case.dim),
        make(case.batch, *case.lengths, case.kv_heads, case.dim),
        make(case.batch, *case.lengths, case.kv_heads, case.value_dim),
    )


def cotangents(out, lse, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype).cuda() for x in (out, lse)
    ]


def array(x):
    return x.detach().cpu().double().numpy()


def exact(case, given, scale, grad_out=None, grad_lse=None):
    """The oracle's answer, with the gradient of the sampled queries."""
    steps = tuple(axis.output_stride for axis in case.axes)
    sampled = (slice(None), *(slice(None, None, step) for step in steps))
    query = np.zeros((case.batch, *case.lengths, case.heads, case.dim))
    query[sampled] = array(given.query)
    rules = [
        tuple(getattr(axis, name) for axis in case.axes) for name in ("size", "stride", "dilation", "causal")
    ]
    answer = oracle.attend(
        query, array(given.key), array(given.value), oracle.Window(*rules, steps), scale,
        grad_out=grad_out, grad_lse=grad_lse,
    )  # fmt: skip
    return answer if answer.query is None else answer._replace(query=answer.query[sampled])


def compare(name, actual, wanted, dtype):
    """Within the budget, and near it on average: rounding errors do not add up."""
    actual = array(actual)
    budget.check(name, actual, wanted, dtype, rounded_weights=True)
    error = np.linalg.norm(actual - wanted) / max(np.linalg.norm(wanted), 1e-6)
    assert error < {"bfloat16": 5e-3, "float16": 8e-4}[dtype], f"{name}: relative error {error:.2e}"


def check(case, scale=None, seed=0, given=None):
    scale = case.dim**-0.5 if scale is None else scale
    given = operands(case, seed) if given is None else given
    out, lse = HOPPER.attend(case, given, scale)
    grad_out, grad_lse = cotangents(out, lse)
    grads = HOPPER.attend_back(case, given, out, lse, grad_out, grad_lse, scale, (True,) * 3 + (False,) * 3)
    answer = exact(case, given, scale, array(grad_out), array(grad_lse))
    compare("out", out, answer.out, case.dtype)
    assert np.abs(array(lse) - answer.lse).max() < 2e-5 * max(1, np.abs(answer.lse).max())
    for name, grad, operand in zip(("query", "key", "value"), grads, given, strict=False):
        assert grad.shape == operand.shape
        assert grad.dtype == operand.dtype
        compare(f"gradient of {name}", grad, getattr(answer, name), case.dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_oracle(case):
    check(case)


@pytest.mark.parametrize("case", DILATED, ids=str)
def test_dilation_matches_the_oracle(case):
    check(case)


@pytest.mark.parametrize("case", NARROW, ids=str)
def test_three_warpgroups_match_the_oracle(case, monkeypatch):
    # Otherwise for tiles that walk over many boxes.
    monkeypatch.setattr(hopper_plan, "WALK", 0)
    monkeypatch.setattr(hopper_plan, "STARTING", 0)
    assert hopper_plan.forward(case).spec.warpgroups == 3
    assert hopper_plan.query_gradient(case, True, True).spec.warpgroups == 3
    assert all(plan.spec.lags for plan in hopper_plan.key_gradients(case, True, True))
    check(case)


@st.composite
def any_problem(draw):
    rank = draw(st.integers(1, 3))
    longest = (400, 30, 10)[rank - 1]
    lengths = [draw(st.integers(longest // 2, longest)) for _ in range(rank)]
    dilations = [draw(st.integers(1, 2)) for _ in lengths]
    sizes = [draw(st.integers(2, length // apart)) for length, apart in zip(lengths, dilations, strict=True)]
    many = lambda one: tuple(draw(one) for _ in lengths)  # noqa: E731
    strides = tuple(draw(st.integers(1, size)) for size in sizes)
    # No output stride on a dilated axis.
    steps = tuple(1 if apart > 1 else draw(st.integers(1, 3)) for apart in dilations)
    dims = st.sampled_from((8, 32, 48, 64, 96, 128, 160, 256))
    kv_heads = draw(st.integers(1, 2))
    return problem(
        lengths,
        tuple(sizes),
        strides,
        tuple(dilations),
        many(st.booleans()),
        steps,
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=draw(dims),
        value_dim=draw(dims),
        dtype=draw(st.sampled_from(("float16", "bfloat16"))),
    )


@pytest.mark.parametrize("shard", range(6))
def test_any_options(shard):
    # Shrinking would compile kernels for minutes; the error names the problem.
    @seed(shard)
    @settings(max_examples=2, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(any_problem())
    def check_any(case):
        # Whatever the seed, the smallest problem comes first.
        assume(prod(case.window) > 8)
        check(case)

    check_any()


@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_boxes_of_several_panels_and_outer_extents(dim):
    # Plain Triton's descriptors give wrong rows for boxes wider than a swizzle panel of 64 with more than one
    # outer extent, once registers hold them; these kernels flatten boxes in shared memory.
    case = problem((9, 12, 14), (4, 6, 7), stride=(1, 2, 1), dim=dim)
    spec = hopper_plan.forward(case).spec
    assert sum(side > 1 for side in spec.rows) > 1
    check(case)


@pytest.mark.parametrize("scale", [0.0, -0.1, 1.0])
def test_any_scale(scale):
    check(problem((150,), 40, dim=32), scale=scale)


def strided(dim):
    """Operands of one shape: parts of one tensor, transposed, expanded, and at an odd address."""
    shape = 2, 18, 20, 3, dim

    def draw(*shape):
        return torch.randn(*shape, device="cuda").bfloat16()

    packed = draw(2, 18, 20, 3, 3, dim)
    expanded = draw(1, *shape[1:]).expand(2, -1, -1, -1, -1)
    shifted = draw(prod(shape) + 1)[1:].view(shape)
    return (
        Operands(*packed.unbind(3)),
        Operands(*(draw(2, 3, 18, 20, dim).permute(0, 2, 3, 1, 4) for _ in range(3))),
        Operands(packed[..., 0, :], expanded, expanded),
        Operands(shifted, packed[..., 1, :], packed[..., 2, :]),
    )


@pytest.mark.parametrize("dilation", [1, 2])
def test_strided_operands(dilation):
    case = problem((18, 20), (5, 6), dilation=dilation, heads=3, batch=2)
    for some in strided(64):
        check(case, given=some)


def test_outputs_at_any_address():
    case = problem((140,), 50, dim=48)
    given = operands(case)
    out, lse = HOPPER.attend(case, given, 0.1)
    shifted = out.new_empty(out.numel() + 1)[1:].view_as(out).copy_(out)
    grads = cotangents(out, lse)
    needs = (True,) * 3 + (False,) * 3
    wanted, found = (HOPPER.attend_back(case, given, x, lse, *grads, 0.1, needs) for x in (out, shifted))
    assert all(torch.equal(*pair) for pair in zip(wanted[:3], found[:3], strict=True))


def check_missing(case):
    """Gradients where nothing flows into one of the results."""
    given, scale = operands(case), case.dim**-0.5
    out, lse = HOPPER.attend(case, given, scale)
    grad_out, grad_lse = cotangents(out, lse)
    for outs, lses in ((grad_out, None), (None, grad_lse)):
        grads = HOPPER.attend_back(case, given, out, lse, outs, lses, scale, (True,) * 3 + (False,) * 3)
        zero = np.zeros(out.shape) if outs is None else array(outs)
        answer = exact(case, given, scale, zero, None if lses is None else array(lses))
        for name, grad in zip(("query", "key", "value"), grads, strict=False):
            if np.abs(getattr(answer, name)).max() == 0:
                assert not grad.any()
            else:
                compare(name, grad, getattr(answer, name), case.dtype)


def test_missing_gradients_are_zero():
    check_missing(problem((140,), 50, heads=4, kv_heads=2))


@pytest.mark.parametrize("dims", [(128, 128), (64, 64), (32, 64), (64, 32), (32, 32)])
def test_only_what_is_needed(dims):
    case = problem((21, 42), (9, 25), dim=dims[0], value_dim=dims[1])
    given = operands(case)
    out, lse = HOPPER.attend(case, given, 0.1)
    grad_out, _ = cotangents(out, lse)
    whole = HOPPER.attend_back(case, given, out, lse, grad_out, None, 0.1, (True,) * 3 + (False,) * 3)
    for needs in product((True, False), repeat=3):
        some = HOPPER.attend_back(case, given, out, lse, grad_out, None, 0.1, needs + (False,) * 3)
        for need, one, all_ in zip(needs, some, whole, strict=False):
            assert (one is None) if not need else torch.equal(one, all_)


@pytest.mark.parametrize("case", [CASES[3], CASES[9], CASES[23]], ids=str)
def test_repeats_are_bitwise_equal(case):
    given = operands(case)
    results = []
    for _ in range(5):
        out, lse = HOPPER.attend(case, given, 0.1)
        grad_out, grad_lse = cotangents(out, lse)
        grads = HOPPER.attend_back(case, given, out, lse, grad_out, grad_lse, 0.1, (True,) * 3 + (False,) * 3)
        results.append([out, lse, *grads[:3]])
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


@pytest.mark.parametrize(
    "case",
    [
        problem((1000,), 150, heads=24, dim=128),
        problem((70, 75), 21, heads=14, kv_heads=7, causal=(True, False), dim=128),
        problem((18, 21, 32), (7, 9, 8), stride=(1, 3, 4), heads=10, dim=64),
        problem((40, 44), 12, heads=24, dim=256, value_dim=64),
    ],
    ids=str,
)
def test_programs_go_on_to_other_tiles(case):
    # Those of one head are fewer than a GPU computes at a time.
    given, group = operands(case), case.heads // case.kv_heads
    one, needs = replace(case, heads=group, kv_heads=1), (True,) * 3 + (False,) * 3
    out, lse = HOPPER.attend(case, given, 0.1)
    grad_out, grad_lse = cotangents(out, lse)
    grads = HOPPER.attend_back(case, given, out, lse, grad_out, grad_lse, 0.1, needs)
    for head in range(case.kv_heads):
        rows = lambda x: x[..., head * group : (head + 1) * group, :].contiguous()  # noqa: B023, E731 called here
        columns = lambda x: x[..., head : head + 1, :].contiguous()  # noqa: B023, E731 called here
        own = Operands(rows(given.query), columns(given.key), columns(given.value))
        own_out, own_lse = HOPPER.attend(one, own, 0.1)
        own_grad_lse = rows(grad_lse[..., None])[..., 0]
        found = HOPPER.attend_back(one, own, own_out, own_lse, rows(grad_out), own_grad_lse, 0.1, needs)
        assert torch.equal(own_out, rows(out))
        assert torch.equal(own_lse, rows(lse[..., None])[..., 0])
        assert torch.equal(found[0], rows(grads[0]))
        assert torch.equal(found[1], columns(grads[1]))
        assert torch.equal(found[2], columns(grads[2]))


def test_scores_far_below_zero_leave_no_infinity_past_the_end():
    case = problem((65,), 64, dim=32, heads=1)
    given = operands(case)
    given = given._replace(query=torch.full_like(given.query, 8.0), key=torch.full_like(given.key, -8.0))
    out, lse = HOPPER.attend(case, given, 0.2)
    grads = HOPPER.attend_back(case, given, out, lse, *cotangents(out, lse), 0.2, (True,) * 3 + (False,) * 3)
    assert lse.max() < -300
    assert all(x.isfinite().all() for x in (out, lse, *grads[:3]))


def test_a_graph_captures_forward_and_backward():
    case = problem((40, 44), 12, dim=128)
    given, other = operands(case), operands(case, seed=7)
    needs = (True,) * 3 + (False,) * 3
    out, lse = HOPPER.attend(case, given, 0.1)
    grad_out, grad_lse = cotangents(out, lse)
    HOPPER.attend_back(case, given, out, lse, grad_out, grad_lse, 0.1, needs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = HOPPER.attend(case, given, 0.1)
        grads = HOPPER.attend_back(case, given, out, lse, grad_out, grad_lse, 0.1, needs)
    for x, y in zip(given[:3], other[:3], strict=True):
        x.copy_(y)
    graph.replay()
    wanted, wanted_lse = HOPPER.attend(case, other, 0.1)
    wanted_grads = HOPPER.attend_back(case, other, wanted, wanted_lse, grad_out, grad_lse, 0.1, needs)
    assert torch.equal(out, wanted)
    assert torch.equal(lse, wanted_lse)
    assert all(torch.equal(x, y) for x, y in zip(grads[:3], wanted_grads[:3], strict=True))


@pytest.mark.xdist_group("large")
@pytest.mark.parametrize(("size", "dilation"), [(128, 1), (128, 2), (64, 7)])
def test_more_than_65535_batches_and_2_31_elements(size, dilation):
    # 70,000 x 480 x 64 is over 2**31; the last entry is checked.
    case = problem((480,), size, dilation=dilation, heads=1, dim=64, batch=70_000)
    given = Operands(
        *(torch.randn(70_000, 480, 1, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    )
    out, lse = HOPPER.attend(case, given, 0.125)
    grads = HOPPER.attend_back(case, given, out, lse, out, None, 0.125, (True,) * 3 + (False,) * 3)
    one = replace(case, batch=1)
    last = Operands(*(x[-1:].contiguous() for x in given[:3]))
    wanted, wanted_lse = HOPPER.attend(one, last, 0.125)
    wanted_grads = HOPPER.attend_back(
        one, last, wanted, wanted_lse, wanted, None, 0.125, (True,) * 3 + (False,) * 3
    )
    assert torch.equal(out[-1:], wanted)
    assert torch.equal(lse[-1:], wanted_lse)
    assert all(torch.equal(x[-1:], y) for x, y in zip(grads[:3], wanted_grads[:3], strict=True))


def test_takes_large_windows_and_refuses_small_ones():
    assert HOPPER.refusal(problem((256, 256), 80, dim=128)) is None
    assert HOPPER.refusal(problem((56, 56), 7)).startswith("the window is small")
