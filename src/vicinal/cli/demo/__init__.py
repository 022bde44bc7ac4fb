"""Try it on real data: learn to read digits, clean a photograph, and draw what a pixel attends to.

Needs the extra `demo`, and no network. Writes pictures into a folder.
"""

import argparse
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

# A framework is a module `with_NAME` beside this one: `learn`, `attend`, `look`, `runs_on`.
FRAMEWORKS = ("torch",)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--framework", choices=FRAMEWORKS, default=FRAMEWORKS[0])
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="for the pictures (default: demo)")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training digits (default 15)")


def run(args: argparse.Namespace) -> int:
    framework = import_module(f".with_{args.framework}", __package__)
    args.folder.mkdir(parents=True, exist_ok=True)
    start = perf_counter()
    _digits(framework, args.epochs)
    _photograph(framework, args.folder)
    print(f"Done in {perf_counter() - start:.0f} s.")
    return 0


def _digits(framework: Any, epochs: int) -> None:
    from .digits import load

    train, test = load()
    print(f"Digits: {len(train.labels)} images of 8x8 to learn from, {len(test.labels)} held out")
    start = perf_counter()
    learned = framework.learn(train, test, epochs)
    print(
        f"  {learned.accuracy:.1%} of the held-out images read right: {learned.parameters:,} parameters, "
        f"{epochs} epochs, {perf_counter() - start:.0f} s, backend {learned.backend}"
    )


def _photograph(framework: Any, folder: Path) -> None:
    from . import photograph, pictures

    clean, noisy = photograph.load()
    height, width, _ = clean.shape
    window = photograph.WINDOW
    print(f"Photograph: {height}x{width} with noise, cleaned by one call, window {window}x{window}")
    query, key = photograph.similarity(noisy)
    start = perf_counter()
    cleaned, lse, backend = framework.attend(query, key, noisy, window)
    seconds = perf_counter() - start
    before, after = (photograph.decibels(clean, image) for image in (noisy, cleaned))
    print(f"  {before:.1f} dB to {after:.1f} dB in {seconds:.2f} s, backend {backend}")
    weights = framework.look(query, key, window, photograph.STEP)
    shown = (
        pictures.attention(noisy, weights, window, photograph.STEP, folder / "attention.png"),
        pictures.features(noisy, cleaned, photograph.alike(query, key, lse), folder / "features.png"),
    )
    print("  pictures: " + ", ".join(map(str, shown)))
