"""The rules of DESIGN.md that a program can check."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import vicinal
from tests.architecture import (
    PACKAGE,
    ROOT,
    dotted,
    functions,
    imports,
    is_module,
    ours,
    parsed,
    sources,
    tracked,
)

# Framework-free modules; each imports only from lines above its own.
CORE = (
    ("window",),
    ("problem", "arguments", "spans"),
    ("tiling", "dispatch", "catalog", "draw", "layout", "ranks", "settings"),
)
FRAMEWORKS = ("torch", "mlx")
# Packages without a framework of their own, that a framework's backends call.
KERNELS = ("triton", "metal")

LINES = {".py": 400, ".metal": 250}
LONG_FILES: dict[str, str] = {}
FUNCTION_LINES, KERNEL_LINES, DEPTH, PARAMETERS = 50, 120, 3, 12
LONG_FUNCTIONS = {
    "neighborhood_attention": "public: the whole of the operation's options",
    "neighborhood_attention_varlen": "public: the same, for documents of different extents",
    "neighborhood_attention_packed": "public: the same, for documents without padding",
    "_case": "a table's columns",
}
# Public names that the other front end has not.
MLX_ONLY = {"load_torch_state"}
COMMAND_LINE = "cli"
COMPAT = "compat"


def _core(path: Path) -> bool:
    return path.parent == PACKAGE and path.name not in ("__init__.py", "__main__.py")


def test_core_imports_one_way():
    rank = {name: line for line, names in enumerate(CORE) for name in names}
    found = {path.stem for path in sources(PACKAGE) if _core(path)}
    assert found == set(rank)
    for name, line in rank.items():
        for module in ours(PACKAGE / f"{name}.py"):
            other = module.removeprefix("vicinal.")
            assert other in rank, f"{name} imports {module}"
            assert rank[other] < line, f"{name} imports {module}, which is not below it"


@pytest.mark.parametrize("path", [p for p in sources(PACKAGE) if _core(p)], ids=lambda path: path.stem)
def test_core_needs_only_the_standard_library(path):
    outside = {found.module.split(".")[0] for found in imports(path)} - {"vicinal"}
    assert outside <= sys.stdlib_module_names


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_frameworks_do_not_meet(name):
    other = FRAMEWORKS[1 - FRAMEWORKS.index(name)]
    for path in sources(PACKAGE / name):
        reached = {found.module for found in imports(path)}
        wrong = {m for m in reached if m.split(".")[0] == other or m.startswith(f"vicinal.{other}")}
        assert not wrong, f"{dotted(path)} imports {wrong}"


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_know_the_core_alone(name):
    for path in sources(PACKAGE / name):
        for module in ours(path):
            is_core = module == "vicinal" or module.split(".")[1] in {n for line in CORE for n in line}
            assert is_core or module.startswith(f"vicinal.{name}"), f"{dotted(path)} imports {module}"


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_backends_do_not_import_one_another(name):
    folder = PACKAGE / name / "backends"
    package = f"vicinal.{name}.backends"
    for path in sources(folder):
        if path.name == "__init__.py":
            continue
        siblings = {m for m in ours(path) if m.startswith(package)} - {f"{package}.base"}
        assert not siblings, f"{dotted(path)} imports {siblings}"


def _users() -> list[Path]:
    folders = [PACKAGE / COMMAND_LINE, PACKAGE / COMPAT, *(PACKAGE / name / COMPAT for name in FRAMEWORKS)]
    return [path for folder in folders for path in sources(folder)]


@pytest.mark.parametrize("path", _users(), ids=dotted)
def test_commands_and_older_names_use_public_names(path):
    parts = dotted(path).split(".")
    within = ".".join(parts[: 3 if parts[1] in FRAMEWORKS else 2])
    core = {f"vicinal.{name}" for line in CORE for name in line}
    public = {"vicinal", f"vicinal.{COMPAT}", *(f"vicinal.{name}" for name in FRAMEWORKS)}
    for module, name in imports(path):
        shared = f"vicinal.{COMPAT}.eras"
        if not module.startswith("vicinal") or module.startswith((within, shared)):
            continue
        assert module in core | public, f"{module} is no public module"
        assert not name.startswith("_") or name == "__version__", f"{module}.{name} is private"
        if module in public and name:
            listed = _listed(PACKAGE.parent.joinpath(*module.split("."), "__init__.py"))
            assert name in listed, f"{module}.{name} is not public"


def _loaded(statement: str, before: str = "") -> set[str]:
    program = f"import sys\n{before}\nold = set(sys.modules)\n{statement}\nprint(*set(sys.modules) - old)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_bare_package_loads_nothing_but_itself():
    loaded = {name.split(".")[0] for name in _loaded("import vicinal, vicinal.cli")} - {"vicinal"}
    assert loaded <= sys.stdlib_module_names


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_front_end_loads_no_kernel(name):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    before = f"import {name}" + (", torch.utils.flop_counter" if name == "torch" else ", mlx.core, mlx.nn")
    loaded = _loaded(f"import vicinal.{name}", before)
    kernels = tuple(f"vicinal.{kernel}" for kernel in KERNELS)
    assert not {module for module in loaded if module.startswith(kernels)}
    assert "triton" not in {module.split(".")[0] for module in loaded}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_every_backend_stands_in_the_table_once(name):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    table = import_module(f"vicinal.{name}.backends").BACKENDS
    folder = PACKAGE / name / "backends"
    modules = [
        import_module(dotted(path)) for path in sources(folder) if path.stem not in ("__init__", "base")
    ]
    made = [
        x for module in modules for key, x in vars(module).items() if key.isupper() and hasattr(x, "refusal")
    ]
    assert sorted(backend.name for backend in table) == sorted(backend.name for backend in made)
    assert {type(backend).__module__ for backend in table} == {module.__name__ for module in modules}
    assert len({backend.name for backend in table}) == len(table)


@pytest.mark.parametrize(("suffix", "limit"), LINES.items())
def test_files_are_short(suffix, limit):
    found = {path.relative_to(ROOT).as_posix(): path for path in tracked() if path.suffix == suffix}
    counts = {name: path.read_text(encoding="utf-8").count("\n") for name, path in found.items()}
    assert {name for name, lines in counts.items() if lines > limit} <= LONG_FILES.keys()


@pytest.mark.parametrize("path", sources(PACKAGE), ids=dotted)
def test_functions_are_short(path):
    for function in functions(path):
        if function.name in LONG_FUNCTIONS:
            continue
        where = f"{dotted(path)}.{function.name}"
        limit = KERNEL_LINES if function.is_kernel else FUNCTION_LINES
        assert function.lines <= limit, f"{where} has {function.lines} lines"
        assert function.depth <= DEPTH, f"{where} nests {function.depth} deep"
        # Older APIs fixed their own signatures.
        is_public = not (function.is_kernel or function.name.startswith("_") or COMPAT in path.parts)
        assert not is_public or function.parameters <= PARAMETERS, (
            f"{where} has {function.parameters} parameters"
        )


def test_exceptions_are_needed():
    names = {function.name for path in sources(PACKAGE) for function in functions(path)}
    assert names >= LONG_FUNCTIONS.keys()
    assert all((ROOT / name).exists() and reason for name, reason in LONG_FILES.items())


def _documented(module: str) -> set[str]:
    """Names under the heading of `module` in the reference."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    section = re.search(rf"^## `{re.escape(module)}`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section is not None, f"docs/reference.md has no heading {module}"
    headings = re.findall(r"^### (.+)$", section.group(1), re.MULTILINE)
    return {name for heading in headings for name in re.findall(r"`(\w+)`", heading)}


