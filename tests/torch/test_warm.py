"""A call like one before answers as the first did, and whoever watches, casts or refuses still does."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.profiler import profile

from tests.torch.repeated import LAZY, Names, operands
from vicinal import UnsupportedProblem, using
from vicinal.torch import (
    VarlenLayout,
    known,
    na1d,
    na2d,
    na2d_av,
    na2d_qk,
    na2d_varlen,
    neighborhood_attention_packed,
    neighborhood_attention_varlen,
    varlen,
)

pytestmark = pytest.mark.usefixtures("nothing_known")


def test_one_entry_serves_equal_calls_bit_for_bit():
    first, second = operands(), [x + 1 for x in operands()]
    cold = na2d(*second, 3)
    known._known.clear()
    na2d(*first, 3)
    assert torch.equal(na2d(*second, 3), cold)
    assert torch.equal(na2d(*second, kernel_size=3, stride=1), cold)
    assert len(known._known) == 1


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"kernel_size": 3.0}, TypeError),
        ({"kernel_size": (3, 3.0)}, TypeError),
        ({"kernel_size": [3, Fraction(3)]}, TypeError),
        ({"kernel_size": np.array([3, 3])}, TypeError),
        ({"kernel_size": {3: 3}}, TypeError),
        ({"stride": True}, TypeError),
        ({"dilation": (1, True)}, TypeError),
        ({"is_causal": 0}, TypeError),
        ({"scale": True}, TypeError),
        ({"backend": "nowhere"}, ValueError),
    ],
    ids=str,
)
def test_equal_numbers_of_other_types_are_refused_after_good_ones(asked, error):
    given = operands()
    for size in (3, (3, 3), [3, 3]):
        na2d(*given, size, scale=1.0)
    count = len(known._known)
    for _ in range(2):
        with pytest.raises(error):
            na2d(*given, **{"kernel_size": 3, "scale": 1.0, **asked})
    assert len(known._known) == count


def test_every_part_of_a_call_counts():
    query, key, value = operands()
    want = na2d(query, key, value, 3)
    for options in ({"stride": 2}, {"dilation": 2}, {"is_causal": True}, {"is_causal": (True, False)}):
        assert not torch.equal(na2d(query, key, value, 3, **options), want)
    assert not torch.equal(na2d(query, key, value, 3, scale=1.0), want)
    assert torch.equal(na2d(query, key, value, 3), want)
    assert na2d(query, key, value, 3, output_stride=2).shape[1:3] == (4, 3)
    assert na2d(query, key, value, 3, output_stride=2).shape[1:3] == (4, 3)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    torch.testing.assert_close(na2d(*turned, 3), want)
    assert na2d(*(x.double() for x in (query, key, value)), 3).dtype == torch.float64
    with pytest.raises(ValueError, match="key has dtype"):
        na2d(query, key.double(), value, 3)
    with pytest.raises(ValueError, match="batch"):
        na2d(query, key[:1], value[:1], 3)


def test_settings_in_force_count():
    given = operands()
    want = na2d(*given, 3)
    for _ in range(2):
        with using(backend="full"), pytest.raises(UnsupportedProblem):
            na2d(*given, 3)
        with using(backend="reference"):
            torch.testing.assert_close(na2d(*given, 3), want)


def test_watchers_see_the_operator():
    given = operands()
    na2d(*given, 3)
    with Names() as names:
        na2d(*given, 3)
    assert names.seen == ["vicinal.attend.default"]
    with profile() as profiled:
        na2d(*given, 3)
    assert any(event.name == "vicinal::attend" for event in profiled.events() or ())


def test_meta_tensors_keep_nothing():
    given = [x.to("meta") for x in operands()]
    assert na2d(*given, 3).is_meta
    assert not known._known


def test_autocast_casts():
    given = operands()
    na2d(*given, 3)
    narrow = [x.bfloat16() for x in given]
    want = na2d(*narrow, 3)
    count = len(known._known)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert na2d(*given, 3).dtype == torch.bfloat16
            assert torch.equal(na2d(*narrow, 3), want)
        with torch.autocast("cpu", torch.float16):
            assert na2d(*narrow, 3).dtype == torch.float16
    assert na2d(*given, 3).dtype == torch.float32
    # What autocast leaves as it is.
    assert len(known._known) == count + 1


@pytest.mark.parametrize("place", range(3), ids=["query", "key", "value"])
@pytest.mark.parametrize("kind", LAZY)
def test_numbers_that_memory_does_not_hold_are_computed_first(kind, place):
    lazy, plain = LAZY[kind]
    given, wanted = operands(), operands()
    given[place], wanted[place] = lazy(given[place]), plain(wanted[place])
    exact = na2d(*wanted, 3, backend="reference")
    count = len(known._known)
    for _ in range(2):
        torch.testing.assert_close(na2d(*given, 3), exact)
        torch.testing.assert_close(na2d_av(na2d_qk(*given[:2], 3).softmax(-1), given[2], 3), exact)
    # The one split operation that takes none of them.
    assert len(known._known) == count + 1


def test_transforms_see_through():
    query, key, value = operands()
    na2d(query, key, value, 3)
    many = torch.stack([query, query + 1])
    mapped = torch.func.vmap(lambda x: na2d(x, key, value, 3))(many)
    torch.testing.assert_close(mapped[1], na2d(query + 1, key, value, 3))
    attend = lambda x: na2d(x, key, value, 3)  # noqa: E731
    _, tangent = torch.func.jvp(attend, (query,), (torch.ones_like(query),))
    _, pull = torch.func.vjp(attend, query)
    back = pull(torch.ones_like(query))[0]
    torch.testing.assert_close(tangent.sum(), back.sum(), rtol=1e-3, atol=1e-3)


def test_gradients_come_only_where_they_are_wanted():
    query, key, value = operands(dtype=torch.float64)
    plain = na2d(query, key, value, 3)
    leaf = query.clone().requires_grad_()
    cotangent = torch.randn_like(plain)
    found = []
    for _ in range(2):
        out = na2d(leaf, key, value, 3)
        torch.testing.assert_close(out, plain)
        (grad,) = torch.autograd.grad(out, leaf, cotangent, create_graph=True)
        found += [grad, *torch.autograd.grad(grad.square().sum(), leaf)]
        with torch.no_grad():
            assert not na2d(leaf, key, value, 3).requires_grad
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    out, lse = na2d(leaf, key, value, 3, output_stride=2, return_lse=True)
    assert torch.autograd.grad(out.sum() + lse.sum(), leaf)[0].shape == query.shape


def test_split_operations_of_one_geometry_share_entries():
    query, key, value = operands()
    scores = na2d_qk(query, key, 3)
    out = na2d_av(scores, value, 3)
    assert len(known._known) == 2
    assert torch.equal(na2d_qk(query + 1, key, 3), na2d_qk(query + 1, key, 3, backend="blocked"))
    assert torch.equal(na2d_av(scores + 1, value, 3), na2d_av(scores + 1, value, 3, backend="blocked"))
    assert torch.equal(na2d_av(scores, value, 3), out)
    with pytest.raises(TypeError, match="kernel_size"):
        na2d_qk(query, key, 3.0)
    with pytest.raises(ValueError, match="attention_weights"):
        na2d_av(scores, value, 5)
    with Names() as names:
        na2d_av(na2d_qk(query, key, 3), value, 3)
    assert names.seen == ["vicinal.dot.default", "vicinal.mix.default"]


def documents(values, **options):
    """Packed documents with gradients that flow into the output, and what a fresh call finds."""
    layout = VarlenLayout(values)
    given = [torch.randn(layout.total_tokens, 2, 8, requires_grad=True) for _ in range(3)]
    padded = [torch.randn(len(layout), 7, 6, 2, 8, requires_grad=True) for _ in range(3)]
    sizes = torch.tensor(layout.shapes)
    for attend, tensors, where in (
        (neighborhood_attention_packed, given, layout),
        (na2d_varlen, padded, sizes),
    ):
        found, wanted = (
            attend(*tensors, where, 3, backend=backend, **options) for backend in (None, "reference")
        )
        torch.testing.assert_close(found, wanted)
        flow = torch.randn_like(found)
        pairs = (torch.autograd.grad(x, tensors, flow) for x in (found, wanted))
        for grad, exact in zip(*pairs, strict=True):
            torch.testing.assert_close(grad, exact)


def test_shapes_of_documents_count():
    # As many tokens, in other documents.
    for values in ([(7, 6), (3, 4)], [(6, 6), (6, 3)], [(3, 4), (7, 6)], [(7, 6), (4, 3)]):
        documents(values)
        documents(values, stride=2)
        count = len(known._known)
        documents(values)
        assert len(known._known) == count


@pytest.mark.parametrize("form", ["list", "tuple", "int", "long"])
@pytest.mark.parametrize("shapes", [[7, 3], [(7, 6), (3, 4)]], ids=str)
def test_sizes_of_any_form_share_an_entry(shapes, form, monkeypatch):
    sizes = torch.tensor(shapes)
    forms = {"list": shapes, "tuple": tuple(shapes), "int": sizes.int(), "long": sizes}
    given = operands(2, *(7, 6)[: sizes.dim()], 2, 8, requires_grad=True)
    wanted = neighborhood_attention_varlen(*given, sizes, 3)
    monkeypatch.setattr(varlen, "_checked_padded", None)
    found = neighborhood_attention_varlen(*given, forms[form], 3)
    assert torch.equal(found, wanted)
    pulled = (torch.autograd.grad(x, given, torch.ones_like(x)) for x in (found, wanted))
    assert all(map(torch.equal, *pulled))


def test_sizes_written_over_count():
    query, key, value = (torch.randn(2, 7, 6, 2, 8) for _ in range(3))
    sizes = torch.tensor([(7, 6), (3, 4)])
    first = na2d_varlen(query, key, value, sizes, 3)
    sizes[1, 1] = 6
    second = na2d_varlen(query, key, value, sizes, 3)
    assert not torch.equal(first, second)
    sizes[1, 1] = 4
    assert torch.equal(na2d_varlen(query, key, value, sizes, 3), first)
    sizes[1, 1] = 7
    with pytest.raises(ValueError, match="document"):
        na2d_varlen(query, key, value, sizes, 3)
    with Names() as names:
        na2d_varlen(query, key, value, torch.tensor([(7, 6), (3, 4)]), 3)
    assert "vicinal.attend_varlen.default" in names.seen


def test_additional_tokens_of_split_operations_are_checked_first():
    query, key, value = operands()
    extra = torch.randn(2, 4, 2, 8)
    for _ in range(2):
        scores = na2d_qk(query, key, 3, additional_keys=extra)
        torch.testing.assert_close(scores[..., :9], na2d_qk(query, key, 3))
        out = na2d_av(scores.softmax(-1), value, 3, additional_values=extra)
        given = {"additional_keys": extra, "additional_values": extra}
        torch.testing.assert_close(out, na2d(query, key, value, 3, **given))
        with pytest.raises(ValueError, match="additional_keys"):
            na2d_qk(query, key, 3, additional_keys=extra[:1])
        with pytest.raises(ValueError, match="additional_values"):
            na2d_av(scores, value, 3, additional_values=extra[:1])


def test_threads_share_what_is_kept():
    shapes = [(1, length, 2, 8) for length in range(5, 45)]
    given = {shape: operands(*shape) for shape in shapes}
    want = {shape: na1d(*given[shape], 5, backend="reference") for shape in shapes}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda shape: (shape, na1d(*given[shape], 5)), shapes * 20))
    for shape, out in found:
        torch.testing.assert_close(out, want[shape])


def test_what_is_kept_has_an_end(monkeypatch):
    monkeypatch.setattr(known, "MOST", 3)
    for length in range(5, 25):
        na1d(*operands(1, length, 1, 4), 3)
        assert len(known._known) <= 3


def test_an_empty_batch_stays_empty():
    for _ in range(2):
        assert na1d(*operands(0, 9, 2, 8), 3).shape == (0, 9, 2, 8)
