"""Small documents that `blocked` computes together: bits, isolation, and when it does."""

from dataclasses import replace
from math import inf

import pytest
import torch
from hypothesis import given, settings

import vicinal.torch as na
from tests.documents import CASES, EXTRA, case, cases
from tests.torch.documents import Drawn, Packed, Padded, call, check, gaining, operands
from vicinal import Axis, Problem, tiling
from vicinal.problem import Documents
from vicinal.torch.strips import bundle, direct, plan

FORMS = {"packed": Packed, "padded": Padded}
form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
PLANES = case(
    ((30, 41), (41, 30), (30, 41), (52, 29), (1, 0)), 7, heads=4, kv_heads=2, dim=8, dtype="float32"
)
# Every axis has several tiles.
TILED = {
    "line": (case((100, 140, 61, 140), 9, heads=2, kv_heads=2, dim=8, dtype="float32"), (16,)),
    "planes": (PLANES, (4, 8)),
    "bias": (replace(PLANES, bias=True, is_causal=(True, False)), (4, 8)),
    "dilated": (replace(PLANES, heads=2, kv_heads=1, dilation=(2, 2), dtype="float64"), (4, 4)),
    "sampled": (replace(PLANES, stride=(2, 1), output_stride=(2, 3)), (4, 4)),
    "volumes": (case(((9, 14, 20), (10, 13, 17), (8, 30, 14)), (3, 5, 5), dim=8, dtype="float32"), (2, 4, 4)),
}
tiled = pytest.mark.parametrize(("drawn", "tile"), TILED.values(), ids=TILED)


def problem(case, **rest):
    axes = tuple(
        Axis(64, *numbers)
        for numbers in zip(
            case.kernel_size, case.stride, case.dilation, case.is_causal, case.output_stride, strict=True
        )
    )
    documents = Documents(case.shapes, None, False)
    widths = (case.heads, case.kv_heads, case.dim, case.value_dim)
    return Problem(axes, len(case.shapes), *widths, case.dtype, bias=case.bias, documents=documents, **rest)


def results(form, case, threads=1, level=0.0):
    """Outputs, log-sum-exps and gradients; all entries of a bias are raised by `level`."""
    drawn, made = Drawn(case), form(case)
    if case.bias:
        drawn.rest["bias"] += level
    tokens, rest = operands(made, drawn)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = call(made, case, tokens, rest, backend="blocked")
        flow = list(map(made.flow, drawn.flow()))
        return *found, *torch.autograd.grad(found, (*tokens.values(), *rest.values()), flow)
    finally:
        torch.set_num_threads(before)


NEVER, ALWAYS = 0, inf


@pytest.fixture(autouse=True)
def forgetting():
    yield
    bundle.bundles.cache_clear()


def forced(monkeypatch, tile):
    """One tile for every problem, and documents together."""
    gaining(monkeypatch, ALWAYS)
    chosen = tiling.Plan(tile, tile, tiling.Counts(1, 1, 1), 1.0)
    monkeypatch.setattr(plan, "cheapest", lambda *_: chosen)
    monkeypatch.setattr(direct, "faster", lambda *_: False)
    plan.parts.cache_clear()


def same(drawn, found, want):
    """Bit for bit; but the gradient of a bias, the last one, is summed pass by pass."""
    exact = len(found) - drawn.bias
    assert all(map(torch.equal, found[:exact], want[:exact]))
    torch.testing.assert_close(found[exact:], want[exact:], rtol=2e-5, atol=2e-5)


shares = pytest.mark.parametrize("share", [NEVER, ALWAYS], ids=["alone", "together"])


@form
@shares
@pytest.mark.parametrize("case", (CASES | EXTRA).values(), ids=CASES | EXTRA)
def test_documents_match_the_oracle(form, case, share, monkeypatch):
    gaining(monkeypatch, share)
    check(form, case)


@form
@shares
@given(cases())
@settings(max_examples=25, deadline=None)
def test_documents_with_every_option(form, share, case):
    with pytest.MonkeyPatch.context() as patch:
        gaining(patch, share)
        check(form, case)


@form
def test_a_bias_of_any_size_leaves_gradients_finite(form, monkeypatch):
    gaining(monkeypatch, ALWAYS)
    drawn = case(((5, 9), (7, 4)), 3, bias=True, dtype="float32")
    # One constant more in all scores of a row changes no weight.
    _, _, *found = results(form, drawn, level=100.0)
    _, _, *want = results(form, drawn)
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)


