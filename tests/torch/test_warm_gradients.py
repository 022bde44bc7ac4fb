"""A backward pass like one before answers as the first did, and whoever watches still does."""

import gc
import weakref

import pytest
import torch

from tests.torch.repeated import LAZY, Names, check_every_part, fused, gradients, operands, split
from vicinal import using
from vicinal.torch import known, na2d
from vicinal.torch.backends import reference

pytestmark = pytest.mark.usefixtures("nothing_known")


def test_one_entry_serves_equal_backward_passes_bit_for_bit():
    first, second = operands(requires_grad=True), [(x + 1).requires_grad_() for x in operands()]
    cold = gradients(second, kernel_size=3)
    known._known.clear()
    gradients(first, kernel_size=3)
    count = len(known._known)
    for warm, wanted in zip(gradients(second, kernel_size=3), cold, strict=True):
        assert torch.equal(warm, wanted)
    assert len(known._known) == count == 2


@pytest.mark.parametrize("attend", [fused, split])
def test_every_part_of_a_backward_pass_counts(attend):
    check_every_part(attend, None, torch.float64)


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


@pytest.mark.parametrize("kind", LAZY)
def test_gradients_that_memory_does_not_hold_are_computed_first(kind):
    lazy, plain = LAZY[kind]
    given = operands(requires_grad=True)
    out = na2d(*given, 3)
    flow = torch.randn_like(out)
    count = len(known._known)
    lazily = torch.autograd.grad(out, given, lazy(flow), retain_graph=True)
    assert len(known._known) == count
    for found, wanted in zip(lazily, torch.autograd.grad(out, given, plain(flow)), strict=True):
        torch.testing.assert_close(found, wanted)
    assert len(known._known) == count + 1


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
