"""Documents of different shapes, packed and padded, against the oracle on each of them."""

import pickle
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

import vicinal.torch as na
from tests.documents import CASES, cases
from tests.torch.documents import Packed, Padded, check, check_bits, gaining
from vicinal import Axis, Problem
from vicinal.problem import SHAPE_BY_SHAPE, Documents
from vicinal.torch import backends, known
from vicinal.torch import ops as ops_module
from vicinal.torch.backends.base import Grads
from vicinal.torch.backends.reference import Reference

ops = torch.ops.vicinal

FORMS = {"packed": Packed, "padded": Padded}
form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@form
@each_case
@pytest.mark.parametrize("backend", [None, "reference"])
def test_matches_the_oracle_on_every_document(form, case, backend):
    check(form, case, backend=backend)


@form
@given(cases())
@settings(max_examples=50, deadline=None)
def test_every_option_meets_every_other(form, case):
    check(form, case)


@form
@each_case
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_results_are_those_of_the_fixed_shape_bit_by_bit(form, case, backend, monkeypatch):
    """`test_bundles.py` has what small documents are computed together with."""
    gaining(monkeypatch, 0)
    check_bits(form, case, backend)


class Together(Reference):
    """Takes documents in one call, and notes with which problem it was called."""

    name = "together"

    def __init__(self):
        self.problems = []

    def refusal(self, problem):
        return None if problem.documents else "it is for documents"

    def attend(self, problem, operands, scale):
        self.problems.append(problem)
        return ops.attend_varlen(*self.call(problem, operands), scale, True, "reference", None)

    def attend_back(self, problem, operands, out, lse, grad_out, grad_lse, scale, needs):
        self.problems.append(problem)
        saved, rest = (out, lse, grad_out, grad_lse), self.call(problem, operands)[6:]
        back = ops.attend_varlen_back(*operands, *saved, *rest, scale, needs, "reference", None)
        return Grads(*(x if need else None for x, need in zip(back, needs, strict=True)))

    def call(self, problem, operands):
        shapes, _, clip = problem.documents
        window = zip(
            *((a.size, a.stride, a.dilation, a.causal, a.output_stride) for a in problem.axes), strict=True
        )
        return *operands, torch.tensor(shapes), *window, clip


@form
@pytest.mark.parametrize("name", ["line", "everything", "clipped", "volume"])
def test_a_backend_takes_all_documents_in_one_call(form, name, monkeypatch):
    together = Together()
    monkeypatch.setattr(backends, "BACKENDS", (together, *backends.BACKENDS))
    ops_module._together.cache_clear()
    monkeypatch.setattr(known, "_known", {})
    check(form, CASES[name])
    assert [problem.gradients for problem in together.problems] == [True, True]
    for problem in together.problems:
        assert problem.documents.shapes == CASES[name].shapes
        assert (problem.documents.frame is None) == (form is Packed)
    ops_module._together.cache_clear()


OTHERS = [backend for backend in backends.BACKENDS if backend.name != "triton"]
TAKES = {("blocked", "cpu"), ("metal", "mps"), ("metal-plain", "mps")}


@pytest.mark.parametrize("backend", OTHERS, ids=lambda backend: backend.name)
def test_other_backends_refuse_documents(backend):
    documents = Documents(((5,), (8,)), None, False)
    problem = Problem((Axis(8, 8),), batch=2, dtype="float16", documents=documents)
    for device in ("cpu", "cuda", "mps"):
        reason = backend.refusal(replace(problem, device=device))
        if (backend.name, device) in TAKES:
            assert reason is None
            continue
        assert reason in (SHAPE_BY_SHAPE, f"runs on cuda, not {device}", f"runs on mps, not {device}")


@form
def test_no_documents(form):
    if form is Packed:
        query, layout = torch.zeros(0, 2, 4, requires_grad=True), na.VarlenLayout([], rank=2)
        out, lse = na.neighborhood_attention_packed(
            query, query, query, layout, 3, output_stride=2, return_lse=True
        )
    else:
        query = torch.zeros(0, 5, 6, 2, 4, requires_grad=True)
        out, lse = na.na2d_varlen(query, query, query, [], 3, output_stride=2, return_lse=True)
    want = (0,) if form is Packed else (0, 3, 3)
    assert (out.shape, lse.shape) == ((*want, 2, 4), (*want, 2))
    (grad,) = torch.autograd.grad(out.sum(), query)
    assert grad.shape == query.shape


