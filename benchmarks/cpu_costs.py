"""What `blocked` costs a CPU beyond single calls: time as tokens grow, split operations, memory, threads.

    python benchmarks/cpu_costs.py [--only growth,split,memory,threads] [--rounds 10]
        [--out results/cpu-costs.json]

growth   2-D window 7, 4 heads of 32: process CPU time of a token, one thread, as both axes double
split    `qk` and `av` beside the fused operation in the same round, one thread; a limit is the fused
         operation's time and that of writing as many weights once
memory   peak of resident memory over what the process held before, of 2-D 128x128, window 13, 8 heads of 64;
         Linux
threads  wall time of one thread over that of two, the best of all rounds, each after a call that wakes the
         threads; problems that take one thread over 20 ms, in two dtypes; wants two idle cores

Bind the command to idle cores with `taskset` or the like.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median

import torch
from cpu_peers import CASES, machine

from vicinal.torch import av, neighborhood_attention, qk

SPLIT = ("1d_1024", "2d_32", "2d_56", "2d_64", "3d_16")
THREADED = {
    "forward": ("1d_8192", "2d_56", "2d_64_stride", "2d_128", "3d_16x32x32"),
    "training": (
        "1d_8192",
        "2d_56",
        "2d_56_dilated",
        "2d_64",
        "2d_64_stride",
        "2d_128",
        "3d_16",
        "3d_16x32x32",
    ),
}


def drawn(lengths, batch: int, heads: int, dim: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, *lengths, heads, dim, generator=generator) for _ in range(count)]


def interleaved(calls: dict, rounds: int, clock=time.process_time_ns) -> dict[str, list[float]]:
    """Milliseconds of every call in every round."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            before = clock()
            call()
            times[name].append((clock() - before) / 1e6)
    return times


def growth(rounds: int) -> dict:
    calls = {}
    for length in (64, 128, 256, 512):
        inputs = drawn((length, length), 1, 4, 32, 3)
        repeat = (512 // length) ** 2 // 4 or 1
        calls[length] = lambda x=inputs, n=repeat: [call(*x, 7) for _ in range(n)]
    times = interleaved(calls, rounds)
    found = {}
    for length, row in times.items():
        tokens = length**2 * ((512 // length) ** 2 // 4 or 1)
        found[f"{length}x{length}"] = round(median(row) * 1e3 / tokens, 3)
    return {"microseconds a token": found}


def call(query, key, value, size):
    return neighborhood_attention(query, key, value, size, backend="blocked")


def split(rounds: int) -> dict:
    found = {}
    for case in SPLIT:
        lengths, size, _, _, batch, heads, dim = CASES[case]
        query, key, value, grad = drawn(lengths, batch, heads, dim, 4)
        weights = qk(query, key, size, backend="blocked").softmax(-1)
        slope = torch.randn_like(weights)
        found[case] = {}
        for gradients in (False, True):
            row = _split(query, key, value, weights, grad, slope, size, rounds, gradients)
            found[case]["forward and backward" if gradients else "forward"] = row
    return found


def _split(query, key, value, weights, grad, slope, size, rounds: int, gradients: bool) -> dict:
    """Milliseconds, and times over the limit."""
    leaves = [x.detach().requires_grad_(gradients) for x in (query, key, value, weights)]
    query, key, value, weights = leaves

    def step(make, inputs, cotangent):
        out = make()
        if gradients:
            torch.autograd.grad(out, inputs, cotangent)

    calls = {
        "fused": lambda: step(lambda: call(query, key, value, size), [query, key, value], grad),
        "write": lambda: [torch.empty_like(slope).copy_(slope) for _ in range(1 + gradients)],
        "qk": lambda: step(lambda: qk(query, key, size, backend="blocked"), [query, key], slope),
        "av": lambda: step(lambda: av(weights, value, size, backend="blocked"), [weights, value], grad),
    }
    times = interleaved(calls, rounds)
    limit = [a + b for a, b in zip(times["fused"], times["write"], strict=True)]
    row = {name: round(median(x), 3) for name, x in times.items()}
    for name in ("qk", "av"):
        row[f"{name} over limit"] = round(median(a / b for a, b in zip(times[name], limit, strict=True)), 3)
    return row


def memory(_: int) -> dict:
    """In a process of its own: a peak does not come down."""
    command = [sys.executable, __file__, "--peak"]
    modes = {"forward": [], "forward and backward": ["--gradients"]}
    return {
        name: float(subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout)
        for name, more in modes.items()
    }


def peak(gradients: bool) -> None:
    """Print the MiB that a call of 2-D 128x128 takes beyond its inputs."""
    torch.set_num_threads(1)
    small = [x.requires_grad_(gradients) for x in drawn((16, 16), 1, 8, 64, 3)]
    query, key, value, grad = drawn((128, 128), 1, 8, 64, 4)
    leaves = [x.requires_grad_(gradients) for x in (query, key, value)]
    out = call(*small, 13)
    if gradients:
        torch.autograd.grad(out.sum(), small)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    out = call(*leaves, 13)
    if gradients:
        torch.autograd.grad(out, leaves, grad)
    print(round((resident("VmHWM") - before) / 1024, 1))


def resident(name: str) -> int:
    """KiB that the process holds, or held at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def threads(rounds: int) -> dict:
    calls = {
        f"{case} {mode} {dtype}": step(case, mode == "training", getattr(torch, dtype))
        for mode, cases in THREADED.items()
        for case, dtype in product(cases, ("float32", "bfloat16"))
    }
    times = {name: {"one": [], "two": []} for name in calls}
    # What disturbs a machine for some seconds meets one round of some problems, not all of one.
    for _ in range(rounds):
        for name, call in calls.items():
            for count, row in enumerate(times[name].values(), 1):
                torch.set_num_threads(count)
                call()
                before = time.perf_counter_ns()
                call()
                row.append((time.perf_counter_ns() - before) / 1e6)
    torch.set_num_threads(1)
    found = {}
    for name, rows in times.items():
        one, two = map(min, rows.values())
        found[name] = {"one": round(one, 2), "two": round(two, 2), "gain": round(one / two, 2)}
        print(name, found[name], flush=True)
    return found


def step(case: str, gradients: bool, dtype: torch.dtype) -> Callable[[], None]:
    lengths, size, stride, dilation, batch, heads, dim = CASES[case]
    *inputs, grad = (x.to(dtype) for x in drawn(lengths, batch, heads, dim, 4))
    leaves = [x.requires_grad_(gradients) for x in inputs]

    def call() -> None:
        out = neighborhood_attention(*leaves, size, stride, dilation, backend="blocked")
        if gradients:
            torch.autograd.grad(out, leaves, grad)

    return call


PARTS = {"growth": growth, "split": split, "memory": memory, "threads": threads}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu-costs.json")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--gradients", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak(arguments.gradients)
        return
    torch.set_num_threads(1)
    results = machine()
    for name in arguments.only.split(","):
        results[name] = PARTS[name](arguments.rounds)
        print(name, json.dumps(results[name]), flush=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
