"""Try it on real data: learn to read digits, clean a photograph, and draw what a pixel attends to.

Needs the extra `demo`, and no network. Writes pictures into a folder.
"""

import argparse
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import ModuleType

from ... import Axis, Problem
from .. import extras, frameworks


def configure(parser: argparse.ArgumentParser) -> None:
    frameworks.configure(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or metal (default: cpu)")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="for the pictures (default: demo)")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training digits (default 15)")


def run(args: argparse.Namespace) -> int:
    others = frameworks.FRAMEWORKS.keys() - {args.framework}
    extras.require(args.parser, args.framework, "demo", without=others)
    devices = frameworks.devices(args.framework)
    if args.device not in devices:
        args.parser.error(f"--device is {args.device}, which is not here; pass {' or '.join(devices)}")
    if args.epochs < 1:
        args.parser.error(f"--epochs is {args.epochs}; pass 1 or more")
    # `with_torch` and `with_mlx` do the same work: `learn`, `attend`, `look`.
    work = import_module(f".with_{args.framework}", __package__)
    args.folder.mkdir(parents=True, exist_ok=True)
    start = perf_counter()
    _digits(work, args)
    _photograph(work, args)
    print(f"Done in {perf_counter() - start:.0f} s.")
    return 0


def _digits(work: ModuleType, args: argparse.Namespace) -> None:
    from .digits import PROBLEM, load

    train, test = load()
    print(f"Digits: {len(train.labels)} images of 8x8 to learn from, {len(test.labels)} held out")
    start = perf_counter()
    learned = work.learn(train, test, args.epochs, args.device)
    seconds = perf_counter() - start
    print(
        f"  {learned.accuracy:.1%} of the held-out images read right: {learned.parameters:,} parameters, "
        f"{args.epochs} epochs, {seconds:.0f} s, {_who(PROBLEM, args)}"
    )


def _photograph(work: ModuleType, args: argparse.Namespace) -> None:
    from . import photograph, pictures

    clean, noisy = photograph.load()
    height, width, colors = clean.shape
    window = photograph.WINDOW
    print(f"Photograph: {height}x{width} with noise, cleaned by one call, window {window}x{window}")
    query, key = photograph.similarity(noisy)
    start = perf_counter()
    cleaned, lse = work.attend(query, key, noisy, window, args.device)
    seconds = perf_counter() - start
    before, after = (photograph.decibels(clean, image) for image in (noisy, cleaned))
    axes = (Axis(height, window), Axis(width, window))
    who = _who(Problem(axes, dim=query.shape[-1], value_dim=colors), args)
    print(f"  {before:.1f} dB to {after:.1f} dB in {seconds:.2f} s, {who}")
    weights = work.look(query, key, window, photograph.STEP, args.device)
    shown = (
        pictures.attention(noisy, weights, window, photograph.STEP, args.folder / "attention.png"),
        pictures.features(noisy, cleaned, photograph.alike(query, key, lse), args.folder / "features.png"),
    )
    print("  pictures: " + ", ".join(map(str, shown)))


def _who(problem: Problem, args: argparse.Namespace) -> str:
    """The backend that runs `problem`, in words."""
    refusals = import_module(f"vicinal.{args.framework}").refusals(replace(problem, device=args.device))
    name = next(name for name, reason in refusals.items() if reason is None)
    return f"backend {name} of {frameworks.FRAMEWORKS[args.framework]} on {args.device}"
