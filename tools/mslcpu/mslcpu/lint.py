"""What Apple's compiler, PyTorch or MLX refuse and clang's front end takes."""

import re
import subprocess

from . import build
from .library import Library

# Parameters of functions that the compiler makes have no name, but may be `used`.
_DECLARATION = re.compile(r"\b(?:VarDecl|ParmVarDecl|FieldDecl) .*? (?!used )(\w+) '([^']*)'")
# A node gives `file:line:column`, or what differs from the node before: `line:line:column`, `col:column`.
_POSITION = re.compile(r"([^\s:<>,]+):(\d+):\d+")


def lint(source: str, name: str = "kernel.metal", **options) -> list[str]:
    """Lines `file:line: complaint`; `options` are those of `Library`.

    Raises:
        MSLError: the source does not compile.
    """
    found = [
        f"{name}:{number}: non-ASCII character, which PyTorch's source encoding does not hold"
        for number, line in enumerate(source.splitlines(), 1)
        if not line.isascii()
    ]
    text = Library(source, name, hooks=False, **options).text
    command = [build.CLANG, *build.LANGUAGE, f"-I{build.SHIM}", "-fsyntax-only"]
    warnings = build.run([*command, "-Wimplicit-float-conversion", "-"], text).stderr
    for line in warnings.splitlines():
        match = re.match(r"(\S+?:\d+):\d+: warning: (implicit conversion.* to .*bf(?:16|loat).*)", line)
        if match and match[1].startswith(name):
            found.append(f"{match[1]}: {match[2]}")
    lines = source.splitlines()
    return sorted({*found, *_without_space(command, text, name, lines)})


def _without_space(command: list[str], text: str, name: str, lines: list[str]) -> list[str]:
    """Pointers and references that name no address space, which clang reads as generic and Metal has not."""
    dump = [*command, "-Xclang", "-ast-dump", "-fno-color-diagnostics", "-"]
    tree = subprocess.run(dump, input=text, capture_output=True, text=True, check=True).stdout
    found, file, line = [], "", "0"
    for node in tree.splitlines():
        for place, number in _POSITION.findall(node.split("'")[0]):
            file, line = file if place == "line" else place, number
        declared = _DECLARATION.search(node)
        if not declared or file != name or "__generic" not in declared[2] or "&&" in declared[2]:
            continue
        # The rewriter takes the space off references to const, which must bind to temporaries.
        if not re.search(rf"\bthread\b[^,;]*\b{declared[1]}\b", lines[int(line) - 1]):
            found.append(
                f"{file}:{line}: pointer or reference without address space: {declared[1]} ({declared[2]})"
            )
    return found
