"""Every kernel compiled for GPUs that need not be here: spills, shared memory, matrix instructions."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Shared memory of a program, in bytes; boxes are the same for sm_80 and sm_89, so the smaller one counts.
SHARED = {
    "cuda:80": 101376,
    "cuda:89": 101376,
    "cuda:90": 232448,
    "cuda:100": 232448,
    "hip:gfx942": 65536,
}
# Bytes a thread spills, by the ends of kernel names; no other kernel spills more than SPILL.
SPILL = 64
SPILLS = {
    "float32-64/attend": 512,
    "float32-128/attend": 768,
    "64/key_gradient": 256,
    "64/query_gradient": 128,
    "128/key_gradient": 128,
    "256/key_gradient": 128,
    "options-bfloat16-64/attend": 640,
    "score_gradient": 128,
    "float32-128/extra_gradient": 128,
}
# These have no products.
PLAIN = ("delta_of", "tally")


@pytest.mark.offline
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("kind", ["short", "float32"])
@pytest.mark.parametrize("target", SHARED)
def test_kernels_fit(target, kind):
    command = [sys.executable, "-m", "tests.triton.offline", target, kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(measured) > 80
    for kernel in measured:
        name = kernel["name"]
        limit = max([SPILL, *(size for end, size in SPILLS.items() if name.endswith(end))])
        assert kernel["spilled"] <= limit, kernel
        assert kernel["shared"] <= SHARED[target], kernel
        # Exact float32 products run outside the matrix units.
        if kind == "short" and not name.endswith(PLAIN):
            assert kernel["matrix"] > 0, kernel
