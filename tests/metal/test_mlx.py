"""MLX's host of the Metal kernels: in the checker's `mx.fast.metal_kernel`, or on a Mac in MLX's own."""

import re
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

mx = pytest.importorskip("mlx.core")

import mlx  # noqa: E402
import mslcpu  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from tests import budget  # noqa: E402
from tests.metal import checking  # noqa: E402
from tests.metal.strategies import geometries  # noqa: E402
from tests.mlx import problems  # noqa: E402
from tests.torch import problems as torch_problems  # noqa: E402
from vicinal import using  # noqa: E402
from vicinal.catalog import SMALL, named  # noqa: E402
from vicinal.metal import source  # noqa: E402
from vicinal.mlx import backends, ops, shaders  # noqa: E402
from vicinal.mlx.backends import metal  # noqa: E402

HERE = [case for case in SMALL if case.problem.dtype in source.TYPES]
HAS_METAL = mx.metal.is_available()
on_linux = pytest.mark.skipif(HAS_METAL, reason="the checker runs on Linux")
# Tiles even where the backend would find them wasteful.
TILES = metal.Metal("metal-tiles", most_waste=inf)
each_backend = pytest.mark.parametrize("backend", [TILES.name, metal.METAL_PLAIN.name])
# Operands may be slices of other arrays; tables are the host's own.
OPERANDS = {name for kernel in source.kernels() for name in source.parts(kernel).inputs}
MOVED = frozenset(name for name in OPERANDS if not name.endswith("_numbers"))


@contextmanager
def opened(**options):
    """A session of the checker, with kernels compiled anew; nothing on a Mac."""
    if HAS_METAL:
        yield None
        return
    from mslcpu import mlx_host

    shaders._kernel.cache_clear()
    with mlx_host.installed(moved=MOVED, **options) as session:
        yield session
    shaders._kernel.cache_clear()


@pytest.fixture
def on_metal(monkeypatch):
    """MLX runs on an Apple GPU, or seems to."""
    monkeypatch.setattr(backends, "BACKENDS", (TILES, *backends.BACKENDS))
    monkeypatch.setattr(ops, "device", lambda: "metal")
    ops._found.cache_clear()
    yield
    ops._found.cache_clear()


@pytest.fixture
def session(on_metal):
    """The same, and nothing is found; the checker's session, or None on a Mac."""
    with opened() as session:
        yield session
    if session is not None:
        assert not session.findings, "\n".join(session.findings[:10])


def everything(problem, backend):
    """Output, log-sum-exp and all gradients, as arrays of NumPy."""
    given = problems.operands(problem)

    def attend(*arrays):
        named = dict(zip(given, arrays, strict=True))
        return problems.call(problem, named, backend=backend, return_lse=True)

    results = attend(*given.values())
    tangents = [problems.random(np.random.default_rng(1), x.shape, problem.dtype) for x in results[:1]]
    tangents.append(problems.random(np.random.default_rng(2), results[1].shape))
    _, grads = mx.vjp(attend, list(given.values()), tangents)
    return [problems.array(x) for x in (*results, *grads)]


@pytest.mark.parametrize("case", HERE, ids=lambda case: case.name)
@each_backend
@pytest.mark.usefixtures("session")
def test_catalog(backend, case):
    problems.check(case.problem, backend)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["everything", "odd_3d"])
@pytest.mark.usefixtures("session")
def test_dtypes(name, dtype):
    problems.check(replace(named(name).problem, dtype=dtype), TILES.name)


@pytest.mark.parametrize(
    ("dim", "value_dim", "dtype"), [(1, 3, "float32"), (10, 6, "float16"), (33, 100, "bfloat16")]
)
@pytest.mark.usefixtures("session")
def test_head_dims(dim, value_dim, dtype):
    problem = replace(named("odd_1d").problem, dim=dim, value_dim=value_dim, dtype=dtype)
    problems.check(problem, TILES.name)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=geometries())
@pytest.mark.usefixtures("session")
def test_every_window(problem):
    problems.check(problem, TILES.name)


@pytest.mark.parametrize("name", ["everything", "odd_3d", "causal_3d"])
@each_backend
@pytest.mark.usefixtures("session")
def test_walks(backend, name):
    problems.check_walks(replace(named(name).problem, extra=0), backend)


