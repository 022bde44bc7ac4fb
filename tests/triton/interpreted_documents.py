"""Documents in one launch against the oracle, in Triton's interpreter: needs TRITON_INTERPRET=1."""

import sys
from dataclasses import replace
from itertools import product
from unittest.mock import patch

import hypothesis
from hypothesis import strategies as st

from tests.documents import CASES, EXTRA, cases
from tests.torch.documents import Packed, Padded, check, check_bits
from tests.triton import interpreting
from vicinal.torch import known
from vicinal.torch.backends.triton import TRITON, Triton

FORMS = {"packed": Packed, "padded": Padded}
# Their tiles are those of every document alone.
SAME = ("line", "clipped", "neighbors")


def on_triton(form, found, seed=0):
    """`check`, and that it was documents that the backend was called for, or one shape."""
    prepare, problems = Triton.prepare, []

    def recorded(self, problem, *rest):
        problems.append(problem)
        return prepare(self, problem, *rest)

    with (
        patch.object(Triton, "refusal", lambda self, problem: None),
        patch.object(Triton, "prepare", recorded),
        patch.object(known, "_known", {}),
    ):
        check(FORMS[form], found, seed, "triton", rounded=found.dtype != "float32")
    shapes = {shape for shape in found.shapes if 0 not in shape}
    assert len(problems) == (len(shapes) > 0)
    assert all((problem.documents is not None) == (len(shapes) > 1) for problem in problems)


def check_same(form, found):
    with patch.object(Triton, "refusal", lambda self, problem: None), patch.object(known, "_known", {}):
        check_bits(FORMS[form], replace(found, dtype="float32"), "triton")


def check_any(count):
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(
        st.sampled_from(sorted(FORMS)), cases(("float32", "float16"), (40, 9, 5)), st.integers(0, 99)
    )
    def test(form, found, seed):
        hypothesis.note(f"{form} {found}")
        on_triton(form, found, seed)

    test()


if __name__ == "__main__":
    interpreting.start()
    assert TRITON.name == "triton"
    if sys.argv[1] == "any":
        check_any(int(sys.argv[2]))
    elif sys.argv[1] == "same":
        for name, form in product(SAME, FORMS):
            print(name, form, flush=True)
            check_same(form, CASES[name])
    else:
        for name, form in product(sys.argv[1:], FORMS):
            found = {**CASES, **EXTRA}[name]
            # The interpreter multiplies no bfloat16, and Triton has no float64 products.
            dtype = "float16" if found.dtype == "bfloat16" else "float32"
            print(name, form, flush=True)
            on_triton(form, replace(found, dtype=dtype))
