"""A problem on the command line: the name of a catalog case, or the numbers of a window."""

import argparse

from .. import Problem, arguments, catalog


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options that `problem` reads."""
    parser.add_argument("name", nargs="?", help="a case of the catalog, such as nat_tiny_s1")
    parser.add_argument("--lengths", type=int, nargs="+", metavar="L", help="tokens of every axis")
    for option, default in (("--kernel-size", 3), ("--stride", 1), ("--dilation", 1), ("--output-stride", 1)):
        told = f"one number, or one per axis (default {default})"
        parser.add_argument(option, type=int, nargs="+", default=[default], metavar="N", help=told)
    parser.add_argument(
        "--causal", type=int, nargs="*", metavar="AXIS", help="axes that are causal; alone, all of them"
    )


def problem(args: argparse.Namespace) -> Problem:
    """The problem that `args` name. Says what is wrong and ends the program where they name none."""
    parser: argparse.ArgumentParser = args.parser
    if (args.name is None) == (args.lengths is None):
        parser.error("pass the name of a case, or --lengths")
    try:
        return _problem(args)
    except (TypeError, ValueError) as error:
        parser.error(str(error))


def _problem(args: argparse.Namespace) -> Problem:
    if args.name is not None:
        return catalog.named(args.name).problem
    rank = len(args.lengths)
    arguments.one_of("number of --lengths", rank, (1, 2, 3))
    for axis in args.causal or ():
        arguments.one_of("axis of --causal", axis, range(rank))
    causal = (
        False if args.causal is None else not args.causal or [axis in args.causal for axis in range(rank)]
    )
    window = arguments.window(
        args.lengths,
        _spread(args.kernel_size),
        _spread(args.stride),
        _spread(args.dilation),
        causal,
        _spread(args.output_stride),
    )
    return Problem(arguments.axes(args.lengths, window))


def _spread(values: list[int]) -> int | list[int]:
    return values[0] if len(values) == 1 else values
