"""Documents of different shapes in one launch of each kernel, against the oracle on each of them."""

from dataclasses import replace
from math import inf

import mslcpu
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests import budget
from tests.documents import case, cases
from tests.metal import checking
from tests.torch import documents
from tests.torch.documents import Drawn, Packed, Padded
from vicinal.torch import backends, ops
from vicinal.torch.backends.metal import Metal

on_linux = pytest.mark.skipif(checking.HAS_METAL, reason="the checker runs on Linux")
form = pytest.mark.parametrize("form", [Packed, Padded], ids=["packed", "padded"])
CASES = {
    "line": case((37, 5, 70, 9, 5), 5),
    "everything": case(
        ((5, 9), (0, 3), (6, 9), (5, 9), (14, 15)),
        (4, 3),
        (2, 1),
        (1, 3),
        (True, False),
        (1, 2),
        heads=4,
        kv_heads=2,
        bias=True,
        extra=3,
    ),
    "clipped": case(
        (1, 3, 0, 8, 3, 40), 9, 4, is_causal=True, output_stride=2, fit="clip", bias=True, extra=1
    ),
    "volume": case(((3, 4, 5), (2, 4, 5), (1, 1, 1)), 3, 2, fit="clip", bias=True, extra=34),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Anywhere(Metal):
    """Takes tensors of any device."""

    def refusal(self, problem):
        return super().refusal(replace(problem, device="mps"))


@pytest.fixture
def only_metal(monkeypatch):
    """Tiles wherever they fit, and plain kernels by name."""
    monkeypatch.setattr(backends, "BACKENDS", (Anywhere("tiles", inf), Anywhere("plain", 0.0)))
    ops._chosen.cache_clear()
    ops._together.cache_clear()
    yield
    ops._chosen.cache_clear()
    ops._together.cache_clear()


pytestmark = pytest.mark.usefixtures("only_metal", "session")


@form
@each_case
@pytest.mark.parametrize("backend", ["tiles", "plain"])
def test_matches_the_oracle_on_every_document(form, case, backend):
    documents.check(form, replace(case, dtype="float32"), backend=backend, device=checking.DEVICE)


@form
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(("float32",)))
def test_every_option_meets_every_other(form, case):
    """What kernels are compiled for stays the same."""
    case = replace(case, dim=4, value_dim=4, bias=True, extra=2)
    documents.check(form, case, backend="tiles", device=checking.DEVICE)


@form
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes(form, dtype):
    case = replace(CASES["everything"], dtype=dtype, dim=8, value_dim=12)
    documents.check(form, case, backend="tiles", rounded=True, device=checking.DEVICE)


@form
@each_case
@pytest.mark.parametrize("backend", ["tiles", "plain"])
def test_results_are_those_of_the_fixed_shape_bit_by_bit(form, case, backend):
    documents.check_bits(form, replace(case, dtype="float32"), backend, checking.DEVICE)


def computed(form, case, **options):
    """Results and all gradients, and the checker's session."""
    drawn, made = Drawn(case), form(case)
    tokens, rest = documents.operands(made, drawn, checking.DEVICE)
    with checking.opened(**options) as session:
        results = documents.call(made, case, tokens, rest, backend="tiles")
        every = (*tokens.values(), *rest.values())
        grads = torch.autograd.grad(results, every, [made.flow(x).to(checking.DEVICE) for x in drawn.flow()])
    assert not session.findings
    return *results, *grads


@on_linux
@form
@pytest.mark.parametrize("name", ["everything", "volume"])
def test_schedules_give_the_same_bits(form, name):
    case = replace(CASES[name], dtype="float32")
    first, *others = (computed(form, case, order=order) for order in mslcpu.ORDERS)
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@on_linux
def test_fast_math_stays_within_the_budget():
    case = replace(CASES["everything"], dtype="float32")
    runs = (computed(Packed, case, fast_math=fast) for fast in (True, False))
    for place, (fast, safe) in enumerate(zip(*runs, strict=True)):
        budget.check(str(place), *(x.detach().double().numpy() for x in (fast, safe)), "float32")


@form
def test_a_kernel_is_launched_once(form):
    one = replace(CASES["everything"], dtype="float32", output_stride=(1, 1))
    drawn, made = Drawn(one), form(one)
    tokens, rest = documents.operands(made, drawn, checking.DEVICE)
    with checking.opened() as session:
        if session is None:
            pytest.skip("launches are the checker's to count")
        results = documents.call(made, one, tokens, rest, backend="tiles")
        assert [name.split("_float")[0] for name, _ in session.launches] == ["attend"]
        session.launches.clear()
        torch.autograd.grad(
            results,
            (*tokens.values(), *rest.values()),
            [made.flow(x).to(checking.DEVICE) for x in drawn.flow()],
        )
        kernels = [name.split("_float")[0] for name, _ in session.launches]
        # Additional tokens are keys of another layout.
        assert sorted(kernels) == [
            "attend_back_bias",
            "attend_back_key",
            "attend_back_key",
            "attend_back_query",
            "delta",
        ]
