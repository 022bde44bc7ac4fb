"""What loops of kernels carry, without a GPU or Triton.

Triton 3.6 tells by a first pass over the body of a loop what the loop changes, and takes a name for unchanged
that ends this pass as the value it has started as. So it does not carry `last` where `last = at` stands both
before the loop and in it: all steps see the first.
"""

import ast
from pathlib import Path

import pytest

import vicinal

KERNELS = sorted((Path(vicinal.__file__).parent / "triton").glob("*.py"))


def copies(statements):
    """Names that statements make equal to another name, with it."""
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
                yield from (
                    (target.id, node.value.id) for target in node.targets if isinstance(target, ast.Name)
                )


def dropped(source):
    """Names that a loop would have to carry and Triton does not."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for loop in ast.walk(function):
            if isinstance(loop, ast.For | ast.While):
                before = [one for one in function.body if one.lineno < loop.lineno]
                yield from set(copies(loop.body)) & set(copies(before))


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_no_loop_starts_with_two_names_of_one_value_and_makes_them_one_again(path):
    assert not set(dropped(path.read_text()))


def test_that_would_be_found():
    lines = (
        "def f(n):",
        "    at = n % 3",
        "    last = {}",
        "    for i in range(n):",
        "        last = at",
        "        at += 1",
    )
    source = "\n".join(lines)
    assert set(dropped(source.format("at"))) == {("last", "at")}
    assert not set(dropped(source.format("n % 3")))
