"""The examples of README and documentation run, page by page, and the commands they name exist."""

import importlib
import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from vicinal import Axis
from vicinal.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a page."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_python_runs(page):
    program = "\n".join(blocks(page, "python"))
    needs = [
        name for name in ("torch", "mlx") if re.search(rf"^import (?:vicinal\.)?{name}\b", program, re.M)
    ]
    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    exec(compile(program, str(page), "exec"), {"__name__": page.stem})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"^vicinal (\w+)|`vicinal (\w+)", text, re.M))
    assert {command for pair in named for command in pair if command} <= COMMANDS.keys()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert {
        target
        for pair in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.M)
        for target in pair
        if target
    } <= targets


@pytest.mark.parametrize("module", ["vicinal", "vicinal.torch", "vicinal.mlx"])
def test_signatures_are_those_of_the_code(module):
    if find_spec(module.rpartition(".")[2]) is None:
        pytest.skip(f"needs {module.rpartition('.')[2]}")
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    section = re.search(rf"^## `{module}`$(.*?)(?=^## |\Z)", text, re.M | re.S)[1]
    # A definition is the first thing below its heading; that of layers leaves out their names.
    shown = re.findall(r"^### `(\w+)`.*\n\n`\w*(\([^`]*\))", section, re.M)
    assert shown
    for name, arguments in shown:
        signature = inspect.signature(getattr(importlib.import_module(module), name))
        plain = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
        wanted = str(signature.replace(parameters=plain, return_annotation=signature.empty))
        assert " ".join(arguments.split()).replace('"', "'") == wanted, name


def numbers(text: str) -> list[int]:
    """`1-3 7` as 1, 2, 3, 7; commas separate too."""
    ends = [part.split("-") for part in text.replace(",", " ").split()]
    return [
        number for first, *last in ends for number in range(int(first), int(last[0] if last else first) + 1)
    ]


def test_examples_of_windows_are_those_of_the_code():
    text = (ROOT / "docs" / "semantics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \| (yes|no) \| (.+) \|$", text, re.M)
    assert len(rows) == 10
    for window, causal, windows in rows:
        length, size, stride, dilation = numbers(window)
        axis = Axis(length, size, stride, dilation, causal == "yes")
        shown = {}
        for entry in windows.split("; "):
            queries, _, keys = entry.partition(": ")
            shown |= dict.fromkeys(numbers(queries), numbers(keys))
        assert shown == {query: list(axis.keys(query)) for query in range(length)}, window


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
