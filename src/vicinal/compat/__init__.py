"""Programs written for NATTEN, natten-mps or natten-mlx, run on vicinal unedited.

    import vicinal.compat
    vicinal.compat.install("natten==0.17.5")     # before anything imports natten

or `python -m vicinal.compat natten==0.17.5 script.py arguments...`.
"""

import re
import sys

from .finder import Finder
from .packages import LATEST, era_of

__all__ = ["Installed", "era_of", "install", "uninstall"]


class Installed:
    """A package put in place by `install`; as a context manager, taken away at the end of the block."""

    def __init__(self, package: str, version: str) -> None:
        self.package, self.version = package, version

    def __enter__(self) -> "Installed":
        return self

    def __exit__(self, *_: object) -> None:
        uninstall(self.package)

    def __repr__(self) -> str:
        return f"Installed({self.package}=={self.version})"


def install(requirement: str) -> Installed:
    """Answer imports and version queries of a package, in this process, as one of its releases would.

    `import natten` and its submodules, `importlib.util.find_spec` and `importlib.metadata` see it, also
    where the real package is installed. Call it before importing the package, or one that looks for it.

    Args:
        requirement: `natten`, `natten_mps` or `natten_mlx`, with `==` and a release, or the latest. Which
            build of a release, as in `natten==0.17.1+torch230cu121`, makes no difference.

    Raises:
        ValueError: the requirement is not of that form, or the release is not known here.
        RuntimeError: the real package is imported already, or another release is installed.
    """
    form = r"([a-z_-]+)(?:==([0-9]+(?:\.[0-9]+)*)(?:\+[a-z0-9.]+)?)?"
    match = re.fullmatch(form, str(requirement).strip().lower())
    package = match[1].replace("-", "_") if match else ""
    if match is None or package not in LATEST:
        raise ValueError(
            f"requirement {requirement!r} is not understood; pass {', '.join(LATEST)}, or one with "
            "an exact release such as natten==0.17.5"
        )
    version = match[2] or LATEST[package]
    present = _finders(package)
    if present and present[0].version != version:
        raise RuntimeError(f"{package} {present[0].version} is installed; call uninstall({package!r}) before")
    if not present:
        real = sys.modules.get(package)
        if real is not None:
            place = getattr(real, "__file__", None) or "memory"
            raise RuntimeError(
                f"{package} is already imported, from {place}; call install before anything imports it"
            )
        sys.meta_path.insert(0, Finder(package, version))
    return Installed(package, version)


def uninstall(package: str | None = None) -> None:
    """Undo `install`, of one package or of all. Who imported its names keeps them."""
    for finder in _finders(package):
        sys.meta_path.remove(finder)
        inside = f"{finder.package}."
        for name in [name for name in sys.modules if f"{name}.".startswith(inside)]:
            del sys.modules[name]


def _finders(package: str | None) -> list[Finder]:
    found = [finder for finder in sys.meta_path if isinstance(finder, Finder)]
    return [finder for finder in found if package in (None, finder.package)]
