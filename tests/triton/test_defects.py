"""A defect of Triton that the kernels stay clear of: what it does, on a GPU with TMA."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

import triton.language as tl  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

pytestmark = pytest.mark.cuda


@triton.jit
def read(source, found, T: tl.constexpr, W: tl.constexpr, DIM: tl.constexpr):
    """A box `[T, W, DIM]` as rows, through a product with one, which takes it from registers."""
    rows = tl.reshape(source.load([0, 0, 0]), [T * W, DIM])
    at = tl.arange(0, DIM)
    one = (at[:, None] == at[None, :]).to(rows.dtype)
    product = tl.dot(rows, one)
    tl.store(found + tl.arange(0, T * W)[:, None] * DIM + at[None, :], product)


def error(t, w, dim):
    torch.manual_seed(0)
    source = torch.randn(2 * t, 2 * w, dim, device="cuda", dtype=torch.bfloat16)
    found = torch.empty(t * w, dim, device="cuda")
    described = TensorDescriptor(source, list(source.shape), list(source.stride()), [t, w, dim])
    read[(1,)](described, found, t, w, dim, num_warps=4)
    return float((found - source[:t, :w].reshape(t * w, dim).float()).abs().max())


needs_tma = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="has no TMA"
)


@needs_tma
@pytest.mark.parametrize(("t", "w", "dim"), [(4, 16, 64), (1, 64, 128), (64, 1, 128)])
def test_boxes_of_one_panel_or_one_outer_extent_are_right(t, w, dim):
    assert error(t, w, dim) == 0.0
