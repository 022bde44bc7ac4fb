"""Draw a window: the keys that an output sees, or the outputs that see a key."""

import argparse
from pathlib import Path

from .. import draw
from . import extras, window


def configure(parser: argparse.ArgumentParser) -> None:
    window.configure(parser)
    parser.add_argument("--output", type=int, nargs="+", metavar="O", help="draw the keys of this output")
    parser.add_argument("--key", type=int, nargs="+", metavar="K", help="draw the outputs that see this key")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw a picture (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    if args.png is not None:
        extras.require(args.parser, "plot")
    axes = window.problem(args).axes
    if args.output is not None and args.key is not None:
        args.parser.error("pass --output or --key, not both")
    inverse = args.key is not None
    place = args.key if inverse else args.output
    extents = [axis.length if inverse else axis.outputs for axis in axes]
    if place is None:
        place = [extent // 2 for extent in extents]
    inside = len(place) == len(axes) and all(0 <= at < n for at, n in zip(place, extents, strict=True))
    if not inside:
        args.parser.error(f"{place} is no place in {extents}; pass one index per axis, from 0")
    print(draw.text(axes, place, inverse=inverse))
    if args.png is not None:
        try:
            draw.picture(axes, place, args.png, inverse=inverse)
        except OSError as error:
            args.parser.error(f"no picture: {error}")
        print(f"picture: {args.png}")
    return 0
