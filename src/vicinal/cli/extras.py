"""The extras of the package, and what of them is installed."""

import argparse
from collections.abc import Container
from importlib.metadata import PackageNotFoundError, version

EXTRAS = {
    "torch": ("torch",),
    "mlx": ("mlx",),
    "triton": ("torch", "triton"),
    "plot": ("matplotlib",),
    "demo": ("torch", "numpy", "scikit-learn", "scikit-image", "matplotlib", "tqdm"),
}


def installed(package: str) -> str | None:
    """The version of a package, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def lacks(extra: str, without: Container[str] = ()) -> str | None:
    """What of an extra is missing, `without` some packages, and how to get it; None if it is all there."""
    missing = [name for name in EXTRAS[extra] if name not in without and installed(name) is None]
    return f"missing {', '.join(missing)}: pip install 'vicinal[{extra}]'" if missing else None


def require(parser: argparse.ArgumentParser, *extras: str, without: Container[str] = ()) -> None:
    """End the program with a message where one of `extras` is not installed, `without` some packages."""
    for extra in extras:
        reason = lacks(extra, without)
        if reason is not None:
            parser.error(reason)
