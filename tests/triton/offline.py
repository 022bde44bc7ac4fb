"""Compile the portable kernels for a GPU that need not be here; prints what each uses as a JSON line.

python -m tests.triton.offline cuda:90 short [part of a name ...] [--digests] [--recorded]

With digests of what kernels are compiled from, if these are asked for. What is recorded of a kernel is
printed in place of compiling the same source again.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tests.triton import recorded
from vicinal import Axis, Problem
from vicinal.problem import Documents
from vicinal.triton import documents, launches, plan, ring_launches

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
MATRIX = r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b|v_mfma_\w+|v_dot\w+"


class AbsentDevice:
    """Stands in for Triton's driver: it knows what to compile for, and launches nothing."""

    launcher_cls = None

    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def problems(kind):
    """Problems whose kernels are all that ships: loops and single boxes, head dims, options."""
    plane, small = Axis(64, 33), Axis(56, 7)
    dtypes = {"short": ("bfloat16",), "float32": ("float32",)}[kind]
    for dtype, dim in product(dtypes, (32, 64, 128, 256)):
        for axis, axes in (("loop", (plane, plane)), ("single", (small, small))):
            yield f"{axis}-{dtype}-{dim}", problem(axes, dim, dtype)
            if dtype == "float32" and dim < 256:
                yield f"{axis}-tf32-{dim}", problem(axes, dim, dtype, tf32=True)
    dtype = dtypes[0]
    yield f"padded-{dtype}-80", problem((plane, plane), 80, dtype, value_dim=48)
    yield f"whole-{dtype}-32", problem((Axis(14, 7),) * 2, 32, dtype)
    yield f"dilated-{dtype}-32", problem((Axis(56, 7, 1, 8),) * 2, 32, dtype)
    yield f"sampled-{dtype}-16", problem((Axis(33, 5, 2, 1, True, 2), Axis(40, 4, 1, 3, False, 2)), 16, dtype)
    every_other = Axis(17, 8, 6), Axis(20, 1, 1, 3, True, 2)
    yield f"sampled_in_part-{dtype}-32", problem(every_other, 32, dtype)
    yield f"cube-{dtype}-32", problem((Axis(32, 3),) * 3, 32, dtype)
    for dim, axes in product((32, 64), ((Axis(2048, 255),), (Axis(56, 21),) * 2, (Axis(16, 7),) * 3)):
        yield f"bounded-{len(axes)}-{dtype}-{dim}", problem(axes, dim, dtype)
    hard = Axis(65, 5, 2, 3, True, 2)
    yield f"options-{dtype}-64", problem((hard, Axis(64, 8)), 64, dtype, bias=True, extra=5, kv_heads=2)
    yield f"options-{dtype}-128", problem((hard, plane), 128, dtype, bias=True, extra=5, kv_heads=2)
    # `FAR` operands.
    yield f"far-{dtype}-128", problem((plane, small), 128, dtype)
    yield f"far-{dtype}-64", problem((hard, plane), 64, dtype, bias=True, extra=5, kv_heads=2)
    several = Documents(((60, 40), (64, 64)), None, False)
    yield f"packed-{dtype}-64", problem((plane, plane), 64, dtype, documents=several)
    framed = several._replace(frame=(70, 70), clip=True)
    yield f"framed-{dtype}-64", problem((plane, plane), 64, dtype, documents=framed)
    hard_plane, wide = (hard, Axis(128, 8)), several._replace(shapes=((65, 64), (30, 70)))
    options = {"bias": True, "extra": 5, "kv_heads": 2, "documents": wide}
    yield f"packed-options-{dtype}-64", problem(hard_plane, 64, dtype, **options)


def problem(axes, dim, dtype, **options):
    options = {"value_dim": dim, "kv_heads": 4, **options}
    return Problem(axes, batch=2, heads=4, dim=dim, dtype=dtype, device="cuda", gradients=True, **options)


# What strides of batch and first axis are multiplied by: tokens lie unevenly, and offsets take 64 bits.
FAR = 1 << 20


def contiguous(*shape, spread=1):
    strides = [1]
    for extent in shape[:0:-1]:
        strides.insert(0, strides[0] * extent)
    return tuple(step * spread for step in strides[:2]) + tuple(strides[2:])


