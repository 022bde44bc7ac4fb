"""Neighborhood attention on a CPU beside its peers: process CPU time, interleaved rounds, one process a peer.

    python benchmarks/cpu_peers.py [--only 2d_64,3d_16] [--peers dense,flex] [--mode forward,training]
        [--dtype float32] [--rounds 10] [--threads 1] [--home DIR] [--build] [--packages DIR]
        [--out results/cpu.json]

Peers live in virtual environments under `--home` that share this interpreter's PyTorch: natten-mps 0.3.3
comes from PyPI, NATTEN 0.17.5 is compiled with `--build`. Without a network, `--packages` names a folder of
unpacked wheels to import them from, and nothing is installed. What cannot be had is named in the results. A
peer's output is compared with ours before it is timed; ours is checked by the test suite.

A peer that takes long has fewer rounds than asked for; the results say how many. The file keeps rows of
other problems of the same machine and versions, so a run may be made in parts; a row says when it was
measured, and how many processes the machine had to run at its start. `--rest` measures what the file has no
row of since that time. `ratio` is the median over rounds of the peer's time over
ours in the same round. Bind the command to idle cores, as many as threads, with `taskset` or the like.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

from packages import PINNED, install, unpacked

# lengths, window, stride, dilation, batch, heads, dim
CASES = {
    "1d_256": ((256,), 7, 1, 1, 1, 4, 32),
    "1d_1024": ((1024,), 7, 1, 1, 1, 4, 32),
    "1d_8192": ((8192,), 255, 1, 1, 1, 8, 64),
    "2d_32": ((32, 32), 7, 1, 1, 1, 8, 32),
    "2d_56": ((56, 56), 7, 1, 1, 4, 4, 32),
    "2d_56_dilated": ((56, 56), 7, 1, 8, 4, 4, 32),
    "2d_64": ((64, 64), 7, 1, 1, 1, 4, 32),
    "2d_64_stride": ((64, 64), 16, 4, 1, 1, 4, 64),
    "2d_128": ((128, 128), 13, 1, 1, 1, 8, 64),
    "3d_16": ((16, 16, 16), 3, 1, 1, 1, 4, 32),
    "3d_16x32x32": ((16, 32, 32), (5, 7, 7), 1, 1, 1, 4, 64),
}
LARGEST_GATHER = 4 << 30
LARGEST_MASK = 2 << 30
SLOWEST = 1e9
"""Useful FLOPs of a forward pass from which on NATTEN 0.17 takes over ten seconds."""
PATIENCE = 20
"""Seconds of a peer's time on one problem after which no further round starts for it."""


# A worker: one peer, one process. Reads requests, one JSON line each, and answers with one.


def worker(peer: str) -> None:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ready = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = (request["case"], request["mode"], request["dtype"])
        try:
            if key not in ready:
                ready.clear()
                ready[key] = prepare(peer, *key)
            answer = measure(*ready[key], request)
        except Exception as problem:  # the peer's failure is a result
            answer = {"missing": f"{type(problem).__name__}: {str(problem).splitlines()[0][:160]}"}
        print("\x01" + json.dumps(answer), flush=True)


