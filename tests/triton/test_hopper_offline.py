"""Every kind of Hopper kernel, compiled for sm_90 without a GPU: what ptxas makes of it is the contract."""

import re
import subprocess
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
import torch

from tests.triton import machine_code
from tests.triton.keeping import planned
from vicinal import Axis, Problem

triton = pytest.importorskip("triton", reason="Triton is not installed")
if not triton.__version__.startswith("3.6"):
    pytest.skip(f"the kernels are written for Triton 3.6, not {triton.__version__}", allow_module_level=True)

from triton._C.libtriton import ir, nvidia, passes  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

from vicinal.triton import hopper_attention  # noqa: E402

BINARIES = Path(triton.__file__).parent / "backends/nvidia/bin"
SHARED = 232448
# Bytes in local memory, at most. The gradients of keys and values hold two sums of 64 registers a thread, and
# the slopes of two boxes, or sums of 48 and the keys: what does not fit are numbers that masks and the ends
# of a tile need (1-D with head dimension 96 spills most, and keys in shared memory take more time there). The
# forward keeps some that are needed once a tile, and three warpgroups that mask three axes a few of those.
SPILLS = {"attend": 60, "differentiate_quer": 4, "differentiate_key": 168, "sum_queries": 0}
# The same beside sums of 128 registers: numbers of a tile, which are stored once a tile and not in its walk.
# Where slopes are kept, a walk along one axis reads twelve of them in each step, and gains all the same.
WIDE_SPILLS = {
    "attend": 44,
    "differentiate_quer": 172,
    "differentiate_keys_and_keep": 368,
    "differentiate_key": 304,
    "sum_queries": 0,
}


