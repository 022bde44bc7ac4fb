"""Say what a bug report should: versions, devices, settings, missing extras."""

import argparse
import os
import platform
import sys

from .. import __version__
from . import extras, frameworks


def configure(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    del args
    lines = {"vicinal": __version__, "python": sys.version.split()[0], "platform": platform.platform()}
    found = {package: extras.installed(package) for needed in extras.EXTRAS.values() for package in needed}
    lines |= {package: number or "not installed" for package, number in found.items()}
    for framework in frameworks.FRAMEWORKS:
        if found[framework] is not None:
            lines |= {
                f"{framework} on {name}": about for name, about in frameworks.devices(framework).items()
            }
    lines |= {name: value for name, value in os.environ.items() if name.startswith("VICINAL_")}
    lines |= {f"extra {extra}": extras.lacks(extra) or "ready" for extra in extras.EXTRAS}
    width = max(map(len, lines))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in lines.items()))
    return 0
