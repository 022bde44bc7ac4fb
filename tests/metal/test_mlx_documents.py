"""Documents of different shapes in one launch of each kernel from MLX, against the oracle on each of them."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import HealthCheck, given, settings

mx = pytest.importorskip("mlx.core")

import mslcpu  # noqa: E402
import numpy as np  # noqa: E402

from tests.documents import cases  # noqa: E402
from tests.metal.test_documents import CASES  # noqa: E402
from tests.metal.test_mlx import HAS_METAL, opened  # noqa: E402
from tests.mlx import documents  # noqa: E402
from vicinal.mlx import backends, ops  # noqa: E402
from vicinal.mlx.backends.metal import Metal  # noqa: E402

on_linux = pytest.mark.skipif(HAS_METAL, reason="the checker runs on Linux")
form = pytest.mark.parametrize("form", documents.FORMS.values(), ids=documents.FORMS)


@pytest.fixture
def only_metal(monkeypatch):
    """Tiles wherever they fit, and plain kernels by name."""
    monkeypatch.setattr(backends, "BACKENDS", (Metal("tiles", inf), Metal("plain", 0.0), *backends.BACKENDS))
    monkeypatch.setattr(ops, "device", lambda: "metal")
    ops._found.cache_clear()
    yield
    ops._found.cache_clear()


@pytest.fixture
def session(only_metal):
    with opened() as session:
        yield session
    if session is not None:
        assert not session.findings, "\n".join(session.findings[:10])


@form
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("backend", ["tiles", "plain"])
@pytest.mark.usefixtures("session")
def test_matches_the_oracle_on_every_document(form, case, backend):
    documents.check(form, replace(case, dtype="float32"), backend=backend)


@form
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(("float32",)))
@pytest.mark.usefixtures("session")
def test_every_option_meets_every_other(form, case):
    """What kernels are compiled for stays the same."""
    documents.check(form, replace(case, dim=4, value_dim=4, bias=True, extra=2), backend="tiles")


@form
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.usefixtures("session")
def test_dtypes(form, dtype):
    documents.check(form, replace(CASES["everything"], dtype=dtype, dim=8, value_dim=12), backend="tiles")


@on_linux
@form
@pytest.mark.usefixtures("only_metal")
def test_schedules_give_the_same_bits(form):
    case, runs = replace(CASES["everything"], dtype="float32"), []
    for order in mslcpu.ORDERS:
        with opened(order=order) as session:
            out, lse, grads = documents.run(form, case, documents.drawn(case, 0), "tiles")
            runs.append([np.array(x) for x in (out, lse, *grads.values())])
        assert not session.findings
    for other in runs[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(runs[0], other, strict=True))


@on_linux
@form
def test_a_kernel_is_launched_once(form, session):
    case = replace(CASES["everything"], dtype="float32")
    mx.eval(documents.run(form, case, documents.drawn(case, 0), "tiles"))
    kernels = [name.removeprefix("custom_kernel_vicinal_") for name, _ in session.launches]
    # Additional tokens are keys of another layout.
    assert sorted(kernels) == [
        "attend",
        "attend_back_bias",
        "attend_back_key",
        "attend_back_key",
        "attend_back_query",
        "delta",
    ]


@form
@pytest.mark.usefixtures("session")
def test_other_derivatives(form):
    """Second derivatives and forward mode go shape by shape."""
    case, found = replace(CASES["clipped"], dtype="float32", bias=False), []
    tokens, rest, *_ = documents.drawn(case, 0)
    made = form(case)
    at = {**{name: made.join(x) for name, x in tokens.items()}, **rest}
    along = [mx.where(mx.isnan(x), x, mx.sin(x)) for x in at.values()]
    for backend in ("tiles", "reference"):
        whole = documents.attention(made, case, at, backend)
        call = lambda *x, whole=whole: whole(*x)[0]  # noqa: E731
        inner = mx.grad(lambda *x, call=call: call(*x).square().sum())
        second = mx.grad(lambda *x, inner=inner: inner(*x).square().sum(), argnums=tuple(range(len(at))))
        found.append([*second(*at.values()), *mx.jvp(call, list(at.values()), along)[1]])
    for actual, wanted in zip(*found, strict=True):
        assert mx.abs(wanted).max() > 0
        assert mx.allclose(actual, wanted, rtol=1e-4, atol=1e-4 * float(mx.abs(wanted).max()))
