"""Documents of different shapes on a GPU: one launch of all against the fixed-shape kernels.

    python benchmarks/documents.py [--out results.json] [--only line,plane]

`equal` are documents of one shape, against a batch of that shape; `mixed` have extents from a quarter of it
to all of it, and the batch has as many of that shape as compute nearly the same: starting and ending a launch
takes the same time whatever it computes. Both run the looping kernels of the `triton` backend, in turns, and
every row is checked on two of its documents before it is timed. A ratio is the time of documents over that
of the batch, scaled by what is computed: by `boxes` of columns that all tiles visit, or by visible `pairs`.
Small documents have more tiles that are cut off for the pairs they hold.
"""

import argparse
import json
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from math import prod
from multiprocessing import get_context
from unittest.mock import patch

import torch
import triton

from vicinal import Axis, Problem, layout, tiling
from vicinal.problem import Documents
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.triton import TRITON
from vicinal.triton import plan, ring_launches

NEEDS = (True,) * 3 + (False,) * 3
PARTS = {
    "forward": lambda run: run.forward(),
    "backward": lambda run: run.backward(),
    "query_gradient": lambda run: run.backward((True, *(False,) * 5)),
}
CASES = {
    "line": ((8192,), (255,), 8),
    "plane": ((128, 128), (13, 13), 8),
    "volume": ((16, 48, 48), (5, 7, 7), 8),
    "line 2048": ((2048,), (255,), 32),
    "plane 64": ((64, 64), (13, 13), 16),
    "volume 24": ((16, 24, 24), (5, 7, 7), 16),
}


