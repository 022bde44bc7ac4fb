"""Metal sources: prelude, templates, and what each host makes kernels of them with."""

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

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


@lru_cache
def kernels() -> tuple[str, ...]:
    """Names of all kernel templates."""
    return tuple(match["name"] for match in _KERNEL.finditer(templates()))


class Parts(NamedTuple):
    """A kernel template taken apart, for a host that writes the signature itself.

    Args:
        parameters: names of the template's parameters.
        inputs, outputs: names of its buffers. Inputs that the body wants as a type which arrays of numbers
            do not have are called `*_numbers`.
        body: statements that find the rest of the signature among the host's names, and the kernel's own.
    """

    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    body: str


_KERNEL = re.compile(
    r"template <(?P<parameters>[^>]*)>\n\[\[kernel.*?\]\] void (?P<name>\w+)\((?P<signature>.*?)\) \{\n"
    r"(?P<body>.*?)^\}$",
    re.DOTALL | re.MULTILINE,
)
_ARGUMENT = re.compile(r"\s*(?P<type>[^,]*?) ?(?P<name>\w+)\s*\[\[(?P<attribute>\w+)(?:\(\d+\))?\]\]")
# Buffers that hold numbers of another type: vectors, structs.
_MADE = ("int4*", ">*")


@lru_cache
def parts(kernel: str) -> Parts:
    """The parts of a kernel template."""
    found = next(match for match in _KERNEL.finditer(templates()) if match["name"] == kernel)
    inputs, outputs, start = [], [], ""
    for argument in _ARGUMENT.finditer(found["signature"]):
        kind, name, attribute = argument["type"].lstrip(", \n"), argument["name"], argument["attribute"]
        if attribute != "buffer":
            start += f"const {kind} {name} = {attribute};\n"
        elif kind.startswith("device"):
            outputs.append(name)
        elif kind.endswith(_MADE):
            inputs.append(f"{name}_numbers")
            start += f"{kind} {name} = reinterpret_cast<{kind}>({name}_numbers);\n"
        else:
            inputs.append(name)
    names = tuple(parameter.split()[-1] for parameter in found["parameters"].split(","))
    return Parts(names, tuple(inputs), tuple(outputs), start + found["body"])
