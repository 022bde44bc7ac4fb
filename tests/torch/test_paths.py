"""`blocked` chooses strips or all pairs at once: every path is right, and the same to the bit in any
thread."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import pytest
import torch

from tests.torch.test_blocked import BITWISE, check, equal, flat, make, prefer, run, walk
from vicinal import Axis, Problem, catalog
from vicinal.torch.backends.blocked import BLOCKED
from vicinal.torch.strips import direct, passes, plan
from vicinal.torch.strips.layout import chunks
from vicinal.torch.strips.products import multiply


@pytest.fixture(autouse=True)
def _paths():
    """No test sees what another one preferred."""
    yield
    direct.faster.cache_clear()


@pytest.fixture(params=[None, direct], ids=["tiles", "direct"])
def path(request, monkeypatch):
    prefer(monkeypatch, request.param)
    return request.param


@pytest.mark.parametrize("case", catalog.SMALL, ids=lambda case: case.name)
def test_both_paths_match_the_oracle(path, case):
    check(case.problem, with_lse=False)
    assert not direct.faster(case.problem) or path is direct


@pytest.mark.parametrize("length", range(190, 230, 3))
def test_boxes_without_a_tile_may_reach_far_past_the_axis(monkeypatch, length):
    prefer(monkeypatch, None)
    check(Problem((Axis(length, 3),), 3, 2, 2, 16, 16))


@pytest.fixture
def threads():
    """Sets the number of threads; the number before comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Few heads, and rows and keys that are no whole vectors.
