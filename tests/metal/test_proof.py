"""What only the checker can show: schedules, mutations, fast math, and the sources themselves."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import budget
from tests.metal import checking
from tests.torch import problems
from vicinal import Axis, Problem
from vicinal.catalog import SMALL, named
from vicinal.metal import source
from vicinal.metal.geometry import Geometry, layout
from vicinal.torch import shaders

mslcpu = pytest.importorskip("mslcpu")
pytestmark = pytest.mark.skipif(checking.HAS_METAL, reason="the checker runs on Linux")
TILED, PLAIN = checking.BACKENDS
BARRIER = re.compile(r"threadgroup_barrier\([^;]*\);")
# More rows than a SIMD-group has, more columns than a chunk, vectors for all SIMD-groups to stage:
# every barrier matters.
PROBLEM = replace(named("everything").problem, batch=1, dim=24, value_dim=40)


SCHEDULED = [(TILED, case.name) for case in SMALL if case.problem.dtype in source.TYPES]
SCHEDULED += [(PLAIN, name) for name in ("everything", "odd_3d", "long")]


@pytest.mark.parametrize(("backend", "name"), SCHEDULED, ids=lambda value: getattr(value, "name", value))
def test_schedules_give_the_same_bits(backend, name):
    runs = []
    for order in mslcpu.ORDERS:
        with checking.opened(order=order) as session:
            runs.append(checking.tensors(checking.run(backend, named(name).problem)))
        assert not session.findings
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def forward(problem):
    TILED.attend(problem, checking.arrange(problem, problems.operands(problem)), 0.3)


def backward(problem, *places):
    """The gradients at `places`, of whatever went forward."""
    given = checking.arrange(problem, problems.operands(problem))
    out, lse = checking.cotangents(problem, 0)
    needs = tuple(place in places for place in range(6))
    TILED.attend_back(problem, given, out, lse, out, lse, 0.3, needs)


def walks(problem):
    given = checking.arrange(problem, problems.operands(problem))
    weights = TILED.dot(problem, given.query, given.key, given.bias, 0.3, 0.0)
    TILED.mix(problem, weights, given.value)
    TILED.mix_back(problem, weights, given.query)


OPERATIONS = {
    "forward": lambda problem: TILED.attend(
        problem, checking.arrange(problem, problems.operands(problem)), 0.3
    ),
    "backward": lambda problem: backward(problem, 0, 1),
    "bias": lambda problem: backward(problem, 3),
    "walks": walks,
}
BARRIERS = [(name, n) for name in source.FILES for n in range(len(BARRIER.findall(source.template(name))))]


@pytest.mark.parametrize(
    "instead", ["", "simdgroup_barrier(mem_flags::mem_threadgroup);"], ids=["none", "weak"]
)
@pytest.mark.parametrize(("name", "number"), BARRIERS)
def test_every_barrier_matters(name, number, instead):
    before = source.template(name)
    start, stop = list(BARRIER.finditer(before))[number].span()
    after = before[:start] + instead + before[stop:]
    with checking.opened(edit=lambda text: text.replace(before, after)) as session:
        OPERATIONS[name](PROBLEM)
    wanted = "race in threadgroup memory", "unwritten threadgroup"
    assert any(kind in found for found in session.findings for kind in wanted)


@pytest.mark.parametrize(("backend", "name"), SCHEDULED, ids=lambda value: getattr(value, "name", value))
def test_fast_math_stays_within_the_budget(backend, name):
    problem = named(name).problem
    with checking.opened() as session:
        safe = checking.tensors(checking.run(backend, problem))
    with checking.opened(fast_math=True) as fast_session:
        fast = checking.tensors(checking.run(backend, problem))
    assert not session.findings + fast_session.findings
    for place, (actual, wanted) in enumerate(zip(fast, safe, strict=True)):
        budget.check(str(place), problems.array(actual), problems.array(wanted), problem.dtype, True)


def test_vectors_that_start_elsewhere_are_found(monkeypatch):
    """Where PyTorch's host did not copy them to where vectors may start."""
    problem = replace(named("grouped").problem, dim=8, value_dim=8)
    given = checking.arrange(problem, problems.operands(problem))
    key = torch.cat([given.key.new_zeros(1), given.key.flatten()])[1:].view(given.key.shape)
    monkeypatch.setattr(shaders, "_aligned", torch.Tensor.contiguous)
    with checking.opened() as session:
        TILED.attend(problem, given._replace(key=key), 0.3)
    assert any("misaligned access" in found for found in session.findings)


def test_a_mistake_in_the_window_is_found():
    """Boxes one column too wide read past the end of the keys."""
    right = "g.column_room[d] + on_axis;"
    assert right in source.templates()
    with checking.opened(edit=lambda text: text.replace(right, right.replace(";", " + 1;"))) as session:
        TILED.attend(PROBLEM, checking.arrange(PROBLEM, problems.operands(PROBLEM)), 0.3)
    assert any("out-of-bounds read" in found for found in session.findings)


def test_geometry_is_in_the_order_of_the_struct():
    struct = re.search(r"struct Geometry \{(.*?)\};", source.templates(), re.S)[1]
    fields = re.findall(r"int (\w+)(\[ND\])?;", struct)
    assert tuple(name for name, _ in fields) == Geometry._fields
    geometry = layout(PROBLEM).geometry
    assert [isinstance(number, tuple) for number in geometry] == [bool(many) for _, many in fields]


def test_offsets_have_64_bits():
    text = source.templates() + (
        "kernel void far(device long* to [[buffer(0)]], constant Geometry<1>* geometries [[buffer(1)]],\n"
        "                const device int4* table [[buffer(2)]]) {\n"
        "  const Document<1> document = document_of_row<1, false>(geometries, table, 5, 3);\n"
        "  to[0] = vector_at(document.rows, document.index, 2, 1, 256);\n"
        "  to[1] = vector_at(document.columns, document.index, 2, 1, 256);\n}\n"
    )
    rows, columns, result = 2**30, 2**30 + 1, np.zeros(2, "int64")
    numbers = layout(Problem((Axis(7, 3),))).geometry._replace(row_count=rows, column_count=columns)
    table = np.zeros(4, "int32")
    given = {0: result, 1: np.array(numbers.packed, "int32"), 2: table}
    mslcpu.Library(text).run("far", given, grid=(1,), group=(1,))
    assert list(result) == [((3 * count + 5) * 2 + 1) * 256 for count in (rows, columns)]


def test_sources_are_clean():
    kernels = {"attend": (True, True), "attend_back_query": (True, True), "attend_back_key": (True,)}
    made = [
        source.instantiation(kernel + suffix, *kind, *options, documents)
        for documents in (False, True)
        for kind in (("float", 2, 8, 8), ("half", 3, 5, 12), ("bfloat", 1, 16, 4))
        for kernel, options in kernels.items()
        for suffix in ("", "_plain")
    ]
    made.append(source.instantiation("attend_back_bias", "half", 3, 5, 12, True))
    made += [
        source.instantiation(f"mix{back}", "float", "bfloat", 2, 8)
        for back in ("_walk", "_back_walk", "_walk_plain")
    ]
    text = source.templates() + "".join(text for _, text in made)
    assert not mslcpu.lint(text)