@pytest.mark.usefixtures("session")
def test_other_derivatives():
    """Second derivatives and forward mode go through the walks."""
    problem = named("everything").problem
    given = problems.operands(problem)
    at, found = list(given.values()), []
    for backend in (TILES.name, "reference"):
        call = lambda *x, backend=backend: problems.call(  # noqa: E731
            problem, dict(zip(given, x, strict=True)), backend=backend
        )
        inner = mx.grad(lambda *x, call=call: call(*x).square().sum())
        second = mx.grad(lambda *x, inner=inner: inner(*x).square().sum(), argnums=tuple(range(len(at))))
        found.append([*second(*at), *mx.jvp(call, at, [mx.sin(x) for x in at])[1]])
    for actual, wanted in zip(*found, strict=True):
        largest = float(mx.abs(wanted).max())
        assert mx.allclose(actual, wanted, rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.usefixtures("session")
def test_vmap_needs_another_backend():
    """MLX maps over no kernel that it does not know, not even inside of a function with a rule for it."""
    problem = named("odd_1d").problem
    given = problems.operands(problem)
    several = mx.stack([given["query"], 2 * given["query"]])

    def mapped(backend):
        one = lambda query: problems.call(problem, {**given, "query": query}, backend=backend)  # noqa: E731
        return mx.vmap(one)(several)

    with pytest.raises(ValueError, match="vmap"):
        mx.eval(mapped(TILES.name))
    wanted = problems.call(problem, given, backend="blocked")
    assert mx.allclose(mapped("blocked")[0], wanted, atol=1e-5)


@pytest.mark.usefixtures("session")
def test_nothing_to_do():
    problem = replace(named("everything").problem, extra=0)
    given = problems.operands(problem)
    tokens = {name: mx.zeros((2, 0, *given[part].shape[-2:])) for name, part in EMPTY.items()}
    loss = lambda *x: problems.call(problem, dict(zip(whole, x, strict=True)), backend=TILES.name).sum()  # noqa: E731
    whole = given | tokens
    grads = mx.grad(loss, argnums=tuple(range(len(whole))))(*whole.values())
    assert [grad.shape for grad in grads] == [x.shape for x in whole.values()]


EMPTY = {"extra_key": "key", "extra_value": "value"}


@pytest.mark.parametrize("backend", [metal.METAL, metal.METAL_PLAIN], ids=lambda backend: backend.name)
def test_refusals_have_reasons(backend):
    problem = replace(named("odd_2d").problem, device="metal")
    assert backend.refusal(problem) is None
    assert backend.refusal(replace(problem, device="cuda")) == "runs on metal, not cuda"
    assert backend.refusal(replace(problem, dim=257)) == "head dim 257 is over 256"
    assert backend.refusal(replace(problem, batch=2**20)) == "2**27 queries or more, of all heads"


@on_linux
@pytest.mark.usefixtures("on_metal")
class TestOnLinux:
    """What only the checker can show."""

    @each_backend
    @pytest.mark.parametrize("name", ["everything", "odd_3d"])
    def test_schedules_give_the_same_bits(self, backend, name):
        runs = []
        for order in mslcpu.ORDERS:
            with opened(order=order) as session:
                runs.append(everything(named(name).problem, backend))
            assert not session.findings
        for other in runs[1:]:
            assert all(np.array_equal(one, two) for one, two in zip(runs[0], other, strict=True))

    @pytest.mark.parametrize("name", ["everything", "float16"])
    def test_fast_math_stays_within_the_budget(self, name):
        problem, runs = named(name).problem, []
        for fast_math in (True, False):
            with opened(fast_math=fast_math) as session:
                runs.append(everything(problem, TILES.name))
            assert not session.findings
        for place, (fast, safe) in enumerate(zip(*runs, strict=True)):
            budget.check(str(place), fast, safe, problem.dtype, True)

    @pytest.mark.parametrize("name", ["everything", "bfloat16"])
    def test_both_hosts_compute_the_same_bits(self, name):
        problem = named(name).problem
        with opened():
            ours = everything(problem, TILES.name)[:2]
        kept = problems.operands(problem)
        tensors = {
            name: torch.from_numpy(problems.array(x)).to(getattr(torch, problem.dtype))
            for name, x in kept.items()
        }
        with checking.opened():
            theirs = checking.TILES.attend(problem, checking.arrange(problem, tensors), problem.dim**-0.5)
        assert all(np.array_equal(x, torch_problems.array(y)) for x, y in zip(ours, theirs, strict=True))

    def test_vectors_start_at_any_element(self):
        """Kernels that took them to be aligned would be found out."""
        problem = named("grouped").problem
        promised = lambda text: text.replace("#define ALIGNED 0", "#define ALIGNED 1")  # noqa: E731
        with opened(edit=promised) as session:
            problems.call(problem, problems.operands(problem), backend=TILES.name)
        assert any("misaligned access" in found for found in session.findings)

    def test_tiny_windows_run_plainly(self):
        for name, plain in (("one_key", True), ("odd_2d", False)):
            with opened() as session, using(backend="metal"):
                mx.eval(problems.call(named(name).problem, problems.operands(named(name).problem)))
            assert [kernel.endswith("_plain") for kernel, _ in session.launches] == [plain]

    def test_names_are_not_those_of_mlx(self):
        """The source compiles after what MLX puts in front of every kernel."""
        include = Path(mlx.__path__[0]) / "include"
        front = (include / "mlx/backend/metal/kernels/utils.h").read_text()
        # These two use what only Apple's compiler has.
        front = re.sub(r'#include ".*(bf16_math|logging)\.h"\n', "", front)
        host, made = source.instantiation("attend", "half", 2, 8, 8, True, True, False)
        library = mslcpu.Library(f"{front}{source.templates()}{made}", include=[str(include)])
        assert library.names() == [host]
