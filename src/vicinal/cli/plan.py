"""Count the tiles of a problem: what a tile kernel visits, and how much of that is of use.

Of all boxes of the given volumes, the cheapest are shown: for the pass over outputs, and for the pass over
keys that the gradients of keys and values take.
"""

import argparse
from itertools import product

from .. import Problem, tiling
from . import window


def configure(parser: argparse.ArgumentParser) -> None:
    window.configure(parser)
    for option, what in (("--rows", "outputs"), ("--columns", "keys")):
        told = f"{what} in a tile, a power of two (default 64)"
        parser.add_argument(option, type=int, default=64, metavar="N", help=told)


def run(args: argparse.Namespace) -> int:
    problem = window.problem(args)
    for volume in (args.rows, args.columns):
        if volume < 1 or volume & (volume - 1):
            args.parser.error(
                f"{volume} is no power of two; pass one of 1, 2, 4, ... for --rows and --columns"
            )
    print(problem)
    print(f"useful pairs per head: {problem.pairs:,}; useful FLOPs forward: {problem.flops:,}")
    for title, inverse in (("over outputs", False), ("over keys", True)):
        print(_line(title, problem, args.rows, args.columns, inverse))
    return 0


def _line(title: str, problem: Problem, rows: int, columns: int, inverse: bool) -> str:
    extents = [max(axis.length // axis.dilation, 1) for axis in problem.axes]
    tiles, boxes = (tiling.boxes(volume, problem.rank, extents) for volume in (rows, columns))
    best = tiling.best(problem, product(tiles, boxes), inverse=inverse)
    counts, waste = best.counts, tiling.waste(problem, best.rows, best.columns, inverse)
    shapes = " over ".join("x".join(map(str, box)) for box in (best.rows, best.columns))
    return (
        f"{title:<13} boxes {shapes}: {counts.tiles:,} tiles visit {counts.visited:,} boxes, {counts.full:,} "
        f"without a mask; pairs computed over useful ones {waste:.2f}"
    )