def kernels(p, spread=1):
    """Every kernel of a problem, with the dtypes of its tensors."""
    given_as = partial(contiguous, spread=spread)
    element, wide = getattr(torch, p.dtype), torch.float32
    tokens, outputs = documents.extents(p)
    row = given_as(*(tokens if p.documents else outputs), p.heads, p.dim)
    key, value = (given_as(*tokens, p.kv_heads, d) for d in (p.dim, p.value_dim))
    extra = [contiguous(p.batch, p.extra, p.kv_heads, d) if p.extra else () for d in (p.dim, p.value_dim)]
    out = given_as(*outputs, p.heads, p.value_dim)
    given = (row, key, value, (1,) if p.bias else (), *extra)
    bias, more = wide if p.bias else None, element if p.extra else None
    inputs, table = (element, element, element, bias, more, more), torch.int32 if p.documents else None
    if plan.forward(p).single:
        yield "small.attend", launches.small_forward_launch(p, 0.1, given), (*inputs[:4], element, wide)
    else:
        yield "attend", launches.forward_launch(p, 0.1, given), (*inputs, table, element, wide)
    back = (*given, out)
    each = table if documents.is_padded(p) else None
    yield "delta_of", launches.delta_launch(p, out), (element, element, wide, each, wide)
    rows = (element, wide, wide, table, element)
    yield "query_gradient", launches.query_gradient_launch(p, 0.1, back), (*inputs, *rows)
    yield "key_gradient", launches.key_gradient_launch(p, 0.1, back), (*inputs[:4], *rows, element)
    steps, swept = (*given[:3], out), (element, element, element, element)
    sweeps = (
        ("ring.attend", ring_launches.forward_launch(p, 0.1, given[:3]), (*swept, wide)),
        (
            "ring.query_gradient",
            ring_launches.query_gradient_launch(p, 0.1, steps),
            (*swept, element, wide, wide, wide, element),
        ),
        (
            "ring.key_gradient",
            ring_launches.key_gradient_launch(p, 0.1, steps),
            (*swept, wide, wide, element, element),
        ),
    )
    yield from (sweep for sweep in sweeps if sweep[1] is not None)
    if p.extra:
        types = (element, element, element, element, wide, wide, table, wide, wide)
        yield "extra_gradient", launches.extra_gradient_launch(p, 0.1, back)[0], types
    if p.bias:
        scores, tally, _ = launches.bias_gradient_launches(p, 0.1, back, 0)
        yield "score_gradient", scores, (*inputs[:4], element, wide, wide, table, wide)
        yield "tally", tally, (wide, table, wide)
    if p.documents:
        return
    plain = replace(p, extra=0)
    rows = replace(plain, bias=False, dim=p.value_dim)
    walks = {
        "dot": (replace(plain, operation="dot"), 0.1, row, key),
        "mix": (replace(rows, operation="mix"), None, value),
        "mix_back": (replace(rows, operation="mix_back"), None, out),
    }
    for name, walk in walks.items():
        others = (bias,) if name == "dot" else ()
        yield name, launches.walk_launch(*walk), (element, element, *others, element)
        sweep = ring_launches.walk_launch(*walk)
        if sweep is not None:
            yield f"ring.{name}", sweep, (element, element, *others, element)


def measure(compiled, target, log):
    """Registers, bytes spilled a thread, shared memory, matrix instructions and ptxas' numbered warnings."""
    shared = compiled.metadata.shared
    # Plain Triton's descriptors lose rows of boxes that registers hold; these kernels compute addresses.
    assert not getattr(compiled.metadata, "tensordesc_meta", None), compiled.name
    if target.backend == "hip":
        code = compiled.asm["amdgcn"]
        spilled = sum(map(int, re.findall(r"\.(?:vgpr|sgpr)_spill_count:\s*(\d+)", code)))
        registers = max(map(int, re.findall(r"\.vgpr_count:\s*(\d+)", code)))
        return {"registers": registers, "spilled": spilled, "shared": shared, "matrix": count(code)}
    report = log if "spill stores" in log else assembled(compiled, target.arch)
    found = re.search(r"(\d+) bytes spill stores", report), re.search(r"Used (\d+) registers", report)
    spilled, registers = (int(number[1]) for number in found)
    return {
        "registers": registers,
        "spilled": spilled,
        "shared": shared,
        # Each is one or several of the machine's, which take much longer to print.
        "matrix": count(compiled.asm["ptx"]),
        "warnings": re.findall(r"C7\d\d\d", report),
    }


def assembled(compiled, arch):
    """What ptxas reports: Triton 3.4 does not pass it on, nor any for a kernel that it compiled before."""
    newer, version = TOOLS / "ptxas-blackwell", int(re.search(r"\.version (\d+)", compiled.asm["ptx"])[1])
    tool = newer if (arch >= 100 or version >= 9) and newer.exists() else TOOLS / "ptxas"
    with tempfile.NamedTemporaryFile(suffix=".ptx") as file:
        file.write(compiled.asm["ptx"].encode())
        file.flush()
        name = f"--gpu-name=sm_{arch}{'a' if arch >= 90 else ''}"
        return output(
            tool if tool.exists() else TOOLS / "ptxas", "-v", name, file.name, "-o", os.devnull
        ).stderr


def count(code):
    return len(re.findall(MATRIX, code))


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("target")
    options.add_argument("kind", choices=("short", "float32"))
    options.add_argument("names", nargs="*")
    options.add_argument("--digests", action="store_true")
    options.add_argument("--recorded", action="store_true")
    wanted = options.parse_args()
    backend, arch = wanted.target.split(":")
    found = GPUTarget(backend, int(arch) if backend == "cuda" else arch, 32 if backend == "cuda" else 64)
    driver.set_active(AbsentDevice(found))
    os.environ |= {"TRITON_ALWAYS_COMPILE": "1", "TRITON_DUMP_PTXAS_LOG": "1"}
    rows = recorded.rows() if wanted.recorded else ()
    known = {row["digest"]: row for row in rows if row["target"] == wanted.target}
    sources = recorded.Sources(known)
    if wanted.digests or wanted.recorded:
        triton.knobs.runtime.add_stages_inspection_hook = sources
    for name, p in problems(wanted.kind):
        for kernel, launch, dtypes in kernels(p, FAR if name.startswith("far") else 1):
            whole = f"{name}/{kernel}"
            if wanted.names and not any(part in whole for part in wanted.names):
                continue
            sources.options = launch.options
            tensors = [None if dtype is None else torch.empty(16, dtype=dtype) for dtype in dtypes]
            try:
                with redirect_stdout(StringIO()) as log:
                    compiled = launch.warmup(*tensors)
            except recorded.Recorded as stopped:
                digest = stopped.args[0]
                measured = {key: known[digest][key] for key in recorded.MEASURES}
            else:
                digest = sources.digest(compiled.metadata.hash) if sources.found else ""
                measured = measure(compiled, found, log.getvalue())
            print(json.dumps({"name": whole, "digest": digest, **measured}), flush=True)


if __name__ == "__main__":
    main()
