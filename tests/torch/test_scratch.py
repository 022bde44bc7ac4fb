"""What `blocked` takes of memory besides its results, and that nothing depends on what was in it."""

import gc
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.torch.live import beside_results
from tests.torch.problems import problems
from tests.torch.test_blocked import ALL, check, cotangents, equal, flat, make, run, walk
from tests.torch.test_strips import LINUX
from vicinal import Axis, Problem, catalog
from vicinal.torch import qk
from vicinal.torch.backends.blocked import BLOCKED
from vicinal.torch.strips import arena, call, gradients, passes, plan, rows, sums
from vicinal.torch.strips.scores import Additive

FLOATS = ("float64", "float32", "bfloat16", "float16")
pytestmark = pytest.mark.usefixtures("tiled")

PEAK = """
import sys, torch
from pathlib import Path
from vicinal.torch import neighborhood_attention

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

def step(lengths, size, heads, dim, extra, dtype, twice=False):
    shape = (1, *lengths, heads, dim)
    leaves = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
    grad, options = torch.randn(shape, dtype=dtype), {}
    if extra:
        more = [torch.randn(1, extra, heads, dim, dtype=dtype, requires_grad=True) for _ in range(2)]
        bias = torch.randn(heads, *(2 * size - 1 for _ in lengths), requires_grad=True)
        options = {"additional_keys": more[0], "additional_values": more[1], "bias": bias}
        leaves += [*more, bias]
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    out = neighborhood_attention(*leaves[:3], size, backend="blocked", **options)
    found = torch.autograd.grad(out, leaves, grad, create_graph=twice)
    results = (out, *found)
    if twice:
        results += torch.autograd.grad(found, leaves, [grad] * 3)
    return resident("VmHWM") - before, sum(x.nbytes for x in results) >> 10

torch.set_num_threads(1)
lengths, size, heads, dim, extra, dtype, *twice = eval(sys.argv[1])
dtype = getattr(torch, dtype)
step([16 for _ in lengths], 3, heads, dim, min(extra, 1), dtype, *twice)
print(*step(lengths, size, heads, dim, extra, dtype, *twice))
"""


