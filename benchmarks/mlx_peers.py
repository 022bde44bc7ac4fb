"""Neighborhood attention on MLX's CPU beside its peers: process CPU time, interleaved rounds, peak memory.

    OMP_NUM_THREADS=1 python benchmarks/mlx_peers.py [--only 2d_64,3d_16] [--peers DIR] [--rounds 9]
        [--out benchmarks/results/mlx-cpu.json]

Peers: natten-mlx 0.3.3 on its `pure` backend, from PyPI into `--peers`, imported as if this were a Mac; and
`gather`, the plain formula in a dozen operations. Every peer's output and gradients are compared with ours
before anything is timed. `ratio` is the median over rounds of the peer's time over ours in the same round.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from math import prod
from pathlib import Path
from statistics import median

import mlx.core as mx

import vicinal
import vicinal.mlx as na

# batch, lengths, heads, dim, window
CASES = {
    "2d_64": (1, (64, 64), 4, 32, 7),
    "3d_16": (1, (16, 16, 16), 4, 32, 3),
    "2d_14": (8, (14, 14), 4, 32, 7),
    "1d_1024": (1, (1024,), 4, 32, 7),
    "1d_64": (1, (64,), 2, 16, 5),
    "2d_8": (1, (8, 8), 2, 16, 3),
    "3d_6": (1, (6, 6, 6), 2, 16, 3),
}
# What the slowest may be: case, mode, peer, ratio. Tiny problems may cost 1.3 times a plain gather.
GATES = [
    *(("2d_64", mode, "natten_mlx", 2.5) for mode in ("forward", "training")),
    *(("3d_16", mode, "natten_mlx", 2.0) for mode in ("forward", "training")),
    *((case, mode, "gather", 1 / 1.3) for case in list(CASES)[3:] for mode in ("forward", "training")),
]
PINNED = "natten-mlx==0.3.3"


def natten_mlx(folder: Path):
    """The peer, which refuses to be imported off macOS."""
    if not (folder / "natten_mlx").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), PINNED]
        subprocess.run(pip, check=True)
    sys.path.insert(0, str(folder))
    real, sys.platform = sys.platform, "darwin"
    import natten_mlx

    sys.platform = real
    natten_mlx.set_backend("pure")
    return natten_mlx


def gather(lengths: tuple[int, ...], size: int):
    """The definition, every window gathered: keys of all windows, products, softmax, sums."""
    index = [[0]]
    for length in lengths:
        starts = [min(max(i - size // 2, 0), length - size) for i in range(length)]
        # Every window so far, times every window of this axis.
        index = [[k * length + s + w for k in row for w in range(size)] for row in index for s in starts]
    table = mx.array(index, dtype=mx.uint32)
    tokens = prod(lengths)

    def attend(query, key, value):
        batch, *_, heads, dim = query.shape
        keys, values = (mx.take(x.reshape(batch, tokens, heads, dim), table, axis=1) for x in (key, value))
        scores = (query.reshape(batch, tokens, 1, heads, dim) * keys).sum(-1) * dim**-0.5
        return (mx.softmax(scores, 2)[..., None] * values).sum(2).reshape(query.shape)

    return attend


def functions(case: str, peer) -> dict:
    """Attention by each, of query, key and value."""
    _, lengths, _, _, size = CASES[case]
    theirs = getattr(peer, f"na{len(lengths)}d")
    return {
        "vicinal": lambda q, k, v: na.neighborhood_attention(q, k, v, size),
        "natten_mlx": lambda q, k, v: theirs(q, k, v, size),
        "gather": gather(lengths, size),
    }


def checked(runs: dict) -> None:
    """Outputs, or gradients, of all are those of the first."""
    first, *others = runs.values()
    wanted = first()
    for run in others:
        for one, other in zip(wanted, run(), strict=True):
            assert mx.abs(one - other).max().item() < 1e-4 * max(mx.abs(other).max().item(), 1.0)


def timed(run) -> float:
    start = time.process_time()
    mx.eval(run())
    return time.process_time() - start


def peak(run) -> float:
    """MiB held at most, besides the inputs."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run())
    return (mx.get_peak_memory() - before) / 2**20


def measured(runs: dict, rounds: int) -> dict:
    checked(runs)
    times = {name: [] for name in runs}
    # A time shorter than a few milliseconds is that of many calls.
    repeats = max(1, int(0.02 / max(timed(runs["vicinal"]), 1e-5)))
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(sum(timed(run) for _ in range(repeats)) / repeats)
    ours = times["vicinal"]
    return {
        name: {
            "ms": round(median(taken) * 1e3, 4),
            "ratio": round(median(t / o for t, o in zip(taken, ours, strict=True)), 3),
            "peak_mib": round(peak(runs[name]), 2),
        }
        for name, taken in times.items()
    }


def compared(case: str, peer, rounds: int) -> dict:
    batch, lengths, heads, dim, size = CASES[case]
    arrays = [mx.random.normal((batch, *lengths, heads, dim)) for _ in range(4)]
    mx.eval(arrays)
    found = functions(case, peer)
    result = {"batch": batch, "lengths": lengths, "heads": heads, "dim": dim, "window": size}
    modes = {
        "forward": {name: lambda f=f: [f(*arrays[:3])] for name, f in found.items()},
        "training": {name: lambda f=f: mx.vjp(f, arrays[:3], arrays[3:])[1] for name, f in found.items()},
    }
    for mode, runs in modes.items():
        result[mode] = measured(runs, rounds)
        print(case, mode, json.dumps(result[mode]), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "vicinal-mlx-peers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mlx-cpu.json")
    chosen = parser.parse_args()
    mx.set_default_device(mx.cpu)
    peer = natten_mlx(chosen.peers)
    results = {case: compared(case, peer, chosen.rounds) for case in chosen.only.split(",")}
    gates = [
        {"case": c, "mode": m, "peer": p, "least": round(least, 3), "ratio": results[c][m][p]["ratio"]}
        for c, m, p, least in GATES
        if c in results
    ]
    report = {
        "date": str(date.today()),
        "machine": {
            "cpu": _cpu(),
            "system": platform.platform(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "versions": {"vicinal": vicinal.__version__, "mlx": mx.__version__, "peer": PINNED},
        "rounds": chosen.rounds,
        "cases": results,
        "gates": gates,
    }
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    missed = [gate for gate in gates if gate["ratio"] < gate["least"]]
    print(f"{len(gates) - len(missed)} of {len(gates)} gates", *missed, sep="\n")
    sys.exit(bool(missed))


def _cpu() -> str:
    lines = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
