"""A finder that answers `import natten`, and questions about the distribution of that name."""

import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from os import PathLike
from pathlib import Path
from types import ModuleType

from . import packages


class Finder(MetaPathFinder, Loader):
    """Finds and loads one package in one release, from modules of ours."""

    def __init__(self, package: str, version: str) -> None:
        self.package, self.version = package, version
        self.tree = packages.tree_of(package, version)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package and its submodules, and nothing else."""
        root, _, name = fullname.partition(".")
        if root != self.package or name not in self.tree:
            return None
        inside = f"{name}." if name else ""
        is_package = any(other.startswith(inside) for other in self.tree if other != name)
        return ModuleSpec(
            fullname, self, origin=f"vicinal, as {self.package} {self.version}", is_package=is_package
        )

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module with its names; the package also has its submodules, and its version."""
        _, _, name = module.__name__.partition(".")
        for source, names in self.tree[name].items():
            vars(module).update(_names(import_module(source), names))
        if name in ("", "version"):
            vars(module)["__version__"] = self.version
        if not name:
            for inner in filter(None, self.tree):
                import_module(f"{module.__name__}.{inner}")

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterator[Distribution]:
        """The distribution, when it or all are asked for."""
        wanted = None if context is None else context.name
        if wanted is None or re.sub(r"[-_.]+", "_", wanted).lower() == self.package:
            yield _Release(self.package, self.version)


class _Release(Distribution):
    """Metadata of a release, without files."""

    def __init__(self, package: str, version: str) -> None:
        name = package.replace("_", "-")
        self._texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            "INSTALLER": "vicinal\n",
            "top_level.txt": f"{package}\n",
        }

    def read_text(self, filename: str) -> str | None:
        return self._texts.get(filename)

    def locate_file(self, path: str | PathLike[str]) -> Path:
        return Path(__file__).parent / path


def _names(source: ModuleType, names: str | None) -> dict:
    """`{name: value}` of a part of a submodule."""
    if names is None:
        public = getattr(source, "__all__", None) or [
            name for name in vars(source) if not name.startswith("_")
        ]
        return {name: getattr(source, name) for name in public}
    pairs = (name.partition("=") for name in names.split())
    return {name: getattr(source, ours or name) for name, _, ours in pairs}
