"""The source tree, read and not imported: modules, what they import, and how long they are."""

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vicinal"
FOLDERS = (".ci", "benchmarks", "docs", "src", "tests", "tools")
GENERATED = {"__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis"}
IGNORED = {".coverage", ".DS_Store", ".git"}


class Import(NamedTuple):
    """One imported thing: `vicinal.torch`, name `na2d`; the name is empty for `import a.b`."""

    module: str
    name: str


class Function(NamedTuple):
    """A function's measures: `lines` without docstring and inner functions, `depth` of nested statements."""

    name: str
    lines: int
    depth: int
    parameters: int
    is_kernel: bool


@lru_cache
def tracked() -> tuple[Path, ...]:
    """Files of the repository."""
    below = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    found = [path for path in (*ROOT.glob("*"), *below) if path.is_file() and path.name not in IGNORED]
    return tuple(sorted(path for path in found if not {*path.parts} & GENERATED))


def sources(folder: Path) -> list[Path]:
    """Python files below `folder`."""
    return sorted(path for path in tracked() if path.suffix == ".py" and folder in path.parents)


def dotted(path: Path) -> str:
    """`src/vicinal/torch/ops.py` is `vicinal.torch.ops`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@lru_cache(1024)
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def is_module(name: str) -> bool:
    """Whether `name` is a module or package of ours."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports(path: Path) -> Iterator[Import]:
    """All imports of a file, inside functions too; `from package import module` names the module."""
    package = dotted(path) if path.name == "__init__.py" else dotted(path).rpartition(".")[0]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(inner, "") if is_module(inner) else Import(base, alias.name)


def ours(path: Path) -> set[str]:
    """Modules of this package that a file imports."""
    return {found.module for found in imports(path) if found.module.split(".")[0] == "vicinal"}


def functions(path: Path) -> Iterator[Function]:
    """Every function of a file, methods and inner functions too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, _FUNCTIONS):
            said = node.body[:1] if ast.get_docstring(node) is not None else []
            inner = [child for child in ast.walk(node) if isinstance(child, _FUNCTIONS) and child is not node]
            direct = [
                child for child in inner if not any(child in ast.walk(x) for x in inner if x is not child)
            ]
            lines = _height(node) - sum(map(_height, [*said, *direct]))
            every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            called = [argument.arg for argument in every if argument.arg not in ("self", "cls")]
            is_kernel = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            yield Function(node.name, lines, _depth(node), len(called), is_kernel)


def _height(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_NESTING = (ast.For, ast.While, ast.If, ast.With, ast.Try)


def _depth(node: ast.AST, inside: int = 0) -> int:
    deepest = inside
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*_FUNCTIONS, ast.ClassDef, ast.Lambda)):
            continue
        # `elif` is an `if` in an `else`, and reads as one level.
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        step = isinstance(child, _NESTING) and not is_elif
        deepest = max(deepest, _depth(child, inside + step))
    return deepest
