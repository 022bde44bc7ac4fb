"""Say which backend runs each named problem on this machine, and why the others refuse."""

import argparse
from dataclasses import replace
from importlib import import_module

from .. import catalog
from . import extras, frameworks

RUNS, CAN = "runs", "can"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases of the catalog (default: all)")
    frameworks.configure(parser)
    parser.add_argument("--device", help="cpu, cuda, mps or metal (default: the fastest that is here)")
    parser.add_argument("--gradients", action="store_true", help="ask for a backward pass too")


def run(args: argparse.Namespace) -> int:
    extras.require(args.parser, args.framework)
    na = import_module(f"vicinal.{args.framework}")
    device = args.device or next(iter(frameworks.devices(args.framework)))
    known = {case.name: case.problem for case in catalog.CASES}
    unknown = [name for name in args.names if name not in known]
    if unknown:
        args.parser.error(f"case {unknown[0]!r} is unknown; pass some of {', '.join(known)}")
    problems = {name: known[name] for name in args.names or known}
    asked = {
        name: replace(problem, device=device, gradients=args.gradients) for name, problem in problems.items()
    }
    answers = {name: na.refusals(problem) for name, problem in asked.items()}
    where = f"{frameworks.FRAMEWORKS[args.framework]} on {device}"
    print(f"{where}: {RUNS} = the backend that a call takes, {CAN} = could run, [n] = refuses\n")
    print(_table(answers))
    if args.names:
        print("\n" + "\n".join(f"{name}: {problem}" for name, problem in asked.items()))
    return 0


def _table(answers: dict[str, dict[str, str | None]]) -> str:
    backends = list(next(iter(answers.values())))
    notes: dict[str, int] = {}
    rows = [["problem", *backends]]
    for name, refusals in answers.items():
        first = next((backend for backend, reason in refusals.items() if reason is None), None)
        row = [name]
        for backend, reason in refusals.items():
            if reason is None:
                row.append(RUNS if backend == first else CAN)
            else:
                row.append(f"[{notes.setdefault(reason, len(notes) + 1)}]")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, "", *(f"[{number}] {reason}" for reason, number in notes.items())])
