"""The Hopper kernels on a CPU, in processes of their own: modules of the emulator stand in for Triton's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]


def run(*arguments, module="interpreted_hopper"):
    command = [sys.executable, "-W", "ignore", "-m", f"tests.triton.{module}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(3))
def test_kernels_match_the_oracle_in_any_order(shard):
    run("1", str(shard), "3")


def test_the_emulator_knows_the_rules():
    run(module="emulated_rules")


@pytest.mark.slow
def test_random_problems_match_the_oracle_in_any_order():
    run("any", "5", "0")


@pytest.mark.slow
def test_kept_slopes():
    run("kept")


@pytest.mark.slow
def test_random_problems_with_kept_slopes():
    run("any_kept", "8", "0")


def test_extreme_orders():
    run("orders")


def test_gradients_one_by_one():
    run("needs")


@pytest.mark.slow
def test_planted_faults_are_found():
    run(module="planted_faults")
