"""Say what a bug report should: versions, devices, settings, missing extras."""

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from .. import __version__
from . import frameworks

EXTRAS = {
    "torch": ("torch",),
    "mlx": ("mlx",),
    "triton": ("torch", "triton"),
    "plot": ("matplotlib",),
    "demo": ("torch", "numpy", "scikit-learn", "scikit-image", "matplotlib", "tqdm"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    del args
    lines = {"vicinal": __version__, "python": sys.version.split()[0], "platform": platform.platform()}
    found = {package: _version(package) for packages in EXTRAS.values() for package in packages}
    lines |= {package: number or "not installed" for package, number in found.items()}
    for framework in frameworks.FRAMEWORKS:
        if found[framework] is not None:
            every = frameworks.devices(framework).items()
            lines |= {f"{framework} on {device}": about for device, about in every}
    lines |= {name: value for name, value in os.environ.items() if name.startswith("VICINAL_")}
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if found[package] is None]
        lines[f"extra {extra}"] = (
            f"missing {', '.join(missing)}: pip install 'vicinal[{extra}]'" if missing else "ready"
        )
    width = max(map(len, lines))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in lines.items()))
    return 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
