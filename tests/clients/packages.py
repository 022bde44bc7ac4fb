"""Parts of packages, without what their `__init__` modules import."""

import importlib.util
import sys
from types import ModuleType
from unittest.mock import MagicMock


def bare(name: str, **names) -> None:
    """A package that has its submodules and `names`, and has run no `__init__`."""
    package = ModuleType(name)
    package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    vars(package).update(names)
    sys.modules[name] = package


def absent(*names: str) -> None:
    """Modules that are imported and not used."""
    sys.modules.update({name: MagicMock() for name in names})