def _listed(path: Path) -> set[str]:
    """`__all__` of a package, read and not imported."""
    for node in parsed(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no __all__")


@pytest.mark.parametrize("module", ["vicinal", "vicinal.compat", "vicinal.torch", "vicinal.mlx"])
def test_public_names_are_documented(module):
    listed = _listed(PACKAGE.parent.joinpath(*module.split("."), "__init__.py"))
    assert listed == _documented(module)


def test_mlx_mirrors_torch():
    torch, mlx = (_listed(PACKAGE / name / "__init__.py") for name in ("torch", "mlx"))
    assert not torch - mlx
    assert mlx - torch == MLX_ONLY


@pytest.mark.parametrize("era", ["v014", "v015", "v017", "v020"])
def test_eras_have_the_same_names_but_for_what_counts_modules_of_pytorch(era):
    torch, mlx = (_listed(PACKAGE / name / COMPAT / f"{era}.py") for name in ("torch", "mlx"))
    assert mlx <= torch
    assert all(name == "get_flops" or name.endswith("_flop") for name in torch - mlx)


def test_version_is_one():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {vicinal.__version__}" in changelog


FORBIDDEN = {
    "an absolute path": r"(?<![\w.:/)\]}-])/(?:home|root|Users|work|opt|mnt|private)/\w",
    "a drive": r"\b[C-Z]:\\\\?\w",
    "an address of a person": r"\b[\w.]+@[\w-]+\.(?:com|org|net|io|de)\b",
    "unfinished work": r"\b(?:TODO|FIXME|XXX|HACK)\b",
    "a tracker": r"(?i)\b(?:issue|pull request|ticket)s? #?\d+",
    "who wrote it": r"(?i)\b(?:co-authored-by|generated (?:by|with)|language model|chat ?bot|copilot)\b",
}
TEXT = {".py", ".md", ".metal", ".toml", ".yml", ".yaml", ".json", ".txt", ".sh", ".cpp", ".h", ""}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_files_do_not_name(what):
    own = Path(__file__)
    for path in tracked():
        if path == own or path.suffix not in TEXT:
            continue
        found = re.search(FORBIDDEN[what], path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)} names {what}: {found and found.group()!r}"


def test_paths_work_on_every_system():
    names = [path.relative_to(ROOT).as_posix() for path in tracked()]
    assert len({name.lower() for name in names}) == len(names)
    assert not [path for path in tracked() if path.is_symlink()]
    assert not [name for name in names if re.search(r'[<>:"\\|?*\s]', name) or len(name) > 120]
    reserved = {"con", "prn", "aux", "nul"}
    assert not [name for name in names if {part.split(".")[0].lower() for part in name.split("/")} & reserved]


def test_module_names_say_something():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "core", "tools"}
    named = {part for path in sources(PACKAGE) for part in dotted(path).split(".")}
    assert not named & vague
    assert is_module("vicinal.window")