def peak(*case):
    """KiB of memory that a forward and backward pass takes besides operands, and those that are results."""
    command = [sys.executable, "-c", PEAK, repr(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


@LINUX
def test_training_on_128x128_takes_under_300_mib():
    most, results = peak((128, 128), 13, 8, 64, 0, "float32")
    assert 128 << 10 <= results <= most <= 300 << 10


@LINUX
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_second_derivatives_keep_weights_of_few_heads(dtype):
    """All of 16 heads would take ten times 42 MiB."""
    most, results = peak((64, 64), 13, 16, 64, 0, dtype, True)
    assert most - results <= 130 << 10


@pytest.mark.parametrize("size", [5, 15])
def test_gradients_of_qk_copy_what_has_shorter_rows(size):
    query, key = (torch.randn(1, 40, 40, 2, 32, requires_grad=True) for _ in range(2))
    weights = qk(query, key, size, backend="blocked")
    slope = torch.randn_like(weights)
    # What the operators take themselves is not seen here.
    most, _ = beside_results(lambda: torch.autograd.grad(weights, (query, key), slope))
    assert most == min(slope.nbytes, query.nbytes + key.nbytes)


SLABS = (
    Problem((Axis(120, 17),), 1, 4, 2, 8, 12),
    Problem((Axis(150, 9, stride=3, dilation=2, causal=True),), 1, 2, 1, 8, 8),
    Problem((Axis(9, 3), Axis(40, 5)), 1, 2, 2, 8, 5, bias=True, extra=3),
    Problem((Axis(100, 7), Axis(8, 3)), 1, 2, 2, 8, 8),
    Problem((Axis(40, 3, output_stride=9), Axis(30, 3, output_stride=7)), 1, 2, 1, 8, 8),
    Problem((Axis(4, 3), Axis(13, 3), Axis(5, 3)), 1, 2, 1, 8, 12),
    Problem((Axis(30, 5), Axis(6, 3, dilation=2), Axis(4, 3, causal=True)), 1, 1, 1, 8, 8),
)


@pytest.mark.parametrize("problem", SLABS, ids=str)
def test_sums_that_move_with_slabs_are_the_whole_ones(monkeypatch, problem):
    """They hold few columns at a time, and are rounded once."""
    problem = replace(problem, dtype="bfloat16")
    _, operands = make(problem)
    found, moves, move = [], [], sums.Sums._move
    monkeypatch.setattr(sums.Sums, "_move", lambda *given: moves.append(given) or move(*given))
    fused, split = lambda: flat(*run(problem, operands)[:3]), lambda: walk(problem, operands, 0.0)
    for room in (sums.ROOM, 0):
        monkeypatch.setattr(sums, "ROOM", room)
        for size, results in ((20_000, fused), (5_000, split)):
            monkeypatch.setattr(plan, "PASS", size)
            plan.parts.cache_clear()
            moves.clear()
            found.append(results())
            assert bool(moves) == (room == 0)
    assert equal(found[0], found[2])
    assert equal(found[1], found[3])
    check(problem)


WIDE = (
    ((8192,), 4095, 1, 8, 0, "float32"),
    ((8192,), 4095, 1, 8, 5, "float32"),
    ((64, 64), 63, 1, 16, 0, "float32"),
    ((16, 16), 5, 1, 2048, 1500, "float32"),
    ((262144,), 15, 1, 64, 0, "bfloat16"),
    ((512, 512), 7, 1, 32, 0, "float16"),
    ((64, 64), 63, 1, 16, 0, "float64"),
    ((1, 32, 32), (1, 32, 32), 1, 4096, 0, "float32"),
    ((1, 16, 16), (1, 15, 15), 1, 4096, 0, "float64"),
    ((1, 16, 16), (1, 16, 16), 1, 8192, 0, "bfloat16"),
    ((96, 96, 24), (5, 5, 23), 1, 32, 0, "bfloat16"),
    ((8, 8), 5, 1, 65536, 40, "float32"),
)


@LINUX
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_scratch_is_at_most_64_mib(case):
    """Masks of tiles of which no two are alike, of all pairs, what tiles add to additional tokens, sums of
    gradients in narrow dtypes, boxes of which one slot of the first axis is large."""
    most, results = peak(*case)
    assert most - results <= 64 << 10


SCALE = 64
DIMS = st.sampled_from((5, 300, 1000))
LIMITS = {
    plan: ("PASS", "CHUNK", "TABLE", "ROWS", "SCORES"),
    passes: ("SUMS", "ROWS", "SCORES", "PIECE"),
    sums: ("ROOM",),
    gradients: ("APART",),
    call: ("TOKENS",),
    rows: ("KEPT",),
    arena: ("HELD", "RECENT"),
}


@pytest.fixture
def scaled(monkeypatch):
    """Limits so small that small problems meet them; yields what makes one a hundred times as large."""

    def enlarge(limit):
        for module, names in LIMITS.items():
            if limit in names:
                monkeypatch.setattr(module, limit, 100 * getattr(module, limit))
        forget()

    def forget():
        plan.cheapest.cache_clear()
        plan.parts.cache_clear()
        arena.clear()

    for module, names in LIMITS.items():
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name) // SCALE)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    forget()
    yield enlarge
    forget()


def scratch(problem, calls=("attend", "attend_back", "dot", "mix", "mix_back")):
    """Bytes that each of some calls takes besides its results, as if limits had their size."""
    _, operands = make(problem)
    operands = operands._replace(query=operands.query.contiguous())
    query, key, value, bias, *_ = operands
    out, lse = attended = BLOCKED.attend(problem, operands, 0.4)
    flow = cotangents(*attended)
    dot = replace(problem, operation="dot", value_dim=problem.dim)
    mix = replace(problem, operation="mix", dim=problem.value_dim)
    mix_back = replace(problem, operation="mix_back", value_dim=problem.dim)
    weights = BLOCKED.dot(dot, query, key, bias, 0.4, 0.0)
    functions = {
        "attend": lambda: BLOCKED.attend(problem, operands, 0.4),
        "attend_back": lambda: BLOCKED.attend_back(problem, operands, out, lse, *flow, 0.4, ALL),
        "dot": lambda: BLOCKED.dot(dot, query, key, bias, 0.4, 0.0),
        "mix": lambda: BLOCKED.mix(mix, weights, value),
        "mix_back": lambda: BLOCKED.mix_back(mix_back, weights, query),
    }
    for name in calls:
        arena.clear()
        yield SCALE * beside_results(functions[name])[0]


@given(problems(dtypes=FLOATS, longest=(60, 12, 5)), DIMS, DIMS, st.sampled_from((0, 3, 40)))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scratch_is_bounded_by_its_limits(scaled, problem, dim, value_dim, extra):
    problem = replace(problem, dim=dim, value_dim=value_dim, extra=extra)
    assert max(scratch(problem)) <= 64 << 20


FELT = {
    "PASS": Problem((Axis(4000, 9),), 1, 2, 2, 16, 16),
    "CHUNK": Problem((Axis(4000, 101),), 1, 1, 1, 1, 1),
    "TABLE": Problem((Axis(20, 13), Axis(20, 13)), 1, 8, 8, 4, 4, bias=True),
    "SUMS": Problem((Axis(4000, 3999, output_stride=1000),), 1, 1, 1, 64, 64, "bfloat16"),
    "ROOM": Problem((Axis(8000, 9),), 1, 1, 1, 64, 64, "bfloat16"),
    "ROWS": Problem((Axis(64, 9),), 1, 1, 1, 8000, 8000),
    "SCORES": Problem((Axis(1000, 999, output_stride=500),), 1, 64, 1, 1, 1),
    "PIECE": Problem((Axis(2000, 1999, output_stride=1000),), 1, 1, 1, 200, 200),
    "TOKENS": Problem((Axis(16, 9),), 1, 1, 1, 2000, 2000, extra=40),
    "KEPT": Problem((Axis(300, 3), Axis(300, 3)), 1, 1, 1, 1, 1),
    "RECENT": Problem((Axis(1200, 3), Axis(120, 3)), 1, 1, 1, 8, 8),
    "APART": Problem((Axis(16, 9),), 4, 16, 16, 64, 64, "float16", extra=40),
}


@pytest.mark.parametrize("limit", FELT)
def test_each_limit_bounds_scratch(scaled, limit):
    """With it, and not with a hundred times as much."""
    problem = replace(FELT[limit], gradients=True)
    assert max(scratch(problem, ("attend_back",))) <= 64 << 20
    scaled(limit)
    assert max(scratch(problem, ("attend_back",))) > 64 << 20


def test_scratch_of_one_call_after_another_is_bounded(scaled):
    """Whatever a thread keeps of those before, which is bounded too."""

    def most():
        held = []
        for problem, dtype in product(SLABS, FLOATS):
            wide = replace(problem, dim=300, dtype=dtype)
            run(wide, make(wide)[1])
            held.append(arena.held())
        return SCALE * max(held)

    assert most() <= 64 << 20
    scaled("HELD")
    assert most() > 64 << 20


@pytest.mark.parametrize("limit", [1 << 16, 1 << 30])
def test_what_is_kept_of_many_shapes_is_bounded(monkeypatch, limit):
    """A process may see any number of them."""
    monkeypatch.setattr(arena, "EVERYONE", limit)
    plan.parts.cache_clear()
    gc.collect()
    arena.Recent.forget_all()
    most, last = 0, None
    for length in range(20, 36):
        problem = Problem((Axis(length, 5), Axis(20, 5)), 1, 2, 2, 4, 4)
        last = run(problem, make(problem)[1])
        held = [one().bytes for one in arena.Recent.everyone.values()]
        assert sum(held) == arena.Recent.total
        most = max(most, arena.Recent.total)
    # What takes them over it is kept.
    assert (most < 2 << 16) == (limit == 1 << 16)
    assert equal(flat(*last[:3]), flat(*run(problem, make(problem)[1])[:3]))


@pytest.mark.parametrize("problem", SLABS, ids=str)
def test_gradients_of_bands_are_those_of_all_columns(monkeypatch, problem):
    """Tiles that read several bands are computed for each, and counted once."""
    problem = replace(problem, dtype="bfloat16")
    _, operands = make(problem)
    found = []
    for size in (passes.SUMS, 600):
        monkeypatch.setattr(passes, "SUMS", size)
        monkeypatch.setattr(sums, "ROOM", size)
        plan.parts.cache_clear()
        bands = [band for part in plan.parts(replace(problem, gradients=True), True) for band in part.bands]
        assert (bands[0] is None) == (size > 600)
        assert size > 600 or not all(band.own for band in bands)
        found.append((*flat(*run(problem, operands)[:3]), *walk(problem, operands, 0.0)))
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(whole, part, rtol=2**-6, atol=2**-6)
    check(problem)


BIAS, TOKENS = 2 * 7 * 5, 4 * (8 + 5)
"""Numbers that belong to a bias, for a key/value head, and to additional tokens, for one of a batch entry."""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("room", "count"), [(BIAS + 3 * TOKENS, 3), (2 * (BIAS + TOKENS), 4), (BIAS + TOKENS, 9), (0, 9)]
)
def test_gradients_of_some_heads_at_a_time_match_the_oracle(monkeypatch, dtype, room, count):
    """Those of a bias and of additional tokens are summed in float32, and rounded once."""
    axes = Axis(11, 4, dilation=2), Axis(9, 3, stride=2, output_stride=2)
    problem = Problem(axes, 3, 6, 3, 8, 5, dtype, bias=True, extra=4)
    monkeypatch.setattr(gradients, "APART", 4 * room)
    assert len(gradients.sections(make(problem)[1], ALL)) == count
    check(problem)
    check(problem, with_lse=False)


