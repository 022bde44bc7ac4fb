"""Metal sources: prelude, templates and the instantiations that a launch asks for."""

from functools import lru_cache
from pathlib import Path

TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat"}
FILES = ("prelude", "plain", "plain_walks", "bias", "tile", "forward", "backward", "walks")


def instantiation(kernel: str, *arguments: str | int | bool) -> tuple[str, str]:
    """Host name and explicit instantiation of a kernel template."""
    values = [str(value).lower() for value in arguments]
    made = f"{kernel}<{', '.join(values)}>"
    host = "_".join([kernel, *values])
    return host, f'template [[host_name("{host}")]] [[kernel]] decltype({made}) {made};\n'


@lru_cache
def template(name: str) -> str:
    """One file of kernel templates."""
    return (Path(__file__).parent / f"{name}.metal").read_text(encoding="ascii")


@lru_cache
def templates() -> str:
    """All kernel templates, as one source."""
    return "\n".join(map(template, FILES))