def mixed(shape, count) -> tuple[tuple[int, ...], ...]:
    draw = random.Random(0)
    return tuple(tuple(draw.randint(max(extent // 4, 7), extent) for extent in shape) for _ in range(count))


def fixed(shape, size, count, heads, dim) -> Problem:
    axes = tuple(map(Axis, shape, size))
    return Problem(axes, count, heads, heads, dim, dim, "bfloat16", "cuda", gradients=True)


def together(case: Problem, shapes, frame) -> Problem:
    sizes = tuple(axis.size for axis in case.axes)
    ones = (1,) * len(sizes)
    window = (sizes, ones, ones, (False,) * len(sizes), ones)
    lengths, documents = layout.together(shapes, frame, window, clip=False)
    return replace(case, axes=tuple(map(Axis, lengths, sizes)), documents=documents)


def rows(problem: Problem) -> tuple[int, ...]:
    documents = problem.documents
    if documents is None:
        return (problem.batch, *problem.lengths)
    return (
        (sum(map(prod, documents.shapes)),) if documents.frame is None else (problem.batch, *documents.frame)
    )


class Run:
    """A problem with operands: its calls, and its results."""

    def __init__(self, problem: Problem):
        self.problem, self.scale = problem, problem.dim**-0.5
        shape = (*rows(problem), problem.heads, problem.dim)
        query, key, value, self.grad = (
            torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4)
        )
        self.operands = Operands(query, key, value)
        self.out, self.lse = self.forward()

    def forward(self):
        return TRITON.attend(self.problem, self.operands, self.scale)

    def backward(self, needs=NEEDS):
        given = (self.out, self.lse, self.grad, None, self.scale, needs)
        return TRITON.attend_back(self.problem, self.operands, *given)

    def tiles(self):
        return [kernel(self.problem)[:6] for kernel in (plan.forward, plan.query_gradient, plan.key_gradient)]


def interleaved(calls, repeats: int) -> list[float]:
    """Median milliseconds of each call, taken in turns."""
    for _ in range(3):
        for call in calls:
            call()
    events = [
        [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls] for _ in range(repeats)
    ]
    for turn in events:
        for call, (start, stop) in zip(calls, turn, strict=True):
            start.record()
            call()
            stop.record()
    torch.cuda.synchronize()
    return [
        sorted(turn[place][0].elapsed_time(turn[place][1]) for turn in events)[repeats // 2]
        for place in range(len(calls))
    ]


def error(run: Run) -> float:
    """Largest difference from the fixed-shape kernels on two documents, as a share of the largest value."""
    documents: Documents = run.problem.documents
    grads, worst = run.backward(), 0.0
    every = [*run.operands[:3], run.grad, run.out, *grads[:3]]
    for place, shape in list(enumerate(documents.shapes))[:2]:
        parts = [document(x, documents, place).contiguous() for x in every]
        axes = tuple(Axis(extent, axis.size) for extent, axis in zip(shape, run.problem.axes, strict=True))
        alone = replace(run.problem, axes=axes, batch=1, documents=None)
        given = Operands(*parts[:3])
        out, lse = TRITON.attend(alone, given, run.scale)
        back = TRITON.attend_back(alone, given, out, lse, parts[3], None, run.scale, NEEDS)
        for got, want in zip(parts[4:], (out, *back[:3]), strict=True):
            worst = max(worst, ((got - want).abs().max() / want.abs().max()).item())
    return worst


def document(x: torch.Tensor, documents: Documents, place: int) -> torch.Tensor:
    shape = documents.shapes[place]
    if documents.frame is not None:
        return x[(slice(place, place + 1), *map(slice, shape))]
    start = sum(map(prod, documents.shapes[:place]))
    return x[start : start + prod(shape)].unflatten(0, shape)[None]


def pairs(problem: Problem, shapes) -> int:
    sizes = [axis.size for axis in problem.axes]
    return sum(prod(extent * size for extent, size in zip(shape, sizes, strict=True)) for shape in shapes)


def boxes(problem: Problem, shapes, part: str) -> int:
    """Boxes of columns that all tiles of the kernels of a part visit, by the tiles of `problem`."""
    kernels = {"forward": [plan.forward], "query_gradient": [plan.query_gradient]}
    total = 0
    for kernel in kernels.get(part, [plan.query_gradient, plan.key_gradient]):
        tiles, inverse = kernel(problem), kernel is plan.key_gradient
        for shape in shapes:
            axes = plan.three_axes(tuple(map(Axis, shape, (axis.size for axis in problem.axes))))
            sides = zip(axes, tiles.rows, tiles.columns, strict=True)
            total += prod(tiling.axis_counts(*side, inverse).visited for side in sides)
    return total


def looping():
    """Within it, the fixed shape runs the kernels that documents run."""
    names = ("forward_launch", "query_gradient_launch", "key_gradient_launch")
    return patch.multiple(ring_launches, **dict.fromkeys(names, lambda *_: None))


def measure(name: str, kind: str, heads: int, dim: int, repeats: int) -> list[dict]:
    shape, size, count = CASES[name]
    shapes = (shape,) * count if kind == "equal" else mixed(shape, count)
    case = fixed(shape, size, count, heads, dim)
    alike = max(1, round(boxes(case, shapes, "forward") / boxes(case, (shape,), "forward")))
    with looping():
        base = Run(replace(case, batch=alike))
        return [
            compare(f"{name} {kind} {form}", base, together(case, shapes, frame), repeats)
            for form, frame in (("packed", None), ("padded", shape))
        ]


def compile_all(cases, heads: int, dim: int) -> None:
    """Fill Triton's cache, every case in a process of its own."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(measure, heads=heads, dim=dim, repeats=1), *zip(*cases, strict=True)))


def compare(name: str, base: Run, problem: Problem, repeats: int) -> dict:
    assert problem.documents is not None
    run, shapes = Run(problem), problem.documents.shapes
    whole = (base.problem.lengths,) * base.problem.batch
    row = {"name": name, "problem": str(run.problem), "error": error(run)}
    row |= {"batch": base.problem.batch, "same_tiles": run.tiles() == base.tiles()}
    assert row["error"] < 2e-2, row
    by_pairs = pairs(base.problem, shapes) / pairs(base.problem, whole)
    for part, call in PARTS.items():
        mine, batch = interleaved([partial(call, run), partial(call, base)], repeats)
        by_boxes = boxes(run.problem, shapes, part) / boxes(base.problem, whole, part)
        row |= {part: mine, f"{part}_batch": batch}
        row |= {f"{part}_by_boxes": mine / (batch * by_boxes), f"{part}_by_pairs": mine / (batch * by_pairs)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out")
    parser.add_argument("--only", help="names of cases, separated by commas")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=21)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else CASES
    cases, found = list(product(names, ("equal", "mixed"))), []
    compile_all(cases, options.heads, options.dim)
    print("row                        forward ms   boxes   pairs | backward ms  boxes   pairs | same   error")
    for case in cases:
        for row in measure(*case, options.heads, options.dim, options.repeats):
            found.append(row)
            parts = " | ".join(
                f"{row[part]:10.3f}  {row[f'{part}_by_boxes']:6.3f}  {row[f'{part}_by_pairs']:6.3f}"
                for part in ("forward", "backward")
            )
            print(f"{row['name']:26} {parts} | {row['same_tiles']!s:10} {row['error']:.1e}", flush=True)
        torch.cuda.empty_cache()
    device = torch.cuda.get_device_name()
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    settings = {"heads": options.heads, "dim": options.dim, "repeats": options.repeats}
    print(device, versions, settings)
    if options.out:
        result = {"device": device, "versions": versions, **settings, "rows": found}
        with open(options.out, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