@pytest.mark.parametrize(
    "sizes",
    [torch.tensor([7, 12]), torch.tensor([7, 1, 12])[::2], torch.tensor([[7], [12]]), [7, 12], ((7,), (12,))],
)
def test_sizes_come_in_many_forms(sizes):
    query = torch.randn(2, 13, 2, 4)
    out = na.na1d_varlen(query, query, query, sizes, 5)
    for place, extent in enumerate((7, 12)):
        alone = query[place : place + 1, :extent]
        torch.testing.assert_close(out[place, :extent], na.na1d(alone, alone, alone, 5)[0])


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 3, 1, 2, 4), (0, 2, 1, 3, 4)])
def test_strides_of_a_padded_batch_do_not_matter(order):
    """Also of what flows back, which a sum expands from one number."""
    plain = torch.randn(2, 6, 7, 3, 4, dtype=torch.float64)
    turned = plain.permute(order).contiguous().permute([order.index(axis) for axis in range(5)])
    results = []
    for query in (plain, turned):
        query.requires_grad_()
        out = na.na2d_varlen(query, query, query, [(6, 5), (3, 7)], 3)
        results.append((out, *torch.autograd.grad(out.sum(), query)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_padding_of_what_flows_back_is_ignored():
    query = torch.randn(2, 9, 2, 4, requires_grad=True)
    out, lse = na.na1d_varlen(query, query, query, [9, 5], 3, return_lse=True)
    blank = [x.detach().clone() for x in (out, lse)]
    for x in blank:
        x[1, 5:] = torch.nan
    (grad,) = torch.autograd.grad((out, lse), query, blank)
    assert grad.isfinite().all()
    assert not grad[1, 5:].any()


def test_only_needed_gradients_are_computed():
    query, key = torch.randn(12, 2, 4, requires_grad=True), torch.randn(12, 2, 4)
    layout = na.VarlenLayout([5, 7])
    out = na.neighborhood_attention_packed(query, key, key, layout, 3)
    (grad,) = torch.autograd.grad(out.sum(), query)
    wanted = (True, False, False, False, False, False)
    rest = (layout.table, [3], [1], [1], [False], [1], False, 0.5, wanted, None, None)
    lse = out.new_zeros(out.shape[:-1])
    found = torch.ops.vicinal.attend_varlen_back(
        query.detach(), key, key, None, None, None, out.detach(), lse, torch.ones_like(out), None, *rest
    )
    assert found[0].shape == grad.shape
    assert all(x.shape == (0,) for x in found[1:])


def test_layouts_travel():
    layout = na.VarlenLayout([(3, 4), (0, 2)])
    documents = [torch.randn(*shape, 2, 5) for shape in layout.shapes]
    again = pickle.loads(pickle.dumps(layout))
    assert type(again) is na.VarlenLayout
    assert again == layout == na.VarlenLayout.from_tensors(documents)
    assert again.table.tolist() == [[3, 4], [0, 2]]
    for got, want in zip(again.split(again.pack(documents)), documents, strict=True):
        assert torch.equal(got, want)
    with torch.inference_mode():
        inside = na.VarlenLayout([5, 7])
    query = torch.randn(12, 2, 4, requires_grad=True)
    na.neighborhood_attention_packed(query, query, query, inside, 3).sum().backward()


def test_flops_are_the_useful_ones():
    query = torch.randn(21, 4, 8, requires_grad=True)
    value = torch.randn(21, 2, 6)
    layout = na.VarlenLayout([7, 0, 3, 11])
    extra = torch.randn(4, 5, 2, 8), torch.randn(4, 5, 2, 6)
    with FlopCounterMode(display=False) as counter:
        out = na.neighborhood_attention_packed(
            query,
            query[:, :2],
            value,
            layout,
            5,
            is_causal=True,
            fit="clip",
            additional_keys=extra[0],
            additional_values=extra[1],
        )
    axes = [Axis(extent, min(5, extent), causal=True) for extent in (7, 3, 11)]
    pairs = sum(Problem((axis,), heads=4, kv_heads=2, extra=5).pairs for axis in axes)
    assert counter.get_total_flops() == 2 * 4 * pairs * (8 + 6)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 4 * pairs * (3 * 8 + 2 * 6)


Q = torch.zeros(2, 8, 4, 16)
P = torch.zeros(12, 4, 16)
LAYOUT = na.VarlenLayout([5, 7])


def fails(error, message, function, *args, **kwargs):
    with pytest.raises(error, match=re.escape(message)):
        function(*args, **kwargs)


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        (
            [5, 9],
            ValueError,
            "sizes has 9 for document 1 on axis 0, over the 8 tokens there; lower it or pad",
        ),
        (
            [5, 2],
            ValueError,
            "kernel_size 3 is over the extent on axis 0 of documents 1 (2 tokens); pass fit=",
        ),
        ([5], ValueError, "sizes [1, 1] must be [batch, spatial axes], here [2, 1] or [2]"),
        (
            torch.tensor([[5, 5]]),
            ValueError,
            "sizes [1, 2] must be [batch, spatial axes], here [2, 1] or [2]",
        ),
        (
            torch.tensor([5.0, 6.0]),
            ValueError,
            "dtype of sizes is torch.float32; pass torch.int32 or torch.int64",
        ),
        (torch.tensor([5, -1]), ValueError, "document 1 has shape [-1]; pass extents of 0 or more"),
        ([5, 6.0], TypeError, "document 1 has shape 6.0; each extent is an integer, one is of type float"),
        (5, TypeError, "sizes is of type int; pass a tensor, a list or a tuple"),
    ],
)
def test_bad_sizes(sizes, error, message):
    fails(error, message, na.na1d_varlen, Q, Q, Q, sizes, 3)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((Q, Q, Q, LAYOUT), {}, ValueError, "query [2, 8, 4, 16] must be [tokens, heads, dim]"),
        ((P, P[:10], P, LAYOUT), {}, ValueError, "key has 10 tokens, query has 12; they are the same tokens"),
        ((P, P[:, :2], P, LAYOUT), {}, ValueError, "value has 4 heads, key has 2; they must be the same"),
        (
            (P, P[:, :3], P[:, :3], LAYOUT),
            {},
            ValueError,
            "query has 4 heads, not a multiple of the 3 of key",
        ),
        (
            (P[:9], P[:9], P[:9], LAYOUT),
            {},
            ValueError,
            "query has 9 tokens, its layout 12; pass the layout it",
        ),
        ((P, P, P, [5, 7]), {}, TypeError, "layout is of type list; pass a vicinal.torch.VarlenLayout"),
        ((P, P, P, LAYOUT), {"fit": "shrink"}, ValueError, "fit is shrink; pass error or clip"),
        (
            (P, P, P, LAYOUT),
            {"kernel_size": 6},
            ValueError,
            "kernel_size 6 is over the extent on axis 0 of documents 0",
        ),
        (
            (P, P, P, LAYOUT),
            {"kernel_size": (3, 3)},
            ValueError,
            "kernel_size (3, 3) has 2 entries for 1 spatial",
        ),
        (
            (P, P, P, LAYOUT),
            {"additional_keys": P[:3, None], "additional_values": P[:3, None]},
            ValueError,
            "additional_keys [3, 1, 4, 16] must be [batch, tokens, kv_heads, dim]",
        ),
    ],
)
def test_bad_arguments(args, options, error, message):
    fails(error, message, na.neighborhood_attention_packed, *args, **{"kernel_size": 3, **options})


def test_ranks_are_checked():
    fails(ValueError, "a 2-D operation takes 5", na.na2d_varlen, Q, Q, Q, [8, 8], 3)


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        ([], ValueError, "there is no document to pack; make an empty array [0, heads, dim] instead"),
        ([P[:5]], ValueError, "there are 1 documents, 2 in their layout; pass the layout of these"),
        (
            [P[:5], P[:6]],
            ValueError,
            "document 1 [6, 4, 16] does not begin with [7], its shape in the layout",
        ),
        ([P[:5], P[:7, :2]], ValueError, "document 1 has tokens of shape [2, 16], document 0 has [4, 16]"),
        ([P[:5], P[:7].double()], ValueError, "document 1 has dtype torch.float64, document 0 has"),
        ([P[:5], P[:7].numpy()], TypeError, "document 1 is of type numpy.ndarray; pass a tensor"),
    ],
)
def test_packing_other_documents(documents, error, message):
    fails(error, message, LAYOUT.pack, documents)
