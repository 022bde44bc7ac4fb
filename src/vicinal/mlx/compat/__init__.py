"""NATTEN as each era knew it, on the public functions of `vicinal.mlx`.

`v014`, `v015`, `v017`, `v020` (0.20 and 0.21), `natten_mlx` and `allin1` hold the names of an era side by
side; `vicinal.compat.install` also puts them where `import natten_mlx` finds them. New code needs none of it.
"""

from types import ModuleType

from vicinal.compat import era_of

from . import allin1, natten_mlx, v014, v015, v017, v020

__all__ = ["allin1", "for_version", "natten_mlx", "v014", "v015", "v017", "v020"]


def for_version(version: str) -> ModuleType:
    """The module of the era that a NATTEN release belongs to: `for_version("0.17.5")` is `v017`.

    Raises:
        ValueError: the version is no release of 0.14 to 0.21.
    """
    return {"v014": v014, "v015": v015, "v017": v017, "v020": v020}[era_of(version)]
