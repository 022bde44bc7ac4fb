"""MLX on an NVIDIA GPU: `cuda` beside `blocked`, forward and with gradients, interleaved rounds, peak memory.

    python benchmarks/mlx_cuda.py [--only 2d_256,3d_32] [--dtypes bfloat16,float32] [--rounds 9]
        [--out benchmarks/results/mlx-cuda.json]

Outputs and gradients of both are compared before anything is timed. A time is that of several calls evaluated
together, by the wall clock, over their number. `ratio` is the median over rounds of the time of `blocked`
over that of `cuda` in the same round.
"""

import argparse
import json
import os
import sys
import time
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import mlx.core as mx

import vicinal
import vicinal.mlx as na
from vicinal import Axis, Problem

# batch, lengths, heads, dim, window
CASES = {"2d_256": (1, (256, 256), 4, 64, 13), "3d_32": (1, (32, 32, 32), 4, 64, 5)}
BACKENDS = ("cuda", "blocked")
# What `blocked` takes over `cuda`, at least.
GATE = 5.0
# Largest difference, as a share of the largest number: rounded weights and results; float32 may be TF32.
CLOSE = {"bfloat16": 2.0**-5, "float16": 2.0**-8, "float32": 2.0**-8}


def functions(size: int, arrays: list[mx.array]) -> dict:
    """By mode and backend, what is timed: arrays that are not evaluated yet."""

    def forward(backend, *x):
        return [na.neighborhood_attention(*x, size, backend=backend)]

    def training(backend, *x):
        out, grads = mx.vjp(lambda *x: forward(backend, *x), list(x), arrays[3:])
        return [*out, *grads]

    modes = {"forward": forward, "training": training}
    return {
        mode: {b: partial(function, b, *arrays[:3]) for b in BACKENDS} for mode, function in modes.items()
    }


def checked(runs: dict, dtype: str) -> float:
    """The largest difference between both backends, as a share of the largest number."""
    worst = 0.0
    for found in zip(*(run() for run in runs.values()), strict=True):
        one, other = (x.astype(mx.float32) for x in found)
        worst = max(worst, (mx.abs(one - other).max() / mx.abs(other).max()).item())
    assert worst < CLOSE[dtype], f"backends differ by {worst:.2g}"
    return worst


def timed(run, repeats: int) -> float:
    mx.synchronize()
    start = time.perf_counter()
    mx.eval([run() for _ in range(repeats)])
    mx.synchronize()
    return (time.perf_counter() - start) / repeats


def peak(run) -> float:
    """MiB held at most, besides the inputs."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run())
    return (mx.get_peak_memory() - before) / 2**20


def measured(runs: dict, rounds: int) -> dict:
    times = {name: [] for name in runs}
    # As many calls as fill some milliseconds, of each its own number.
    repeats = {name: max(1, min(16, int(0.02 / timed(run, 1)))) for name, run in runs.items()}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(timed(run, repeats[name]))
    result: dict = {
        name: {"ms": round(median(taken) * 1e3, 4), "peak_mib": round(peak(runs[name]), 1)}
        for name, taken in times.items()
    }
    pairs = zip(times["cuda"], times["blocked"], strict=True)
    return result | {"ratio": round(median(theirs / ours for ours, theirs in pairs), 2)}


def compared(case: str, dtype: str, rounds: int) -> dict:
    batch, lengths, heads, dim, size = CASES[case]
    shape = (batch, *lengths, heads, dim)
    arrays = [mx.random.normal(shape).astype(getattr(mx, dtype)) for _ in range(4)]
    mx.eval(arrays)
    axes = tuple(Axis(length, size) for length in lengths)
    flops = Problem(axes, batch=batch, heads=heads, kv_heads=heads, dim=dim, value_dim=dim).flops
    result = {"case": case, "dtype": dtype, "lengths": lengths, "heads": heads, "dim": dim, "window": size}
    for mode, runs in functions(size, arrays).items():
        worst = checked(runs, dtype)
        result[mode] = measured(runs, rounds) | {"difference": float(f"{worst:.2g}")}
        # A backward pass has five products where the forward pass has two.
        work = flops * (1.0 if mode == "forward" else 3.5)
        result[mode]["cuda"]["tflops"] = round(work / result[mode]["cuda"]["ms"] / 1e9, 1)
        print(case, dtype, mode, json.dumps(result[mode]), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--dtypes", default="bfloat16,float16,float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mlx-cuda.json")
    chosen = parser.parse_args()
    pairs = [(case, dtype) for case in chosen.only.split(",") for dtype in chosen.dtypes.split(",")]
    results = [compared(case, dtype, chosen.rounds) for case, dtype in pairs]
    gates = [
        {"case": r["case"], "dtype": r["dtype"], "mode": mode, "least": GATE, "ratio": r[mode]["ratio"]}
        for r in results
        for mode in ("forward", "training")
    ]
    report = {
        "date": str(date.today()),
        "device": mx.device_info(mx.gpu)["device_name"],
        "versions": {"vicinal": vicinal.__version__, "mlx": mx.__version__, "triton": version("triton")},
        "tf32": os.environ.get("MLX_ENABLE_TF32", "1") != "0",
        "rounds": chosen.rounds,
        "cases": results,
        "gates": gates,
    }
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    missed = [gate for gate in gates if gate["ratio"] < gate["least"]]
    print(f"{len(gates) - len(missed)} of {len(gates)} gates", *missed, sep="\n")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
