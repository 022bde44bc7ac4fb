"""Backends that natten-mps and natten-mlx know by name: checked and kept, without effect."""

import os
from collections.abc import Callable, Mapping

VARIABLE = "NATTEN_BACKEND"


def functions(package: str, tiers: Mapping[str, Callable[[], bool]], needs: str) -> tuple[Callable, ...]:
    """`get_backend`, `set_backend` and `get_support_matrix`.

    Args:
        package: whose names these are.
        tiers: whether each backend is available, `auto` aside.
        needs: what an unavailable one needs, for the error.
    """
    kept: list[str] = []

    def set_backend(name: str) -> None:
        """Keep the name of a backend, which changes nothing.

        Raises:
            ValueError: the package knows no backend of that name.
            NotImplementedError: the backend is not available here.
        """
        known = ("auto", *tiers)
        if name not in known:
            raise ValueError(f"backend {name!r} is unknown to {package}; pass {', '.join(known)}")
        if name != "auto" and not tiers[name]():
            raise NotImplementedError(f"backend {name!r} needs {needs}; pass 'auto' or 'pure'")
        kept[:] = [name]

    def get_backend() -> str:
        """The backend last set, or else that of the variable NATTEN_BACKEND, or `auto`."""
        if not kept:
            set_backend(os.environ.get(VARIABLE, "auto"))
        return kept[0]

    def get_support_matrix() -> dict[str, dict]:
        """What each backend runs: everything, where it is available."""
        fused = dict.fromkeys(("na1d", "na2d", "na3d"), True)
        operations = {**fused, "split_qk_av": True}
        columns = {
            "forward": operations,
            "backward": operations,
            "varlen": fused,
            "fusion": fused,
            "constraints": [],
        }
        return {name: {"available": is_available(), **columns} for name, is_available in tiers.items()}

    return get_backend, set_backend, get_support_matrix
