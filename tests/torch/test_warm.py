"""A call like one before answers as the first did, and whoever watches, casts or refuses still does."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from tests import budget
from vicinal import UnsupportedProblem, using
from vicinal.torch import known, na1d, na2d, na2d_av, na2d_qk
from vicinal.torch.backends import reference


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setattr(known, "_known", {})


def operands(*shape, **options):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape or (2, 7, 6, 2, 8), generator=generator, **options) for _ in range(3)]


class Names(TorchDispatchMode):
    """Operators that pass through the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


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


def fused(*given, **options):
    return na2d(*given, return_lse=True, **options)


def split(query, key, value, scale=None, **options):
    scores = na2d_qk(query, key, scale=scale, **options)
    return na2d_av(scores.softmax(-1), value, **options), scores.logsumexp(-1)


def gradients(given, seed=0, flow=(True, True), attend=fused, **options):
    """Gradients of the operands that require any, with `flow` into the output, the log-sum-exp or both."""
    generator = torch.Generator().manual_seed(seed)
    results = [x for x, wanted in zip(attend(*given, **options), flow, strict=True) if wanted]
    cotangents = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in results]
    wanted = [x for x in given if x.requires_grad]
    return torch.autograd.grad(results, wanted, cotangents, materialize_grads=True)


def test_one_entry_serves_equal_backward_passes_bit_for_bit():
    first, second = operands(requires_grad=True), [(x + 1).requires_grad_() for x in operands()]
    cold = gradients(second, kernel_size=3)
    known._known.clear()
    gradients(first, kernel_size=3)
    count = len(known._known)
    for warm, wanted in zip(gradients(second, kernel_size=3), cold, strict=True):
        assert torch.equal(warm, wanted)
    assert len(known._known) == count == 2


def check_every_part(attend, backend, other):
    """Forward and backward, after one that differs in one part; `other` is another dtype."""
    plain = operands(requires_grad=True)
    query, key, value = plain
    turned = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in plain]
    calls = [
        (plain, {}),
        (plain, {"stride": 2}),
        (plain, {"dilation": 2}),
        (plain, {"is_causal": True}),
        (plain, {"is_causal": (True, False)}),
        (plain, {"kernel_size": (3, 5)}),
        (plain, {"scale": 1.0}),
        (plain, {"output_stride": 2}),
        (plain, {"flow": (True, False)}),
        (plain, {"flow": (False, True)}),
        ([query.detach(), key, value], {}),
        ([query, key.detach(), value.detach()], {}),
        (turned, {}),
        ([turned[0], key, value], {}),
        ([x.detach().to(other).requires_grad_() for x in plain], {}),
        ([x.detach()[:1].requires_grad_() for x in plain], {}),
        (plain, {}),
    ]
    for seed, (given, options) in enumerate(calls):
        asked = {"kernel_size": 3, "attend": attend, **options}
        wanted = gradients(given, seed, backend="reference", **asked)
        for found, exact in zip(gradients(given, seed, backend=backend, **asked), wanted, strict=True):
            budget.check(
                "gradient", found.double().numpy(), exact.double().numpy(), str(exact.dtype)[6:], True
            )


@pytest.mark.parametrize("attend", [fused, split])
def test_every_part_of_a_backward_pass_counts(attend):
    check_every_part(attend, None, torch.float64)


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


def test_settings_in_force_count_backward(monkeypatch):
    given = operands(requires_grad=True)
    gradients(given, kernel_size=3)
    out = na2d(*given, 3)
    ran = []
    original = reference.Reference.attend_back
    monkeypatch.setattr(reference.Reference, "attend_back", lambda *args: ran.append(1) or original(*args))
    with using(backend="reference"):
        torch.autograd.grad(out, given, torch.ones_like(out), retain_graph=True)
    assert len(ran) == 1
    torch.autograd.grad(out, given, torch.ones_like(out))
    assert len(ran) == 1


def test_watchers_see_the_backward_operator():
    given = operands(requires_grad=True)
    gradients(given, kernel_size=3)
    out = na2d(*given, 3)
    with Names() as names:
        torch.autograd.grad(out, given, torch.ones_like(out))
    assert "vicinal.attend_back.default" in names.seen


def test_batched_and_recorded_gradients_see_through():
    given = operands(dtype=torch.float64, requires_grad=True)
    out = na2d(*given, 3)
    many = torch.randn(3, *out.shape, dtype=torch.float64)
    each = [torch.autograd.grad(out, given, x, retain_graph=True) for x in many]
    batched = torch.autograd.grad(out, given, many, retain_graph=True, is_grads_batched=True)
    for found, *rows in zip(batched, *each, strict=True):
        torch.testing.assert_close(found, torch.stack(rows))
    recorded = torch.autograd.grad(out, given, many[0].requires_grad_(), create_graph=True)
    for found, wanted in zip(recorded, each[0], strict=True):
        assert found.requires_grad
        torch.testing.assert_close(found, wanted)


def test_saved_tensors_of_another_geometry_are_read_right():
    given = operands(requires_grad=True)
    wanted = gradients(given, kernel_size=3)
    turn = lambda x: x.transpose(0, -1).contiguous().transpose(0, -1)  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach(), turn):
        for _ in range(2):
            for found, exact in zip(gradients(given, kernel_size=3), wanted, strict=True):
                torch.testing.assert_close(found, exact)


def test_no_tensor_is_kept():
    given = operands(requires_grad=True)
    out = na2d(*given, 3)
    held = [weakref.ref(x) for x in (*given, out, *torch.autograd.grad(out, given, torch.ones_like(out)))]
    del given, out
    gc.collect()
    assert known._known
    assert [x() for x in held] == [None] * 7


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
