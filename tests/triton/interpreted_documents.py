"""Documents in one launch against the oracle, in Triton's interpreter: needs TRITON_INTERPRET=1."""

import sys
from dataclasses import replace
from unittest.mock import patch

import hypothesis
import torch
from hypothesis import strategies as st

from tests.documents import CASES, case, cases
from tests.torch.documents import Packed, Padded, check
from vicinal.torch.backends.triton import TRITON, Triton

FORMS = {"packed": Packed, "padded": Padded}
EXTRA = {
    "planes": case(((9, 20), (17, 8), (30, 3)), (5, 3), dilation=(1, 1), heads=4, kv_heads=2, dim=20),
    "dilated": case(((14, 9), (15, 23), (31, 9)), (3, 2), (2, 1), (4, 3), (True, False), (2, 6), bias=True),
    "ragged": case((25, 40, 33), 3, dilation=8, output_stride=6, value_dim=5, extra=18),
    "long": case((100, 1, 333, 2), 31, fit="clip", heads=2, kv_heads=2, dim=16, value_dim=24),
    "uneven": case((70, 64, 129), 60, 7, is_causal=True, extra=3),
}


def on_triton(form, found, seed=0):
    """`check`, and that it was documents that the backend was called for, or one shape."""
    attend, problems = Triton.attend, []

    def recorded(self, problem, *rest):
        problems.append(problem)
        return attend(self, problem, *rest)

    with (
        patch.object(Triton, "refusal", lambda self, problem: None),
        patch.object(Triton, "attend", recorded),
    ):
        check(FORMS[form], found, seed, "triton", rounded=found.dtype != "float32")
    shapes = {shape for shape in found.shapes if 0 not in shape}
    assert len(problems) == (len(shapes) > 0)
    assert all((problem.documents is not None) == (len(shapes) > 1) for problem in problems)


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
    torch.set_num_threads(1)
    assert TRITON.name == "triton"
    if sys.argv[1] == "any":
        check_any(int(sys.argv[2]))
    for name in sys.argv[1:] if sys.argv[1] != "any" else ():
        found = {**CASES, **EXTRA}[name]
        # The interpreter multiplies no bfloat16, and Triton has no float64 products.
        dtype = "float16" if found.dtype == "bfloat16" else "float32"
        for form in FORMS:
            print(name, form, flush=True)
            on_triton(form, replace(found, dtype=dtype))
