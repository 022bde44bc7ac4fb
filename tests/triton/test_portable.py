"""The portable kernels in Triton's interpreter, in processes of their own: importing Triton chooses it."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from vicinal import Axis, Problem, catalog
from vicinal.problem import Documents
from vicinal.triton import support

ROOT = Path(__file__).parents[2]
# The interpreter multiplies no bfloat16, and the backend refuses float64.
DOCUMENTS = ("line", "everything", "clipped", "volume", "single tokens", "half", "dilated", "ragged")
NAMES = [case.name for case in catalog.SMALL if case.problem.dtype in ("float32", "float16")]

# The package holds the backend under the same name.
module = import_module("vicinal.torch.backends.triton")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
needs_gluon = pytest.mark.skipif(support.installed() != support.GLUON, reason="rings take Triton 3.6")


def interpret(module, *arguments):
    run(module, *arguments, TRITON_INTERPRET="1")


def run(module, *arguments, **variables):
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", f"tests.triton.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


ON_GPU = Problem((Axis(9, 3),), device="cuda")
LONG = Documents(((2**30,), (9,), (9,)), None, False)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (replace(ON_GPU, device="cpu"), "runs on cuda, not cpu"),
        (replace(ON_GPU, dtype="float64"), "has no float64"),
        (replace(ON_GPU, dim=257), "head dim 257 is over 256"),
        (replace(ON_GPU, value_dim=0), "head dim 0 is under 1"),
        (
            replace(ON_GPU, documents=LONG._replace(frame=(2**30,))),
            f"counts at most {2**31 - 1} tokens of documents and their padding",
        ),
        (
            replace(ON_GPU, documents=LONG._replace(shapes=((2**31,), (9,)))),
            f"counts at most {2**31 - 1} tokens of documents and their padding",
        ),
    ],
)
def test_refusals(problem, reason):
    assert module.TRITON.refusal(problem) == reason


@pytest.mark.parametrize(
    ("found", "reason"), [(None, "Triton is not installed"), ((3, 3), "Triton 3.3 is older than 3.4")]
)
def test_missing_triton_is_a_refusal(found, reason, monkeypatch):
    monkeypatch.setattr(support, "installed", lambda: found)
    assert module.TRITON.refusal(ON_GPU) == reason


def test_an_import_of_triton_that_fails_is_a_refusal():
    run("blocked")


@needs_triton
def test_compilers_get_the_options_they_take():
    from vicinal.triton.launch import taken

    given = {"num_warps": 4, "num_stages": 2, "hopper_stages": 3, "maxnreg": 128}
    plain = {"num_warps": 4, "num_stages": 2}
    assert taken(given, "cuda", 90) == plain | {"num_stages": 3, "maxnreg": 128}
    assert taken(given, "cuda", 80) == plain | {"maxnreg": 128}
    assert taken(given, "hip", "gfx942") == plain
    assert taken(plain, "cuda", 90) == plain


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
def test_gradients_of_one_result_and_of_some_operands():
    interpret("interpreted", "flows")


@needs_triton
@pytest.mark.slow
def test_operands_that_need_offsets_of_64_bits():
    interpret("interpreted", "far")


@needs_gluon
@pytest.mark.slow
@pytest.mark.parametrize("shard", range(5))
def test_sweeps_over_rings_match_the_oracle(shard):
    interpret("interpreted_ring", str(shard), "5")


@needs_gluon
@pytest.mark.slow
def test_sweeps_over_rings_match_the_oracle_for_any_options():
    interpret("interpreted_ring", "any", "12")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("names", [DOCUMENTS[first::4] for first in range(4)], ids=" ".join)
def test_documents_match_the_oracle(names):
    interpret("interpreted_documents", *names)


@needs_triton
@pytest.mark.slow
def test_documents_match_the_oracle_for_any_options():
    interpret("interpreted_documents", "any", "8")


@needs_triton
@pytest.mark.slow
def test_documents_have_the_bits_of_the_fixed_shape():
    interpret("interpreted_documents", "same")


@needs_triton
@pytest.mark.slow
def test_window_rule_matches_axis():
    interpret("interpreted_window")


@needs_triton
def test_repeated_launches_pass_what_triton_passes():
    run("launching")


@needs_triton
@pytest.mark.slow
def test_every_part_of_a_call_counts():
    interpret("interpreted_warm")


@needs_gluon
def test_repeated_calls_plan_nothing_and_pass_nothing_stale():
    run("repeating")