class Hopper:
    """A driver that only names a target, so that kernels compile where there is no GPU."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture(autouse=True)
def _hopper(monkeypatch):
    monkeypatch.setattr(driver, "_active", Hopper())


class Shape:
    """A tensor without memory."""

    def __init__(self, *shape, dtype):
        self.shape, self.dtype, self.ndim = torch.Size(shape), dtype, len(shape)

    def stride(self):
        strides = [1]
        for extent in self.shape[:0:-1]:
            strides.append(strides[-1] * extent)
        return tuple(reversed(strides))

    def data_ptr(self):
        return 0


def problem(lengths, size, stride=1, dilation=1, causal=False, output_stride=1, **options):
    rank = len(lengths)
    spread = [
        x if isinstance(x, tuple) else (x,) * rank for x in (size, stride, dilation, causal, output_stride)
    ]
    axes = tuple(Axis(*numbers) for numbers in zip(lengths, *spread, strict=True))
    options = {"heads": 4, "kv_heads": 2, "dim": 128, "value_dim": 128, "dtype": "bfloat16"} | options
    return Problem(axes, device="cuda", **{"gradients": True, **options})


CASES = (
    problem((32768,), 2048),
    problem((4096,), 512, stride=64, causal=True, dtype="float16"),
    problem((256, 256), 80),
    problem((256, 256), 80, stride=16, dim=64, value_dim=64),
    problem((255, 130), (40, 33), dilation=(2, 3), causal=(True, False)),
    problem((256, 256), 40, dilation=2),
    problem((64, 64), 16, output_stride=2, dim=32, value_dim=32),
    problem((128, 128), 31, dim=48, value_dim=80),
    problem((96, 96), 21, dim=32, value_dim=64),
    problem((128, 128), 31, dim=256, value_dim=256),
    problem((4096,), 512, causal=True, dim=256, value_dim=64),
    problem((128, 128), 31, dim=192, value_dim=96),
    problem((128, 128), 31, dim=160, value_dim=192),
    problem((4096,), 512, stride=64, causal=True, dim=96, value_dim=96),
    problem((256, 256), 80, dim=80, value_dim=72, dtype="float16"),
    problem((255, 130), (40, 33), dilation=(2, 3), causal=(True, False), dim=96, value_dim=96),
    problem((30, 48, 80), (18, 24, 24), causal=(True, False, False)),
    problem((30, 48, 80), (18, 24, 24), dim=64, value_dim=64),
    problem((32768,), 2048, dim=64, value_dim=64, dtype="float16"),
    problem((256, 256), 80, key_dtype="float8_e4m3fn", gradients=False),
)
# Slopes kept: with masks and without, of whole tiles and ragged ones.
KEPT = (
    problem((61, 77), (23, 30), dim=96),
    problem((32768,), 2048),
    problem((256, 256), 80, stride=16, dtype="float16"),
    problem((4096,), 512, causal=True, dim=96, value_dim=96),
    problem((70, 45), (33, 21), stride=(3, 2), causal=(True, False), batch=3),
    problem((128, 96), 40, dim=104, value_dim=96, dtype="float16"),
    problem((256, 256), 80, dim=256, value_dim=256),
    problem((32768,), 2048, dim=256, value_dim=256),
    problem((61, 77), (23, 30), causal=(False, True), dim=208, value_dim=96, dtype="float16"),
)


def shapes(case):
    """Queries, outputs, keys and values without memory."""
    dtype, key_dtype = getattr(torch, case.dtype), getattr(torch, case.key_dtype or case.dtype)
    rows, columns = (case.batch, *case.outputs, case.heads), (case.batch, *case.lengths, case.kv_heads)
    query, key = (Shape(*extents, case.dim, dtype=key_dtype) for extents in (rows, columns))
    out, value = (Shape(*extents, case.value_dim, dtype=dtype) for extents in (rows, columns))
    return query, out, key, value


def kept_kernels(case):
    """Gradients of keys and values, which leave slopes of two query heads, and of queries from those."""
    query, out, key, value = shapes(case)
    plan = planned(case, 1)
    keys, queries = hopper_attention.kept_launches(case, plan, 2)
    slopes = Shape(1, 2 * plan.blocks * 64, 1, 1, 1, 64, dtype=query.dtype)
    tensors = (key, value, query, out, key, value)
    yield keys.warmup(tensors, (torch.float32, query.dtype), (0.1, 0.1, 0, 5, 0))
    yield queries.warmup((key, slopes, query), (), (0.1, 0, 5, 0))


def kernels(case, whole=True):
    """Compiled forward, and gradients of queries, and of keys and values; or gradients of some of them."""
    query, out, key, value = shapes(case)
    floats = (torch.float32,)
    if whole:
        yield hopper_attention.forward_launch(case).warmup((query, key, value, out), floats, (0.1,))
    if not case.gradients:
        return
    tensors = (query, out, key, value, query)
    # Whether queries have a gradient, and log-sum-exps.
    for flags in [(True, False)] if whole else [(True, True), (False, True), (False, False)]:
        launch = hopper_attention.query_gradient_launch(case, *flags)
        yield launch.warmup(tensors, (out, *floats * 3), (0.1, 0.1))
    # Whether keys have one, and values.
    for flags in [(True, True)] if whole else [(True, False), (False, True)]:
        for launch in hopper_attention.key_gradient_launches(case, *flags):
            yield launch.warmup((key, value, query, out, key, value), floats, (0.1, 0.1))


def assembled(compiled, folder):
    """What ptxas reports, and the machine code."""
    source, binary = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(compiled.asm["ptx"])
    command = [BINARIES / "ptxas", "-arch=sm_90a", "-v", source, "-o", binary]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    code = subprocess.run(
        [BINARIES / "cuobjdump", "-sass", binary], capture_output=True, text=True, check=True
    )
    return report, code.stdout


def buffers(compiled, folder):
    """First and stop byte of each buffer in shared memory, as Triton's passes place them."""
    source = folder / "kernel.ttgir"
    source.write_text(compiled.asm["ttgir"])
    context = ir.context()
    ir.load_dialects(context)
    nvidia.load_dialects(context)
    module = ir.parse_mlir_module(str(source), context)
    # Nothing else holds what the module is made of.
    module.context = context
    manager = ir.pass_manager(context)
    passes.ttgpuir.add_allocate_warp_groups(manager)
    passes.convert.add_scf_to_cf(manager)
    passes.gluon.add_inliner(manager)
    nvidia.passes.ttgpuir.add_allocate_shared_memory_nv(manager, 90, 86)
    manager.run(module, "allocate")
    pattern = r"local_alloc \{allocation\.offset = (\d+) : i32\} : \(\) -> !ttg\.memdesc<([\dx]+)x[a-z]+(\d+)"
    for offset, shape, bits in re.findall(pattern, str(module)):
        yield int(offset), int(offset) + prod(map(int, shape.split("x"))) * int(bits) // 8


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiles_to_what_hopper_is_fast_at(case, tmp_path):
    for compiled in kernels(case):
        code = checked(compiled, tmp_path, spills(case))
        assert "HGMMA" in code, compiled.name
        assert case.key_dtype is None or "QGMMA" in code, compiled.name


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.gradients], ids=str)
def test_gradients_of_some_operands_compile_as_well(case, tmp_path):
    codes = [checked(compiled, tmp_path, spills(case)) for compiled in kernels(case, whole=False)]
    counts = [code.count("HGMMA") for code in codes]
    # Where queries have no gradient, what that of keys reads takes no product.
    assert [count > 0 for count in counts] == [True, False, False, *(True,) * (len(counts) - 3)]