def test_masks_of_all_pieces_of_a_box_take_little_memory():
    """They are kept for the next call."""
    axes = tuple(Axis(length, length - 1, output_stride=16) for length in (32, 64, 64))
    problem = Problem(axes, 1, 4, 2, 32, 32)
    _, operands = make(problem)
    run(problem, operands)
    for part in plan.parts(replace(problem, gradients=True)):
        masks = [x for x in part.memo.values() if isinstance(x, Additive)]
        assert len(masks) == len(part.pieces) > 1
        held = [
            x.nbytes
            for mask in masks
            for x in (mask.source, mask.table, *mask.kept.values())
            if x is not None
        ]
        assert sum(held) <= plan.TABLE


@pytest.mark.parametrize("case", catalog.SMALL, ids=lambda case: case.name)
def test_scratch_may_hold_anything_before(case):
    """What is not written is not read, not even to be hidden: nothing hides a NaN."""
    arena.clear()
    _, operands = make(case.problem)
    before = flat(*run(case.problem, operands)[:3])
    for buffer in arena._arena.buffers.values():
        buffer.fill_(float("nan") if buffer.is_floating_point() else 0)
    assert arena._arena.buffers
    assert equal(before, flat(*run(case.problem, operands)[:3]))


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 1001, 32769, 100_003])
def test_shares_of_a_sheet_are_whole_vectors(monkeypatch, workers, size):
    monkeypatch.setattr(torch, "get_num_threads", lambda: workers)
    part, whole = arena.sheet("sheet", (size,), arena.Like(torch.float32, torch.device("cpu")))
    shares = min(workers, -(-whole.numel() // arena.SHARE))
    assert whole.numel() % (shares * arena.VECTOR) == 0
    assert part.data_ptr() == whole.data_ptr()
    assert size <= whole.numel() < size + 2 * workers * arena.VECTOR


def test_what_a_thread_holds_over_its_limit_is_given_back():
    arena.clear()
    arena.take("large", (arena.HELD // 4 + 1,), arena.Like(torch.float32, torch.device("cpu")))
    assert arena.held() > arena.HELD
    problem = Problem((Axis(30, 5),), 1, 1, 1, 4, 4)
    run(problem, make(problem)[1])
    assert 0 < arena.held() < arena.HELD
