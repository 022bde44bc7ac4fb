"""Gradients of the Hopper backend that keep slopes, against the float64 oracle and in every order of streams.

Small problems keep them here as well, of some heads of keys at a time; what their memory held before is NaN.
"""

import threading
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from tests import budget
from tests.triton import test_hopper_cuda as hopper
from tests.triton.keeping import keeping, planned
from tests.triton.test_hopper_cuda import array, cotangents, exact, operands, problem
from vicinal.torch import na1d
from vicinal.torch.backends.hopper import HOPPER
from vicinal.triton import hopper_plan

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("blank_is_nan")]
ALL = (True,) * 3 + (False,) * 3
# Clock cycles, over a millisecond.
LATE = 3_000_000
# Heads of keys at a time.
CASES = (
    (problem((300,), 65, heads=4, kv_heads=2, dim=128), 1),
    (problem((257,), 64, dim=128, batch=2), 3),
    (problem((256,), 100, stride=16, dim=96, dtype="float16"), 2),
    (problem((512,), 128, stride=128, dim=128, value_dim=96, heads=3), 1),
    (problem((333,), 90, causal=True, heads=4, kv_heads=2, dim=128, value_dim=96, dtype="float16"), 1),
    (problem((129,), 129, causal=True, dim=112, value_dim=104), 1),
    (problem((1500,), 700, heads=3, dim=96, value_dim=128), 2),
    (problem((31, 37), (13, 16), dim=128), 1),
    (problem((32, 32), 9, stride=(4, 8), heads=6, kv_heads=1, dim=96), 1),
    (problem((24, 41), (8, 11), stride=(3, 5), causal=(True, False), dtype="float16", dim=128, batch=3), 2),
    (problem((61, 77), (23, 30), causal=(False, True), dim=96, value_dim=128, kv_heads=1), 1),
    (problem((16, 1, 20), (5, 1, 9), batch=2, dim=104, value_dim=96), 1),
    (problem((1500,), 700, heads=3, dim=256), 2),
    (problem((31, 37), (13, 16), heads=4, kv_heads=2, dim=256, value_dim=128), 1),
    (problem((9, 12, 14), (3, 5, 7), causal=(True, False, False), dim=256), 1),
    (problem((24, 41), (8, 11), stride=(3, 5), causal=(True, False), dim=208, value_dim=256, batch=3), 2),
)
TURNS = (
    CASES[5][0],
    problem((140,), 50, heads=5, batch=2, dim=128),
    problem((20, 42), (9, 25), heads=4, dim=96),
    problem((20, 42), (9, 25), heads=4, dim=256),
)


@pytest.fixture
def turns(monkeypatch):
    """Parts and rooms of every backward; parts find NaN, and those beside the current stream begin late."""
    from vicinal.triton import hopper_attention

    take, taken = hopper_attention.taking_turns, []

    def late(part, number, room):
        if number % 2:
            torch.cuda._sleep(LATE)
        part(room.fill_(float("nan")))

    def take_late(parts, rooms):
        taken.append((len(parts), len(rooms)))
        take([partial(late, part, number) for number, part in enumerate(parts)], rooms)

    monkeypatch.setattr(hopper_attention, "taking_turns", take_late)
    return taken


def backward(case, given, scale=0.1, seed=1):
    out, lse = HOPPER.attend(case, given, scale)
    return HOPPER.attend_back(case, given, out, lse, *cotangents(out, lse, seed), scale, ALL)[:3]


def equal(some, others):
    return all(torch.equal(x, y) for x, y in zip(some, others, strict=True))