@form
@tiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_are_those_of_documents_alone_where_tiles_are(form, drawn, tile, dtype, monkeypatch):
    drawn = replace(drawn, dtype=dtype)
    forced(monkeypatch, tile)
    together, groups = bundle.bundles(problem(drawn))
    assert not groups
    assert {member.document for one in together for member in one.members} == {
        place for place, shape in enumerate(drawn.shapes) if 0 not in shape
    }
    for one in together:
        for member in one.members:
            shape = drawn.shapes[member.document]
            axes = tuple(replace(a, length=n) for a, n in zip(problem(drawn).axes, shape, strict=True))
            own = plan.parts(replace(problem(drawn), axes=axes, batch=1, documents=None))
            assert member.part.rings in [part.rings for part in own]
    found = results(form, drawn)
    gaining(monkeypatch, NEVER)
    same(drawn, found, results(form, drawn))
    bundle.bundles.cache_clear()
    plan.parts.cache_clear()


@form
@tiled
def test_bits_do_not_depend_on_threads_or_passes(form, drawn, tile, monkeypatch):
    gaining(monkeypatch, ALWAYS)
    want = results(form, drawn)
    for threads in (2, 3):
        assert all(map(torch.equal, results(form, drawn, threads), want))
    whole = len(bundle.bundles(problem(drawn)).bundles)
    monkeypatch.setattr(plan, "PASS", 1 << 14)
    bundle.bundles.cache_clear()
    assert len(bundle.bundles(problem(drawn)).bundles) > whole
    same(drawn, results(form, drawn), want)


@pytest.mark.parametrize("field", ["query", "key", "value"])
@pytest.mark.parametrize("kind", ["line", "planes", "volumes"])
def test_a_nan_of_one_document_reaches_no_other(kind, field, monkeypatch):
    gaining(monkeypatch, ALWAYS)
    drawn, made = Drawn(TILED[kind][0]), Packed(TILED[kind][0])
    tokens, rest = operands(made, drawn)
    found = []
    for poison in (1.0, torch.nan):
        with torch.no_grad():
            made.tokens(tokens[field])[1].fill_(poison)
        out, lse = call(made, drawn.case, tokens, rest, backend="blocked")
        grads = torch.autograd.grad(out.sum() + lse.sum(), tuple(tokens.values()))
        found.append([made.results(out), made.results(lse), *map(made.tokens, grads)])
    for clean, poisoned in zip(*found, strict=True):
        for place, (want, got) in enumerate(zip(clean, poisoned, strict=True)):
            assert place == 1 or torch.equal(got, want)


def split(*shapes, back=False, clip=False, **rest):
    """Documents that are computed together, and groups of others."""
    axes = (Axis(64, 7),) * len(shapes[0])
    documents = Documents(shapes, None, clip)
    batch = Problem(axes, len(shapes), 4, 4, 32, 32, documents=documents, **rest)
    together, groups = bundle.bundles(batch, back)
    return sorted(x.document for one in together for x in one.members), [g.documents for g in groups]


def test_large_documents_and_single_shapes_stay_alone():
    assert split((120,), (110,), (9000,), (120,)) == ([0, 1, 3], [(2,)])
    assert split((120,), (9000,), (120,)) == ([], [(0, 2), (1,)])
    assert split((120,), (110,), extra=1) == ([], [(0,), (1,)])


def test_documents_that_one_call_takes_faster_stay_alone():
    assert split((8, 8), (7, 8)) == ([0, 1], [])
    assert split((12, 14), (11, 15), back=True) == ([], [(0,), (1,)])


def test_clipped_documents_are_together_with_others():
    assert split((30,), (4,), (0,), (50,), (9,), (2,), clip=True) == ([0, 1, 3, 4, 5], [])
    check(Packed, case((30, 4, 0, 50, 9, 2), 9, fit="clip", bias=True, dim=8))


def test_layouts_do_not_share_results():
    x = torch.randn(60, 2, 8)
    for shapes in ([20, 40], [40, 20], [10, 50]):
        layout = na.VarlenLayout(shapes)
        out = na.neighborhood_attention_packed(x, x, x, layout, 7)
        for got, mine in zip(layout.split(out), layout.split(x), strict=True):
            want = na.neighborhood_attention(*[mine[None]] * 3, 7, backend="reference")[0]
            torch.testing.assert_close(got, want)
