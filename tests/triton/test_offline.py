"""Kernels compiled for GPUs that need not be here: spills, warnings, shared memory, matrix instructions."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
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
# Every run of the suite compiles all kernels for one GPU, and for others a sample: every option, wide heads,
# rings.
ALL = "cuda:90"
SAMPLE = (
    "options-bfloat16-64/",
    "single-bfloat16-128/",
    "single-bfloat16-32/ring.",
    "sampled_in_part-bfloat16-32/ring.",
)


MARKED = [pytest.param(x, marks=pytest.mark.slow if x == ALL else pytest.mark.offline) for x in SHARED]


@needs_triton
@pytest.mark.parametrize("kind", ["short", "float32"])
@pytest.mark.parametrize("target", MARKED)
def test_kernels_fit(target, kind):
    names = checked(target, kind)
    assert len(names) > 80
    has_rings = kind == "short" and target.startswith("cuda")
    assert sum("/ring." in name for name in names) == (44 if has_rings else 0)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("target", [target for target in SHARED if target != ALL])
def test_a_sample_of_kernels_fits(target):
    assert len(checked(target, "short", SAMPLE)) > 15


def checked(target, kind, names=(), spills=True):
    """Names of the kernels compiled, each within what a GPU has; `spills` is about Triton 3.6."""
    command = [sys.executable, "-m", "tests.triton.offline", target, kind, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    for kernel in measured:
        name = kernel["name"]
        limit = max([SPILL, *(size for end, size in SPILLS.items() if name.endswith(end))])
        assert kernel["spilled"] <= limit or not spills, kernel
        assert kernel["shared"] <= SHARED[target], kernel
        # ptxas numbers its warnings so where it serializes products.
        assert not kernel.get("warnings"), kernel
        # Exact float32 products run outside the matrix units.
        if (kind == "short" or "tf32" in name) and not name.endswith(PLAIN):
            assert kernel["matrix"] > 0, kernel
    return [kernel["name"] for kernel in measured]
