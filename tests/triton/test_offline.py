"""Kernels compiled for GPUs that need not be here: spills, warnings, shared memory, matrix instructions."""

import json
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
RECORDED = "3.6.0"
needs_recorded = pytest.mark.skipif(
    find_spec("triton") is None or version("triton") != RECORDED, reason=f"recorded with Triton {RECORDED}"
)
# Shared memory of a program, in bytes; boxes are the same for sm_80 and sm_89, so the smaller one counts.
SHARED = {
    "cuda:80": 101376,
    "cuda:89": 101376,
    "cuda:90": 232448,
    "cuda:100": 232448,
    "hip:gfx942": 65536,
}
# Bytes a thread spills, at most, by the ends of kernel names; no other kernel spills more than SPILL.
SPILL = 48
SPILLS = {
    "options-float32-64/attend": 448,
    "far-float32-64/attend": 448,
    "options-float32-128/attend": 704,
    "bfloat16-64/key_gradient": 256,
    "bfloat16-64/query_gradient": 96,
    "bfloat16-64/ring.query_gradient": 96,
    "256/key_gradient": 112,
    "128/key_gradient": 112,
}
# These have no products.
PLAIN = ("delta_of", "tally")
# Every run of the suite compiles all kernels for one GPU. For others it compiles those that are not recorded,
# and a sample of every option, wide heads and rings.
ALL = "cuda:90"
OTHERS = tuple(target for target in SHARED if target != ALL)
SAMPLE = (
    "options-bfloat16-64/",
    "single-bfloat16-128/",
    "single-bfloat16-32/ring.",
    "sampled_in_part-bfloat16-32/ring.",
)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("kind", ["short", "float32"])
def test_kernels_fit(kind):
    found = checked(ALL, kind, flags=("--digests",))
    all_fit(ALL, kind, found)
    for target in OTHERS:
        if target.startswith("cuda"):
            all_fit(target, kind, again(target, kind, found))


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("kind", ["short", "float32"])
def test_kernels_fit_amd(kind):
    all_fit("hip:gfx942", kind, checked("hip:gfx942", kind, flags=("--recorded",)))


def again(target, kind, found):
    """What kernels use on another NVIDIA GPU than those `found`: those that are not recorded are compiled."""
    from tests.triton import recorded

    known = {(row["name"], row["digest"]): row for row in recorded.rows() if row["target"] == target}
    same = {kernel["name"]: known.get((kernel["name"], kernel["digest"])) for kernel in found}
    rows = [row for row in same.values() if row]
    for row in rows:
        fits(target, kind, row)
    others = [name for name, row in same.items() if not row]
    # Parts of names are what it takes.
    made = checked(target, kind, others) if others else []
    return rows + [kernel for kernel in made if kernel["name"] in others]


@pytest.mark.offline
@needs_recorded
@pytest.mark.parametrize("kind", ["short", "float32"])
@pytest.mark.parametrize("target", OTHERS)
def test_kernels_fit_and_are_recorded(target, kind):
    found = checked(target, kind, flags=("--digests",))
    all_fit(target, kind, found)
    assert_recorded(target, found)


@pytest.mark.slow
@needs_recorded
@pytest.mark.parametrize("target", OTHERS)
def test_a_sample_of_kernels_is_what_is_recorded(target):
    found = checked(target, "short", SAMPLE, flags=("--digests",))
    assert len(found) > 15
    assert_recorded(target, found)


def all_fit(target, kind, found):
    names = [kernel["name"] for kernel in found]
    assert len(names) > 80
    has_rings = kind == "short" and target.startswith("cuda")
    assert sum("/ring." in name for name in names) == (44 if has_rings else 0)


def assert_recorded(target, found):
    """After a kernel is changed, `make record-offline` writes what it uses."""
    from tests.triton import recorded

    rows = {row["name"]: row for row in recorded.rows() if row["target"] == target}
    for kernel in found:
        measured = kernel | {"target": target}
        assert rows.get(kernel["name"]) == {key: measured[key] for key in recorded.COLUMNS}


def checked(target, kind, names=(), spills=True, flags=()):
    """What kernels use that were compiled, each within what a GPU has; `spills` is about Triton 3.6."""
    command = [sys.executable, "-m", "tests.triton.offline", target, kind, *names, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    for kernel in measured:
        fits(target, kind, kernel, spills)
    return measured


def fits(target, kind, kernel, spills=True):
    name = kernel["name"]
    limit = max([SPILL, *(size for end, size in SPILLS.items() if name.endswith(end))])
    assert kernel["spilled"] <= limit or not spills, kernel
    assert kernel["shared"] <= SHARED[target], kernel
    # ptxas numbers its warnings so where it serializes products.
    assert not kernel.get("warnings"), kernel
    # Exact float32 products run outside the matrix units.
    if (kind == "short" or "tf32" in name) and not name.endswith(PLAIN):
        assert kernel["matrix"] > 0, kernel