ODD = (
    Problem((Axis(15, 5),), 1, 2, 2, 32, 32, "float64"),
    Problem((Axis(34, 3),), 1, 6, 2, 8, 8, "float64"),
    Problem((Axis(14, 5), Axis(7, 3)), 1, 1, 1, 5, 5, "float64"),
    Problem((Axis(17, 5),), heads=1, kv_heads=1, dim=32, value_dim=32),
    Problem((Axis(45, 5),), heads=1, kv_heads=1, dim=32, value_dim=32),
    Problem((Axis(17, 5),), 2, 3, 3, 32, 32),
    Problem((Axis(5, 3), Axis(5, 5)), heads=4, kv_heads=4, dim=16, value_dim=16),
    Problem((Axis(21, 7),), 2, 4, 2, 7, 7),
)
# One axis, whole tiles and others.
LINES = (
    Problem((Axis(259, 7),), 3, 4, 2, 16, 16),
    Problem((Axis(131, 9, stride=4, dilation=3),), 2, 3, 1, 5, 5, "float64"),
    Problem((Axis(200, 40, causal=True, output_stride=2),), 1, 2, 2, 8, 8),
    Problem((Axis(144, 5, dilation=24),), 1, 4, 2, 8, 8),
)
# The last columns of some boxes lie between whole cache lines.
GAPS = (Problem((Axis(14, 6), Axis(7, 7, causal=True), Axis(9, 3)), 2, 2, 2, 5, 8, "float64"),)
PATHS = [
    (problem, path)
    for path, some in ((None, BITWISE + ODD + GAPS + LINES), (direct, ODD))
    for problem in some
]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("problem", ODD, ids=str)
def test_the_direct_path_matches_the_oracle(monkeypatch, problem, alone):
    """All heads and batch entries in one call, or each in its own."""
    prefer(monkeypatch, direct)
    assert direct.faster(problem)
    part = plan.whole(problem)
    if alone:
        monkeypatch.setattr(direct, "COPIES", direct.COPIES // direct._at_a_time(problem, part))
    assert len(direct._groups(problem, part)) == (problem.batch * problem.kv_heads if alone else 1)
    check(problem, with_lse=False)


@pytest.mark.parametrize(("problem", "path"), PATHS, ids=str)
def test_bits_do_not_depend_on_run_or_threads(problem, path, threads, monkeypatch):
    monkeypatch.setattr(plan, "CHUNK", 50_000)
    prefer(monkeypatch, path)
    _, operands = make(problem)
    results = []
    for count in (1, 1, 2, 3, 8):
        threads(count)
        gradients = run(problem, operands, with_lse=path is None)[2]
        results.append(flat(*BLOCKED.attend(problem, operands, 0.4), gradients))
    assert all(equal(results[0], other) for other in results[1:])


SMALL = (
    Problem((Axis(12, 9),), 1, 2, 1, 16, 8, "bfloat16", bias=True, extra=3),
    Problem((Axis(6, 5), Axis(7, 5)), 1, 1, 1, 24, 24, "bfloat16"),
)


@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_bits_of_pieces_and_bands_do_not_depend_on_threads(problem, threads, monkeypatch):
    """Boxes in pieces over all axes, sums of some columns at a time."""
    for module, name, size in ((plan, "PASS", 2000), (passes, "PIECE", 4000), (passes, "SUMS", 700)):
        monkeypatch.setattr(module, name, size)
    prefer(monkeypatch, None)
    plan.parts.cache_clear()
    (part,) = plan.parts(replace(problem, gradients=True), True)
    assert len(part.pieces) > 1
    assert part.bands[0] is not None
    _, operands = make(problem)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append((*flat(*run(problem, operands)[:3]), *walk(problem, operands, 0.0)))
    plan.parts.cache_clear()
    assert all(equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("problem", BITWISE + ODD + GAPS, ids=str)
def test_bits_of_walks_do_not_depend_on_threads(problem, threads, monkeypatch):
    monkeypatch.setattr(plan, "CHUNK", 5_000)
    prefer(monkeypatch, None)
    _, operands = make(problem)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(walk(problem, operands, 0.0))
    assert all(equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("size", [(31, 33, 97), (64, 32, 196), (97, 24, 33), (15, 32, 15)], ids=str)
def test_bits_of_products_do_not_depend_on_threads(count, size, flat, dtype, threads):
    """Sizes that a BLAS for AVX2, or one for AVX-512, rounds otherwise where threads share a matrix."""
    rows, inner, columns = size
    generator = torch.Generator().manual_seed(0)
    start, left, right = (
        torch.randn(count, *shape, generator=generator, dtype=dtype)
        for shape in ((rows, columns), (rows, inner), (inner, columns))
    )
    if not flat:
        left, right = left.repeat(1, 1, 2)[:, :, :inner], right.mT.contiguous().mT
    found = []
    for workers in (1, 2, 3, 8):
        threads(workers)
        out = start.clone()
        multiply(out, left, right, 0.3)
        found.append(out)
    torch.testing.assert_close(found[0], start + 0.3 * left @ right)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_chunks_hold_no_fewer_boxes_than_asked_for():
    problem = Problem((Axis(900, 33),), heads=1, kv_heads=1, dim=8, value_dim=8)
    for part in plan.parts(problem):
        work = part.measure(0, 0, 0)
        for step, least in product((1, 5, 10**6), (1, 2, 3, 7)):
            cuts = [chunk.all for chunk in chunks(work, step, least)]
            assert [x.start for x in cuts] == [0, *(x.stop for x in cuts[:-1])]
            assert cuts[-1].stop == work.boxes
            assert all(x.stop - x.start >= least for x in cuts)
            assert all(x.stop - x.start < max(1.5 * step, 2 * least) + 1 for x in cuts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_share_the_slabs_of_one_axis(dtype, monkeypatch):
    """Slab after slab, each of as many heads as leave it few columns that the next one reads again."""
    problem = Problem((Axis(900, 33),), 2, 6, 3, 8, 8, dtype)
    monkeypatch.setattr(plan, "PASS", 300_000)
    prefer(monkeypatch, None)
    plan.parts.cache_clear()
    (part,) = plan.parts(problem)
    assert len(part.batches) == 1
    assert len(part.slabs) > 2
    halo = part.rings[0].width - part.rings[0].step
    assert all(passes.HALO * halo <= len(slab[0]) * part.rings[0].step for slab in part.slabs[:-1])
    check(problem)
    monkeypatch.setattr(plan, "PASS", 120_000)
    plan.parts.cache_clear()
    (part,) = plan.parts(problem)
    assert len(part.batches) > 1
    assert len(part.slabs) > 1
    slabs = [slab for _, slab in part.passes()]
    assert slabs == sorted(slabs)
    check(problem)
    plan.parts.cache_clear()


def test_python_threads_do_not_share_scratch():
    problem = Problem((Axis(30, 7), Axis(31, 5)), 1, 2, 2, 8, 8)
    inputs = [make(problem, seed)[1] for seed in range(4)]
    alone = [flat(*run(problem, operands)[:3]) for operands in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: flat(*run(problem, inputs[i % 4])[:3]), range(40)))
    assert all(equal(alone[i % 4], found) for i, found in enumerate(together))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_computes_the_same(threads):
    threads(1)
    problem = Problem((Axis(30, 7), Axis(31, 5)), 1, 2, 2, 8, 8)
    _, operands = make(problem)
    before = flat(*run(problem, operands)[:3])
    child = os.fork()
    if child == 0:
        os._exit(0 if equal(before, flat(*run(problem, operands)[:3])) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert equal(before, flat(*run(problem, operands)[:3]))
