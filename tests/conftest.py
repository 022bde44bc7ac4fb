"""Tests of a framework are collected where it is installed; the report's first lines say what is left out."""

from importlib.util import find_spec

from hypothesis import settings

NEEDS = {"torch": ("torch",), "compat": ("torch",), "triton": ("torch", "triton"), "mlx": ("mlx",)}

settings.register_profile("vicinal", deadline=None, print_blob=True)
settings.load_profile("vicinal")

left_out = {
    folder: [name for name in names if find_spec(name) is None]
    for folder, names in NEEDS.items()
    if any(find_spec(name) is None for name in names)
}
collect_ignore = list(left_out)


def pytest_report_header() -> list[str]:
    """What is not tested here."""
    return [f"left out: tests/{folder}, without {', '.join(names)}" for folder, names in left_out.items()]
