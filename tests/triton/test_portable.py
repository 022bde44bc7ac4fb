"""The portable kernels in Triton's interpreter, in processes of their own: importing Triton chooses it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from vicinal import catalog

ROOT = Path(__file__).parents[2]
# The interpreter multiplies no bfloat16, and the backend refuses float64.
NAMES = [case.name for case in catalog.SMALL if case.problem.dtype in ("float32", "float16")]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def interpret(module, *arguments):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", f"tests.triton.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("names", [NAMES[first::5] for first in range(5)], ids=" ".join)
def test_kernels_match_the_oracle(names):
    interpret("interpreted", *names)


@needs_triton
@pytest.mark.slow
def test_kernels_match_the_oracle_for_any_options():
    interpret("interpreted", "any", "12")


@needs_triton
@pytest.mark.slow
def test_window_rule_matches_axis():
    interpret("interpreted_window")
