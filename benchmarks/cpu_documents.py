"""Documents of different shapes on a CPU: a batch of them against the fixed-shape function on each one.

    python benchmarks/cpu_documents.py [--only plane,many] [--threads 1] [--rounds 9] [--out results.json]

Documents have a quarter of each extent up to all of it. A ratio is the time of the padded or the packed batch
over the sum of its documents', each called alone on tensors of its own; all three run in turns, and a row has
the medians of all rounds. Gradients are those of query, key and value.

Bind the command to idle cores with `taskset` or the like.
"""

import argparse
import json
import random
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from cpu_peers import machine

import vicinal.torch as na

# Extents, window, documents.
CASES = {
    "line": ((8192,), 255, 8),
    "line_2048": ((2048,), 255, 8),
    "plane": ((128, 128), 13, 8),
    "plane_64": ((64, 64), 13, 8),
    "plane_32": ((32, 32), 7, 8),
    "volume": ((16, 48, 48), (5, 7, 7), 8),
    "volume_24": ((16, 24, 24), (5, 7, 7), 8),
    "many_lines": ((256,), 15, 64),
    "many_planes": ((32, 32), 7, 64),
    "many_volumes": ((12, 16, 16), 3, 64),
}


def mixed(frame: tuple[int, ...], size, count: int) -> list[tuple[int, ...]]:
    draw, sizes = random.Random(0), (size,) * len(frame) if isinstance(size, int) else size
    least = [max(extent // 4, reach) for extent, reach in zip(frame, sizes, strict=True)]
    return [tuple(map(draw.randint, least, frame)) for _ in range(count)]


class Batch:
    """Operands of one form, and their calls."""

    def __init__(self, attend, operands: list[list[torch.Tensor]]):
        """`operands` hold query, key, value and the gradient of the output, of every call."""
        self.attend = attend
        self.operands = [[x.requires_grad_() for x in each[:3]] for each in operands]
        self.outs = [attend(place, *each) for place, each in enumerate(self.operands)]
        self.pulls = [each[3] for each in operands]

    def forward(self):
        with torch.no_grad():
            return [self.attend(place, *each) for place, each in enumerate(self.operands)]

    def backward(self):
        calls = zip(self.outs, self.operands, self.pulls, strict=True)
        return [torch.autograd.grad(out, mine, pull, retain_graph=True) for out, mine, pull in calls]


def batches(frame, size, count: int, heads: int, dim: int) -> dict[str, Batch]:
    shapes = mixed(frame, size, count)
    layout, sizes = na.VarlenLayout(shapes), torch.tensor(shapes)
    generator = torch.Generator().manual_seed(0)
    alone = [[torch.randn(1, *s, heads, dim, generator=generator) for _ in range(4)] for s in shapes]
    packed = [layout.pack([x[0] for x in column]) for column in zip(*alone, strict=True)]
    padded = [x.new_full((count, *frame, heads, dim), torch.nan) for x in packed]
    for whole, x in zip(padded, packed, strict=True):
        for entry, document in zip(whole, layout.split(x), strict=True):
            entry[tuple(map(slice, document.shape[:-2]))] = document
    fixed = partial(na.neighborhood_attention, kernel_size=size)
    return {
        "documents": Batch(lambda _, *given: fixed(*given), alone),
        "padded": Batch(lambda _, *given: na.neighborhood_attention_varlen(*given, sizes, size), [padded]),
        "packed": Batch(lambda _, *given: na.neighborhood_attention_packed(*given, layout, size), [packed]),
    }


def interleaved(calls: dict, rounds: int) -> dict[str, float]:
    """Median milliseconds of every call: of the process on one thread, else by the clock on the wall."""
    times = {name: [] for name in calls}
    clock = time.process_time_ns if torch.get_num_threads() == 1 else time.perf_counter_ns
    for _ in range(2):
        for call in calls.values():
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            before = clock()
            call()
            times[name].append((clock() - before) / 1e6)
    return {name: round(median(row), 3) for name, row in times.items()}


def measure(name: str, heads: int, dim: int, rounds: int) -> dict:
    forms, row = batches(*CASES[name], heads, dim), {}
    for part in ("forward", "backward"):
        times = interleaved({form: getattr(batch, part) for form, batch in forms.items()}, rounds)
        ratios = {form: round(times[form] / times["documents"], 3) for form in ("padded", "packed")}
        row[part] = {"milliseconds": times, "ratio": ratios}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="names of cases, separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {"machine": machine(), **{k: v for k, v in vars(options).items() if k != "out"}, "rows": {}}
    for name in options.only.split(",") if options.only else CASES:
        row = result["rows"][name] = measure(name, options.heads, options.dim, options.rounds)
        parts = (f"{part} {x['milliseconds']} {x['ratio']}" for part, x in row.items())
        print(f"{name:14}", *parts, flush=True)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
