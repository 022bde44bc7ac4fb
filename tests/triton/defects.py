"""What Triton's descriptors do where the kernels avoid them, on a GPU with TMA: a line a check, once known.

    python -m tests.triton.defects

Boxes of several panels, which pass through registers, and boxes of float32, which a warp alone copies. The
latter may end their process, so each has its own; all start at once, for most of the time goes into starting.
"""

import subprocess
import sys
import time

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.tools.tensor_descriptor import TensorDescriptor

# Boxes [t, w, dim] of bfloat16: two panels of 64 and two outer extents, then one of each.
BOXES = ((4, 16, 128), (2, 32, 128), (4, 16, 64), (1, 64, 128))
ROW = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
SIZE = gl.constexpr(64)
STAGES = gl.constexpr(3)
COUNT = 10


@triton.jit
def _box(source, T: tl.constexpr, W: tl.constexpr, DIM: tl.constexpr, RANK: tl.constexpr):
    if RANK == 5:  # noqa: SIM108 the branch is taken at compile time
        box = source.load([0, 0, 0, 0, 0])
    else:
        box = source.load([0, 0, 0])
    return tl.reshape(box, [T * W, DIM])


@triton.jit
def _places(T: tl.constexpr, W: tl.constexpr, DIM: tl.constexpr):
    return tl.arange(0, T * W)[:, None] * DIM + tl.arange(0, DIM)[None, :]


@triton.jit
def _unit(DIM: tl.constexpr):
    at = tl.arange(0, DIM)
    return at[:, None] == at[None, :]


@triton.jit
def read(source, found, T: tl.constexpr, W: tl.constexpr, DIM: tl.constexpr, RANK: tl.constexpr):
    """Twice a box, by the vector units."""
    tl.store(found + _places(T, W, DIM), (_box(source, T, W, DIM, RANK) * 2).to(tl.float32))


@triton.jit
def multiply(source, found, T: tl.constexpr, W: tl.constexpr, DIM: tl.constexpr, RANK: tl.constexpr):
    """The same, the box as the left factor of a product."""
    rows = _box(source, T, W, DIM, RANK)
    tl.store(found + _places(T, W, DIM), tl.dot(rows, _unit(DIM).to(rows.dtype)) * 2)


@triton.jit
def write(target, source, T: tl.constexpr, W: tl.constexpr, DIM: tl.constexpr, RANK: tl.constexpr):
    """A product into a box."""
    rows = tl.load(source + _places(T, W, DIM))
    rows = (tl.dot(rows, _unit(DIM).to(rows.dtype)) * 2).to(rows.dtype)
    if RANK == 5:
        target.store([0, 0, 0, 0, 0], tl.reshape(rows, [1, T, W, 1, DIM]))
    else:
        target.store([0, 0, 0], tl.reshape(rows, [T, W, DIM]))


def panels(kernel, box, rank):
    """Largest error of a box."""
    t, w, dim = box
    source = torch.randn(2 * t, 2 * w, dim, device="cuda", dtype=torch.bfloat16)
    wanted = 2 * source[:t, :w].float()
    described = source if kernel is not write else torch.zeros_like(source)
    extents = described[None, :, :, None] if rank == 5 else described
    sides = [1, t, w, 1, dim] if rank == 5 else [t, w, dim]
    descriptor = TensorDescriptor(described, list(extents.shape), list(extents.stride()), sides)
    plain = source[:t, :w].contiguous() if kernel is write else torch.empty(t, w, dim, device="cuda")
    kernel[(1,)](descriptor, plain, t, w, dim, rank, num_warps=4)
    found = described[:t, :w] if kernel is write else plain
    return float((found.float() - wanted).abs().max())


@gluon.jit
def _copy(source, held, full, empty, count, RANK: gl.constexpr):
    for i in range(count):
        stage = i % STAGES
        bar = full.index(stage)
        mbarrier.wait(empty.index(stage), ((i // STAGES) & 1) ^ 1)
        mbarrier.expect(bar, source.block_type.nbytes)
        if RANK == 5:
            tma.async_copy_global_to_shared(source, [0, 0, 0, 0, i * SIZE], bar, held.index(stage))
        else:
            tma.async_copy_global_to_shared(source, [0, i * SIZE], bar, held.index(stage))


@gluon.jit
def _add(out, held, full, empty, count):
    total = gl.full([SIZE], 0.0, gl.float32, layout=ROW)
    for i in range(count):
        stage = i % STAGES
        mbarrier.wait(full.index(stage), (i // STAGES) & 1)
        total += held.index(stage).reshape([SIZE]).load(ROW)
        mbarrier.arrive(empty.index(stage), count=1)
    gl.store(out + gl.arange(0, SIZE, layout=ROW), total)


@gluon.jit
def add(source, out, count, RANK: gl.constexpr):
    """The sum of boxes of float32, which a warp copies into a ring of buffers, and four others read."""
    shape: gl.constexpr = [STAGES] + source.block_type.shape  # noqa: RUF005 no unpacking in kernels
    held = gl.allocate_shared_memory(source.dtype, shape, source.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    gl.warp_specialize(
        [(_add, (out, held, full, empty, count)), (_copy, (source, held, full, empty, count, RANK))],
        [1],
        [24],
    )


def floats(rank):
    """Largest error of a sum of boxes of float32."""
    size = SIZE.value
    source = torch.randint(-8, 8, (1,) * (rank - 1) + (COUNT * size,), device="cuda").float()
    out = torch.full((size,), float("nan"), device="cuda")
    layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=rank)
    strides, sides = [COUNT * size] * (rank - 1) + [1], [1] * (rank - 1) + [size]
    add[(1,)](
        GluonDescriptor(source, list(source.shape), strides, sides, layout), out, COUNT, rank, num_warps=4
    )
    return float((out - source.view(COUNT, size).sum(0)).abs().max())


def said(name, start, error):
    print(f"{name}: error {error:.3g} after {time.perf_counter() - start:.1f} s", flush=True)


def main():
    start = time.perf_counter()
    command = [sys.executable, "-m", "tests.triton.defects", "floats"]
    children = {
        rank: subprocess.Popen(
            [*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in (2, 5)
    }
    for kernel in (multiply, write, read):
        for rank in (5, 3):
            for box in BOXES:
                said(f"{kernel.__name__} {box} rank {rank}", start, panels(kernel, box, rank))
    for rank, child in children.items():
        lines = child.communicate()[0].splitlines()
        print(f"floats rank {rank}: status {child.returncode}: {lines[-1] if lines else ''}", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1:2] == ["floats"]:
        print(f"error {floats(int(sys.argv[2])):.3g}")
    else:
        main()