def prepare(peer: str, case: str, mode: str, dtype: str):
    """A function to time, its output, and why not (or None)."""
    import numpy as np
    import torch

    lengths, size, stride, dilation, batch, heads, dim = CASES[case]
    rank = len(lengths)
    each = lambda x: x if isinstance(x, tuple) else (x,) * rank  # noqa: E731
    generator = np.random.default_rng(0)
    shape = (batch, *lengths, heads, dim)
    tensors = [torch.from_numpy(generator.standard_normal(shape, np.float32)) for _ in range(4)]
    query, key, value, grad = (x.to(getattr(torch, dtype)) for x in tensors)
    inputs = [x.requires_grad_(mode == "training") for x in (query, key, value)]
    why, attend = PEERS[peer](
        each(size), each(stride), each(dilation), lengths, heads, dim, batch, mode, dtype
    )
    if why is not None:
        raise NotImplementedError(why)

    def step():
        out = attend(*inputs)
        if mode == "training":
            torch.autograd.grad(out, inputs, grad)
        return out

    out = step().detach().float().flatten()
    return step, out[:: max(out.numel() // 4096, 1)]


def measure(step, sample, request) -> dict:
    if request["ask"] == "output":
        return {"output": sample.tolist()}
    repeat, wall = request["repeat"], time.perf_counter_ns()
    spent = time.process_time_ns()
    for _ in range(repeat):
        step()
    return {
        "cpu": (time.process_time_ns() - spent) / repeat / 1e6,
        "wall": (time.perf_counter_ns() - wall) / repeat / 1e6,
    }


def ours(size, stride, dilation, *_):
    from vicinal.torch import neighborhood_attention

    return None, lambda *x: neighborhood_attention(*x, size, stride, dilation, backend="blocked")


def dense(size, stride, dilation, lengths, heads, dim, batch, mode, dtype):
    import torch

    from vicinal import Axis

    tokens = 1
    mask = torch.ones(1, 1, dtype=torch.bool)
    for length, *window in zip(lengths, size, stride, dilation, strict=True):
        axis, one = Axis(length, *window), torch.zeros(length, length, dtype=torch.bool)
        for query in range(length):
            one[query, list(axis.keys(query))] = True
        tokens *= length
        mask = (mask[:, None, :, None] & one[None, :, None, :]).view(tokens, tokens)
    scores = 4 * batch * heads * tokens * tokens
    if mode == "training" and scores > LARGEST_MASK:
        return f"scores of {scores >> 20} MiB", None

    def attend(*x):
        x = [t.flatten(1, -3).transpose(1, 2) for t in x]
        out = torch.nn.functional.scaled_dot_product_attention(*x, attn_mask=mask)
        return out.transpose(1, 2).unflatten(1, lengths)

    return None, attend


def flex(size, stride, dilation, lengths, heads, dim, batch, mode, dtype):
    if mode == "training":
        return "FlexAttention has no CPU backward", None
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from vicinal import Axis, spans

    axes = [Axis(length, *w) for length, *w in zip(lengths, size, stride, dilation, strict=True)]
    first = [torch.tensor(spans.windows(axis)[0]) for axis in axes]
    tokens = 1
    for length in lengths:
        tokens *= length

    def visible(b, h, query, key):
        seen = query >= 0
        for axis, start in zip(reversed(axes), reversed(first), strict=True):
            i, j = query % axis.length, key % axis.length
            offset = j - start[i]
            seen = seen & (offset >= 0) & (offset < axis.size * axis.dilation) & (offset % axis.dilation == 0)
            query, key = query // axis.length, key // axis.length
        return seen

    block = create_block_mask(visible, None, None, tokens, tokens, device="cpu", BLOCK_SIZE=64)
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(*x):
        with torch.no_grad():
            out = compiled(*(t.flatten(1, -3).transpose(1, 2) for t in x), block_mask=block)
        return out.transpose(1, 2).unflatten(1, lengths)

    return None, attend


def natten_mps(size, stride, dilation, lengths, heads, dim, batch, mode, dtype):
    import natten_mps

    volume, tokens = 1, 1
    for extent, length in zip(size, lengths, strict=True):
        volume, tokens = volume * extent, tokens * length
    gathered = 8 * batch * tokens * heads * dim * volume
    if gathered > LARGEST_GATHER:
        return f"gathers keys and values of {gathered / 2**30:.1f} GiB", None
    if any(step != 1 for step in stride):
        return "its stride is another operation", None
    natten_mps.set_backend("pure")
    function = (natten_mps.na1d, natten_mps.na2d, natten_mps.na3d)[len(lengths) - 1]
    return None, lambda *x: function(*x, size, 1, dilation)


def natten(size, stride, dilation, lengths, heads, dim, batch, mode, dtype):
    import torch

    if not hasattr(torch.cuda, "_device_t"):
        # Gone from PyTorch since; NATTEN 0.17 wants the name for an annotation, and the capability of a GPU.
        torch.cuda._device_t = object
        torch.cuda.get_device_capability = lambda *_: (0, 0)
    import natten.functional as na

    if any(step != 1 for step in stride):
        return "it has no stride", None
    if dtype != "float32":
        return "its CPU kernels are float32 and float64", None
    rank, useful = len(lengths), 4 * batch * heads * dim
    for extent, length in zip(size, lengths, strict=True):
        useful *= extent * length
    if useful > SLOWEST:
        return f"left out: {useful / 1e9:.1f} GFLOP, ten seconds or more a call", None
    qk, av = getattr(na, f"na{rank}d_qk"), getattr(na, f"na{rank}d_av")

    def attend(query, key, value):
        query, key, value = (x.movedim(-2, 1).contiguous() for x in (query * dim**-0.5, key, value))
        weights = qk(query, key, size, dilation).softmax(-1)
        return av(weights, value, size, dilation).movedim(1, -2)

    return None, attend


PEERS = {"ours": ours, "dense": dense, "flex": flex, "natten_mps": natten_mps, "natten": natten}


# The parent: runs rounds.


class Peer:
    """A worker process."""

    def __init__(self, name: str, python: str, threads: int, packages: Path | None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        path = [Path(__file__).resolve().parent.parent / "src", *([] if packages is None else [packages])]
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
        self.process = subprocess.Popen(
            [python, __file__, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, **request) -> dict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("\x01"):
                return json.loads(line[1:])
        return {"missing": "the process died"}


def compare(peers: dict[str, Peer], case: str, mode: str, dtype: str, rounds: int) -> dict[str, dict]:
    """Interleaved rounds of one problem."""
    ask = {"case": case, "mode": mode, "dtype": dtype}
    found, outputs, repeat = {}, {}, {}
    for name, peer in peers.items():
        answer = peer.ask(ask="output", **ask)
        if "missing" in answer:
            found[name] = answer
            continue
        outputs[name] = answer["output"]
        far = max(abs(a - b) for a, b in zip(outputs[name], outputs["ours"], strict=True))
        if far > (1e-4 if dtype == "float32" else 5e-2):
            found[name] = {"missing": f"its output is {far:.2g} away from ours"}
            continue
        once = peer.ask(ask="time", repeat=1, **ask)["cpu"]
        repeat[name] = max(1, min(50, int(20 / max(once, 0.01))))
    times = {name: [] for name in repeat}
    for _ in range(rounds):
        for name, row in times.items():
            if sum(x["cpu"] for x in row) * repeat[name] < PATIENCE * 1000:
                row.append(peers[name].ask(ask="time", repeat=repeat[name], **ask))
    for name, row in times.items():
        found[name] = {key: round(median(x[key] for x in row), 4) for key in ("cpu", "wall")}
        found[name]["best_cpu"] = round(min(x["cpu"] for x in row), 4)
        found[name]["rounds"] = len(row)
        pairs = zip(row, times["ours"], strict=False)
        found[name]["ratio"] = round(median(x["cpu"] / y["cpu"] for x, y in pairs), 3)
    return found


def machine() -> dict:
    import torch

    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        name = f"{names[0]}, {len(names)} cores"
    return {
        "machine": name,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "matrix unit": torch.cpu._is_amx_tile_supported(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker")
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--peers", default="dense,flex,natten_mps,natten")
    parser.add_argument("--mode", default="forward,training")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--home", type=Path, default=Path.home() / ".cache" / "vicinal-peers")
    parser.add_argument("--rest", metavar="TIME", help="only what has no row since TIME, 2030-12-31 00:00")
    parser.add_argument("--build", action="store_true", help="compile NATTEN 0.17.5, in minutes")
    parser.add_argument("--packages", type=Path, help="folder of unpacked wheels; nothing is installed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    peers, missing = {"ours": Peer("ours", sys.executable, arguments.threads, None)}, {}
    for name in filter(None, arguments.peers.split(",")):
        python, why, packages = sys.executable, None, arguments.packages
        if name in PINNED and packages is not None:
            why = unpacked(name, packages)
        elif name in PINNED:
            python, why = install(name, arguments.home, arguments.build)
        if why is None:
            peers[name] = Peer(name, python, arguments.threads, packages)
        else:
            missing[name] = {"missing": why}
    results = {**machine(), "rows": kept(arguments.out)}
    for dtype in arguments.dtype.split(","):
        for mode in arguments.mode.split(","):
            for case in arguments.only.split(","):
                row = {"case": case, "mode": mode, "dtype": dtype, "threads": arguments.threads}
                if arguments.rest and measured(results["rows"], row, arguments.rest):
                    continue
                state = {
                    "measured": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}",
                    "load": round(os.getloadavg()[0], 1),
                }
                found = compare(peers, case, mode, dtype, arguments.rounds)
                others = [x for x in results["rows"] if not row.items() <= x.items()]
                results["rows"] = [*others, {**row, **state, "peers": {**found, **missing}}]
                print(f"{dtype} {mode} {case}: {line({**found, **missing})}", flush=True)
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    for peer in peers.values():
        peer.process.kill()


def measured(rows: list[dict], row: dict, since: str) -> bool:
    return any(row.items() <= x.items() and x["measured"] >= since for x in rows)


def kept(out: Path) -> list[dict]:
    """Rows of an earlier run."""
    if not out.exists():
        return []
    before, now = json.loads(out.read_text()), machine()
    for name in ("machine", "torch", "python"):
        if before[name] != now[name]:
            raise SystemExit(f"{out} is of {name} {before[name]}, this is {now[name]}; pass another --out")
    return before["rows"]


def line(found: dict[str, dict]) -> str:
    """The results of a problem for people."""
    cells = (
        f"{name} {x['missing']}" if "missing" in x else f"{name} {x['cpu']:.2f} ms x{x['ratio']:.2f}"
        for name, x in found.items()
    )
    return "  ".join(cells)


if __name__ == "__main__":
    main()
