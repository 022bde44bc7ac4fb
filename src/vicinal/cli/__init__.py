"""The command line, `vicinal COMMAND`. A command is a module with `configure` and `run`; see `COMMANDS`."""

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from . import demo, doctor, draw, plan, support

COMMANDS = {"demo": demo, "support": support, "doctor": doctor, "draw": draw, "plan": plan}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (by default, of this process) names; the exit status."""
    parser = argparse.ArgumentParser(prog="vicinal", description="Neighborhood attention: look, plan, try.")
    parser.add_argument("--version", action="version", version=f"vicinal {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").strip()
        command = commands.add_parser(name, help=summary.splitlines()[0], description=summary)
        module.configure(command)
        command.set_defaults(run=module.run, parser=command)
    args = parser.parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output, such as `head`, has enough; the interpreter must not flush the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