@pytest.mark.parametrize(("case", "heads"), CASES, ids=str)
def test_matches_the_oracle(case, heads, turns):
    with keeping(heads):
        hopper.check(case)
    count = -(-case.batch * case.kv_heads // heads)
    assert turns == [(count, min(count, 2))]


def test_one_room(turns):
    with keeping(1, rooms=1):
        hopper.check(CASES[-1][0])
    assert turns == [(6, 1)]


@pytest.mark.parametrize("scale", [0.0, -0.1, 0.5])
def test_any_scale(scale, turns):
    with keeping(1):
        hopper.check(problem((150,), 40, dim=96), scale=scale)
    assert turns == [(2, 2)]


def test_strided_operands(turns):
    case = problem((18, 20), (5, 6), heads=3, batch=2, dim=128)
    with keeping(2):
        for given in hopper.strided(case.dim):
            hopper.check(case, given=given)
    assert turns == [(3, 2)] * 4


def test_missing_gradients_are_zero(turns):
    with keeping(1):
        hopper.check_missing(problem((140,), 50, heads=4, kv_heads=2, dim=128))
    assert turns == [(2, 2)] * 2


def test_gradients_of_some_operands_keep_nothing(turns):
    case = TURNS[1]
    given = operands(case)
    out, lse = HOPPER.attend(case, given, 0.1)
    with keeping(1):
        for needs in ((True, True, False), (False, True, True), (True, False, False)):
            HOPPER.attend_back(case, given, out, lse, out, None, 0.1, needs + (False,) * 3)
    assert not turns


def test_scores_far_below_zero_leave_no_infinity_past_the_end(turns):
    for case in (problem((65,), 64, dim=128, heads=1), problem((9, 19), (8, 18), dim=96, heads=1)):
        apart = operands(case)
        given = apart._replace(query=apart.query / 8 + 3, key=apart.key / 8 - 3)
        out, lse = HOPPER.attend(case, given, 0.2)
        assert lse.max() < -100
        flow = cotangents(out, lse)
        with keeping(1):
            grads = HOPPER.attend_back(case, given, out, lse, *flow, 0.2, ALL)
        answer = exact(case, given, 0.2, *map(array, flow))
        for name, grad in zip(("query", "key", "value"), grads, strict=False):
            budget.check(name, array(grad), getattr(answer, name), case.dtype, rounded_weights=True)
    assert len(turns) == 2


@pytest.mark.parametrize("case", TURNS, ids=str)
def test_repeats_and_turns_of_any_number_are_bitwise_equal(case, turns):
    given, heads = operands(case), case.batch * case.kv_heads
    results = []
    for some in (heads, heads, 1, 1, 1, 2, 3):
        with keeping(some):
            results.append(backward(case, given))
    assert all(equal(found, results[0]) for found in results)
    assert [count for count, _ in turns] == [-(-heads // some) for some in (heads, heads, 1, 1, 1, 2, 3)]


@pytest.mark.parametrize(
    "case",
    [
        problem((1000,), 150, heads=36, dim=128),
        problem((70, 75), 21, heads=28, kv_heads=14, causal=(True, False), dim=128),
        problem((70, 75), 21, heads=20, stride=3, dim=96),
        problem((70, 75), 21, heads=10, dim=256),
    ],
    ids=str,
)
def test_programs_go_on_to_other_tiles(case, turns):
    found = planned(case, case.kv_heads)
    assert min(found.keys.programs, found.queries.programs) > hopper_plan.RESIDENT
    with keeping(case.kv_heads):
        hopper.check(case)
        whole = backward(case, operands(case))
    # Fewer than a GPU computes at a time.
    with keeping(1):
        assert equal(whole, backward(case, operands(case)))


@pytest.mark.parametrize("heads", [1, 3])
def test_a_graph_captures_a_backward_that_takes_turns(heads, turns):
    case = problem((40, 44), 12, heads=5, dim=128)
    given, other = operands(case), operands(case, seed=7)
    with keeping(heads):
        backward(case, given)
        wanted = [backward(case, x) for x in (given, other)]
        torch.cuda.synchronize()
        out, lse = HOPPER.attend(case, given, 0.1)
        grad_out, grad_lse = cotangents(out, lse)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out, lse = HOPPER.attend(case, given, 0.1)
            grads = HOPPER.attend_back(case, given, out, lse, grad_out, grad_lse, 0.1, ALL)[:3]
        first = [x.clone() for x in given[:3]]
        for source, answer in ((first, wanted[0]), (other[:3], wanted[1]), (first, wanted[0])):
            for x, y in zip(given[:3], source, strict=True):
                x.copy_(y)
            graph.replay()
            # Work that is not in the graph runs beside it, and leaves it alone.
            with torch.cuda.stream(torch.cuda.Stream()):
                beside = backward(case, other)
            torch.cuda.synchronize()
            assert equal(grads, answer)
            assert equal(beside, wanted[1])
    assert turns[-1][1] == 2


def test_a_thread_captures_while_another_computes(monkeypatch, turns):
    from vicinal.triton import hopper_attention

    case = TURNS[1]
    given, other = operands(case), operands(case, seed=7)
    take, beside, capturing = hopper_attention.taking_turns, [], threading.get_ident()

    def work():
        with torch.cuda.stream(torch.cuda.Stream()):
            beside.extend(backward(case, other))
            torch.cuda.current_stream().synchronize()

    def take_amid(parts, rooms):
        def amid(room):
            # By now the stream beside that of the graph captures as well.
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            parts[-1](room)

        take([*parts[:-1], amid] if threading.get_ident() == capturing else parts, rooms)

    with keeping(1):
        wanted = [backward(case, x) for x in (given, other)]
        out, lse = HOPPER.attend(case, given, 0.1)
        flow = cotangents(out, lse)
        torch.cuda.synchronize()
        monkeypatch.setattr(hopper_attention, "taking_turns", take_amid)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            grads = HOPPER.attend_back(case, given, out, lse, *flow, 0.1, ALL)[:3]
        graph.replay()
        torch.cuda.synchronize()
    assert equal(beside, wanted[1])
    assert equal(grads, wanted[0])


def test_runs_in_the_order_of_the_current_stream(turns):
    case = TURNS[2]
    given, other = operands(case), operands(case, seed=7)
    with keeping(1):
        wanted = backward(case, other)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        out, lse = HOPPER.attend(case, other, 0.1)
        flow = cotangents(out, lse)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            # Operands change late, and gradients are read at once.
            torch.cuda._sleep(10 * LATE)
            for x, y in zip(given[:3], other[:3], strict=True):
                x.copy_(y)
            found = [x.clone() for x in HOPPER.attend_back(case, given, out, lse, *flow, 0.1, ALL)[:3]]
            # Memory of what is gone is there for others, late too.
            again = [x.clone() for x in HOPPER.attend_back(case, given, out, lse, *flow, 0.1, ALL)[:3]]
        stream.synchronize()
    assert equal(found, wanted)
    assert equal(again, wanted)


@pytest.mark.parametrize("shared", [False, True], ids=["own streams", "one stream"])
def test_threads_do_not_meet(shared, turns):
    case = TURNS[1]
    many = [operands(case, seed) for seed in range(2)]
    with keeping(1):
        wanted = [backward(case, given) for given in many]
        torch.cuda.synchronize()
        results, start = [[], []], threading.Barrier(2)

        def work(number):
            stream = nullcontext() if shared else torch.cuda.stream(torch.cuda.Stream())
            start.wait()
            with stream:
                for _ in range(6):
                    results[number].append(backward(case, many[number]))
                torch.cuda.current_stream().synchronize()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [len(found) for found in results] == [6, 6]
    assert all(equal(one, right) for found, right in zip(results, wanted, strict=True) for one in found)


@pytest.mark.usefixtures("nothing_known")
def test_compiled_training(turns):
    torch._dynamo.reset()
    query, key, value = (
        torch.randn(1, 2048, 3, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )

    def step(attend):
        out = attend(query, key, value)
        return out, *torch.autograd.grad(out.float().square().sum(), (query, key, value))

    def attend(*given):
        return na1d(*given, 512, backend="hopper")

    with keeping(2):
        eager = step(attend)
        compiled = step(torch.compile(attend, fullgraph=True))
    assert equal(eager, compiled)
    assert turns == [(2, 2)] * 2