@pytest.mark.slow
@pytest.mark.parametrize("case", KEPT, ids=str)
def test_kept_slopes_compile_to_what_hopper_is_fast_at(case, tmp_path):
    keys, queries = (checked(compiled, tmp_path, spills(case)) for compiled in kept_kernels(case))
    # Per warpgroup S, dP, dV if not in a kernel of its own, and dK in a step and after the last; and dQ of
    # two boxes of queries, or of one.
    dim, value_dim = (-(-dim // 32) * 32 for dim in (case.dim, case.value_dim))
    wide = dim > 192
    dim = 256 if wide else dim
    assert multiplied(keys) == 2 * 4 * (dim + (1 if wide else 2) * value_dim + 2 * dim)
    assert multiplied(queries) == 2 * (1 if wide else 2) * 4 * dim
    # Slopes are read as they lie, column by column.
    products = re.findall(r"HGMMA\.\S+ R\d+, (\S+), ", queries)
    assert products
    assert all(left.startswith("gdesc") and ".tnspA" in left for left in products), products
    # A thread leaves its 64 bytes of a box 16 at a time; a program leaves the counter as it was.
    assert re.findall(r" STG\.E(\S*)", keys).count(".128") == 2 * 4
    assert len(re.findall(r" STG\.E", keys)) == 2 * 4 + 1


@pytest.mark.slow
@pytest.mark.parametrize("compile_", [kernels, kept_kernels])
def test_three_quarters_of_a_head_dim_take_three_quarters_of_the_products(compile_, tmp_path):
    case = problem((256, 256), 80)
    whole, parts = (
        [multiplied(checked(one, tmp_path)) for one in compile_(replace(case, dim=dim, value_dim=dim))]
        for dim in (128, 96)
    )
    assert [4 * some for some in parts] == [3 * all_ for all_ in whole]


@pytest.mark.slow
def test_exponentials_of_narrow_heads_with_masks_follow_all_products_of_a_box(tmp_path):
    case = problem((256, 256), 80, dim=64, value_dim=64)
    *_, keys = (checked(compiled, tmp_path) for compiled in kernels(case))
    # From the scores on: until these are there, and until all products are.
    loops = re.findall(r"DEPBAR\.LE gsb0, 0x(\d)(.*?)DEPBAR\.LE gsb0, 0x(\d)", keys, re.DOTALL)
    assert [(left, then) for left, found, then in loops if found.count("MUFU.EX2") >= 32] == [("0", "0")] * 2


def multiplied(code):
    """Products in machine code: columns of sums, over all steps along the other dimension."""
    return sum(int(columns) for columns in re.findall(r"HGMMA\.64x(\d+)x16", code))


def spills(case):
    return WIDE_SPILLS if case.dim > 192 else SPILLS


def checked(compiled, folder, spills=SPILLS):
    """Machine code, which keeps to what a Hopper GPU has and is fast at."""
    report, code = assembled(compiled, folder)
    # Serialized products are reported with these numbers.
    assert not re.search(r"C75\d\d", report), (compiled.name, report)
    spilled = int(re.search(r"(\d+) bytes spill stores", report).group(1))
    allowed = next(bytes_ for name, bytes_ in spills.items() if compiled.name.startswith(name))
    assert spilled <= allowed, (compiled.name, report)
    assert compiled.metadata.shared <= SHARED, compiled.name
    # What no partition uses, a barrier say, is laid over what another one fills.
    places = sorted(buffers(compiled, folder))
    assert len(places) >= 3, compiled.name
    assert all(before[1] <= after[0] for before, after in pairwise(places)), (compiled.name, places)
    # A warp that copied boxes of 32-bit elements hit an illegal instruction; `test_defects` tries it.
    assert all(one["elem_size"] <= 2 for one in compiled.metadata.tensordesc_meta or ()), compiled.name
    assert not machine_code.touched(code), compiled.name
    assert not machine_code.overwritten(code), compiled.name
    assert not machine_code.early_arrivals(compiled.asm["ptx"]), compiled.name
    assert not machine_code.overtaken(compiled.asm["ptx"]), compiled.name
    assert "UTMALDG" in code, compiled.name
    assert "HMMA.16816" not in code, compiled.name
    return code
