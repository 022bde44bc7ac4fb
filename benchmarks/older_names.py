"""Scores, softmax and weighted sums through NATTEN 0.14's names, beside our split operations called directly.

    python benchmarks/older_names.py [--device cuda] [--repeats 30] [--out results.json]

The direct call has operands heads last in memory. `memory` is NATTEN's heads-first layout in memory, `view` a
heads-first view of heads-last memory, as clients make it from a projection. A row is timed only after its
outputs and gradients are those of the direct call; calls take turns. Numbers are the medians of all turns: of
time on a GPU, of the processor's time on a CPU, which other work on the machine lengthens least.
"""

import argparse
import json
import platform
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch

import vicinal.torch as na
from vicinal.torch.compat import v014

# Spatial shape, window, dilation, batch, heads, channels of a head.
ROWS = {
    "dinat_stage1": ((56, 56), 7, 1, 1, 2, 32),
    "dinat_stage1_dilated": ((56, 56), 7, 8, 1, 2, 32),
    "dinat_stage3": ((14, 14), 7, 2, 1, 8, 32),
    "allin1_time": ((2400,), 5, 64, 4, 2, 12),
    "allin1_stems": ((5, 2400), 5, 1, 1, 2, 12),
}


def direct(query, key, value, size, dilation):
    rank = query.dim() - 3
    qk, av = (getattr(na, f"na{rank}d_{kind}") for kind in ("qk", "av"))
    weights = qk(query, key, size, dilation=dilation, scale=1.0).softmax(-1)
    return av(weights, value, size, dilation=dilation)


def older(query, key, value, size, dilation):
    rank = query.dim() - 3
    qk, av = (getattr(v014, f"natten{rank}d{kind}") for kind in ("qk", "av"))
    return av(qk(query, key, size, dilation).softmax(-1), value, size, dilation)


def calls_of(row, device):
    """`{way: (function, operands)}` on the same numbers."""
    lengths, size, dilation, batch, heads, dim = row
    torch.manual_seed(0)
    last = [torch.randn(batch, *lengths, heads, dim, device=device) * dim**-0.25 for _ in "qkv"]
    views = [x.movedim(-2, 1) for x in last]
    ways = {"direct": (direct, last), "view": (older, views)}
    ways["memory"] = (older, [x.contiguous() for x in views])
    return {
        way: (
            lambda *x, function=function: function(*x, size, dilation),
            [x.detach().requires_grad_() for x in operands],
        )
        for way, (function, operands) in ways.items()
    }


def step(function, operands, backward):
    with torch.set_grad_enabled(backward):
        out = function(*operands)
    return (out, *torch.autograd.grad(out.sum(), operands)) if backward else (out,)


def checked(calls):
    """Outputs and gradients of every way are those of the direct call."""
    exact = [x.movedim(-2, 1) for x in step(*calls["direct"], True)]
    for way in ("view", "memory"):
        for got, want in zip(step(*calls[way], True), exact, strict=True):
            assert (got - want).abs().max() <= 1e-5 * want.abs().max().clamp(min=1), way


def times(calls, backward, device, repeats):
    """Median milliseconds of each way."""
    clock = perf_counter if device == "cuda" else process_time
    found = {way: [] for way in calls}
    for _ in range(repeats + 3):
        for way, call in calls.items():
            _wait(device)
            start = clock()
            step(*call, backward)
            _wait(device)
            found[way].append(1e3 * (clock() - start))
    return {way: round(median(numbers[3:]), 4) for way, numbers in found.items()}


def _wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def _processor():
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if given.device == "cuda" else _processor()
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, {given.repeats} repeats")
    rows = []
    for row, shape in ROWS.items():
        calls = calls_of(shape, given.device)
        checked(calls)
        for backward in (False, True):
            found = times(calls, backward, given.device, given.repeats)
            ratios = {way: round(found[way] / found["direct"], 3) for way in ("view", "memory")}
            rows.append({"row": row, "backward": backward, "milliseconds": found, "ratio": ratios})
            what = "forward and backward" if backward else "forward"
            print(f"{row:22} {what:22} {found}  view {ratios['view']:.2f}x  memory {ratios['memory']:.2f}x")
    if given.out:
        given.out.write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
