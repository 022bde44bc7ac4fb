"""Every kernel family under compute-sanitizer, forward and backward, on a few tokens; needs an NVIDIA GPU.

python -m tests.triton.sanitize [memcheck racecheck delays ...]

First the tools must find the faults that are planted for them: then their silence means something. Where
racecheck reports the right kernel of `partitions`, its reports about `hopper` mean nothing, and `delays` is
what looks for races there.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product

import torch

from tests.documents import case
from tests.torch.documents import Packed, Padded, check
from tests.triton.keeping import keeping
from vicinal import Axis, Problem
from vicinal.torch.backends import BACKENDS
from vicinal.torch.backends.base import Operands
from vicinal.triton import ring_plan, support

TOOLS = ("memcheck", "racecheck", "delays")
# Exit status of a tool that reports a fault.
FAULT = 7
HARD = Axis(11, 3, 2, 3, True, 2)


def problem(*axes, **options):
    heads, dim = options.setdefault("heads", 2), options.setdefault("dim", 32)
    given = {"kv_heads": heads, "value_dim": dim, "dtype": "float16", "gradients": True, **options}
    return Problem(axes, device="cuda", **given)


# Ragged everywhere: a wrong bound shows where an axis, a dilation group or a head dimension ends.
PROBLEMS = {
    "triton": (
        problem(Axis(9, 3), Axis(7, 3), dim=24),
        problem(Axis(5, 3), Axis(4, 3), Axis(7, 3), dim=12, dtype="bfloat16", kv_heads=1),
        problem(Axis(19, 5, 2), Axis(13, 4, 1, 2), dim=40),
        problem(HARD, Axis(7, 4), dim=20, value_dim=64),
        problem(HARD, Axis(7, 4), bias=True, dim=12, value_dim=20),
        problem(HARD, Axis(7, 4), bias=True, extra=5, kv_heads=1),
        problem(Axis(133, 70), dim=80),
        problem(Axis(67, 40, 1, 1, True), dtype="float32", extra=3, dim=40),
        problem(Axis(40, 33), dim=256, dtype="bfloat16"),
        problem(Axis(19, 5, 2), Axis(13, 4, 1, 2), dtype="float32", bias=True, value_dim=12),
        problem(Axis(300, 270), dim=64),
        problem(Axis(9, 7), Axis(11, 7), Axis(10, 6), dim=48, kv_heads=1, dtype="bfloat16"),
        problem(Axis(35, 17, 1, 2), Axis(18, 17, 1, 1, True), dim=40, value_dim=24),
        problem(Axis(23, 17), Axis(19, 15, 4), dim=24),
    ),
    "rings": (
        problem(Axis(9, 3), Axis(7, 3)),
        problem(Axis(5, 3), Axis(6, 3), Axis(7, 3), dtype="bfloat16"),
        problem(Axis(19, 5, 2, 2), Axis(13, 4, 1, 2), dim=64, dtype="bfloat16", kv_heads=1, batch=2),
        problem(HARD, Axis(7, 4), dim=16, value_dim=32),
        problem(Axis(150, 33, 4), dim=64),
        problem(Axis(19, 3), Axis(20, 7)),
        problem(Axis(5, 3), Axis(5, 3), Axis(20, 7), dim=16, dtype="bfloat16"),
    ),
    "hopper": (
        problem(Axis(150, 70), dim=64),
        problem(Axis(131, 60, 3, 1, True), dim=128, kv_heads=1, dtype="bfloat16", batch=2),
        problem(Axis(17, 9), Axis(19, 8, 4), dim=48, value_dim=40),
        problem(Axis(5, 3), Axis(9, 5), Axis(10, 6), dim=128),
        problem(Axis(130, 30, 1, 2), dim=64),
        problem(Axis(15, 5, 1, 2), Axis(17, 8, 2, 1, True), dim=96, dtype="bfloat16"),
        problem(Axis(140, 50, 1, 1, False, 3), dim=32),
        problem(Axis(19, 8), Axis(18, 9), dim=256),
        problem(Axis(150, 70), dim=64, key_dtype="float8_e4m3fn", gradients=False),
        problem(Axis(1601, 1550), heads=1, dim=64),
        problem(Axis(48, 32, 16), Axis(48, 32, 16), heads=1, dim=64),
        problem(Axis(50, 40), Axis(49, 41, 5), dim=24, value_dim=40, dtype="bfloat16"),
        problem(Axis(17, 9), Axis(19, 8), dim=96),
        problem(Axis(150, 70), dim=160, value_dim=80, dtype="bfloat16"),
    ),
    "kept slopes": (
        problem(Axis(150, 70), dim=128),
        problem(Axis(384, 128, 128), dim=128, value_dim=96, batch=2, kv_heads=1),
        problem(Axis(330, 200, 1, 1, True), heads=3, dim=96, dtype="bfloat16"),
        problem(Axis(17, 9), Axis(42, 33, 4), dim=104, value_dim=128, dtype="bfloat16"),
        problem(Axis(19, 8), Axis(18, 9), dim=256),
    ),
}
# Families of one backend that have other names.
BACKEND_OF = {"rings": "triton", "kept slopes": "hopper"}


def operands(p):
    generator = torch.Generator().manual_seed(0)
    own, of_keys = getattr(torch, p.dtype), getattr(torch, p.key_dtype or p.dtype)

    def make(*shape, dtype=own):
        return torch.randn(shape, generator=generator).to(dtype).cuda()

    extra = [make(p.batch, p.extra, p.kv_heads, d) if p.extra else None for d in (p.dim, p.value_dim)]
    return Operands(
        make(p.batch, *p.outputs, p.heads, p.dim, dtype=of_keys),
        make(p.batch, *p.lengths, p.kv_heads, p.dim, dtype=of_keys),
        make(p.batch, *p.lengths, p.kv_heads, p.value_dim),
        make(p.heads, *(2 * size - 1 for size in p.window)) if p.bias else None,
        *extra,
    )


def keeps(name):
    """Small problems of one family keep slopes, of one head of keys at a time."""
    return keeping(1) if name == "kept slopes" else nullcontext()


def run(backend, p):
    """Launch every kernel of a problem; returns what they wrote."""
    given = operands(p)
    out, lse = backend.attend(p, given, 0.2)
    if not p.gradients:
        return [out, lse]
    needs = (True,) * 3 + (p.bias, p.extra > 0, p.extra > 0)
    grads = backend.attend_back(p, given, out, lse, out.clone(), lse.clone(), 0.2, needs)
    found = [out, lse, *(x for x in grads if x is not None)]
    walk = replace(p, operation="dot", extra=0)
    if backend.refusal(walk) is None:
        weights = backend.dot(walk, given.query, given.key, given.bias, 0.2, 0.0)
        walk = replace(walk, operation="mix", bias=False, dim=p.value_dim)
        mixed = backend.mix(walk, weights, given.value)
        found += [weights, mixed, backend.mix_back(replace(walk, operation="mix_back"), weights, mixed)]
    return found


def swept(p):
    """Whether sweeps over rings take the place of the other kernels."""
    return ring_plan.forward(p) is not None and support.installed() == support.GLUON


# Documents of different shapes: with every option, and with none, whose loops load two boxes ahead.
DOCUMENTS = (
    case(
        ((14, 9), (15, 23), (31, 9)), (3, 2), (2, 1), (4, 3), (True, False), (2, 6),
        bias=True, extra=5, heads=2, kv_heads=1, dim=20, value_dim=24, dtype="float16",
    ),
    case(((20, 33), (41, 18)), 17, heads=2, kv_heads=1, dim=40, value_dim=40, dtype="float16"),
)  # fmt: skip


def cases(*without):
    """Problems with the names of their families, some of which are left out."""
    fixed = [(name, p) for name, problems in PROBLEMS.items() if name not in without for p in problems]
    return [*fixed, *(("documents", each) for each in product((Packed, Padded), DOCUMENTS))]


def keep_few():
    """Few programs, each of which computes tile after tile."""
    ring_plan.MULTIPROCESSORS = ring_plan.PLACES = 1
    if support.installed() == support.GLUON:
        from vicinal.triton import hopper_launch

        hopper_launch._multiprocessors = lambda _: 2


def run_share(first, step, *without):
    """Every `step`-th problem from `first` on, families `without` left out."""
    keep_few()
    for name, p in cases(*without)[int(first) :: int(step)]:
        if name == "documents":
            check(*p, rounded=True, device="cuda")
            continue
        backend = next(found for found in BACKENDS if found.name == BACKEND_OF.get(name, name))
        reason = backend.refusal(p)
        assert backend.name == "hopper" or swept(p) == (name == "rings"), p
        if backend.name == "hopper" and reason and "capability" in reason:
            print(f"left out: {reason}")
            continue
        # A small problem that tiles waste is what is wanted here.
        assert reason is None or "`triton`" in reason, (p, reason)
        start = time.perf_counter()
        with keeps(name):
            found = run(backend, p)
        assert all(x.cpu().isfinite().all() for x in found), p
        print(f"{name}: {p} in {time.perf_counter() - start:.1f} s", flush=True)


PLANTED = {
    "memcheck": 'extern "C" __global__ void fault(float *x) { x[threadIdx.x + 64] = 1.0f; }',
    "racecheck": """extern "C" __global__ void fault(float *x) {
        __shared__ float held[128];
        held[threadIdx.x] = x[threadIdx.x % 64];
        x[threadIdx.x % 64] = held[127 - threadIdx.x];
    }""",
}


def run_planted(tool):
    kernel = torch.cuda._compile_kernel(PLANTED[tool], "fault")
    kernel((1, 1, 1), (128, 1, 1), (torch.zeros(64, device="cuda"),))
    torch.cuda.synchronize()


def finished(tool, arguments):
    """Exit status of this module under a tool."""
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    # Importing PyTorch takes long where many processes do it at once.
    options = ["--launch-timeout", "300", "--error-exitcode", str(FAULT), "--print-limit", "20"]
    command = ["compute-sanitizer", "--tool", tool, *options, sys.executable, "-m", "tests.triton.sanitize"]
    start = time.perf_counter()
    command += map(str, arguments)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    print("\n".join(lines[:60] if done.returncode else lines[-2:]))
    print(f"{tool} {arguments}: {done.returncode} in {time.perf_counter() - start:.0f} s", flush=True)
    return done.returncode


def fails(tool, *many):
    """Whether one of many such processes, all at once, ended with other than 0."""
    with ThreadPoolExecutor(len(many)) as pool:
        return any(list(pool.map(partial(finished, tool), many)))


def main(tools):
    found = []
    for tool in tools:
        if tool == "delays":
            if subprocess.run([sys.executable, "-m", "tests.triton.delays"], check=False).returncode:
                found.append("delays change results, or miss the planted fault")
            continue
        if tool in PLANTED and finished(tool, ("planted", tool)) != FAULT:
            found.append(f"{tool} does not see the planted fault")
        without = ()
        if tool == "racecheck" and finished(tool, ("partitions",)) == FAULT:
            print("racecheck reports partitions that are right: hopper is left to delays")
            without = ("hopper", "kept slopes")
        shares = min(len(cases(*without)), os.cpu_count() or 1)
        if fails(tool, *[("run", first, shares, *without) for first in range(shares)]):
            found.append(f"{tool} reports faults")
    print("; ".join(found) or f"no faults: {', '.join(tools)}")
    return len(found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run_share(*sys.argv[2:])
    elif sys.argv[1:2] == ["partitions"]:
        from tests.triton import partitions

        partitions.main("early" in sys.argv)
    elif sys.argv[1:2] == ["planted"]:
        run_planted(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1:] or TOOLS))
