"""What the Hopper backend refuses, and the boxes it chooses, without a GPU."""

import pytest

from vicinal import Axis, Problem
from vicinal.torch.backends.hopper import HOPPER


def problem(size=40, **options):
    options = {"dtype": "bfloat16", "device": "cuda", "dim": 64, "value_dim": 64} | options
    return Problem((Axis(128, size), Axis(96, size)), **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "cpu"}, "runs on cuda, not cpu"),
        ({"operation": "mix"}, "computes fused attention, not mix"),
        ({"dtype": "float32"}, "multiplies float16 or bfloat16, not float32"),
        ({"bias": True}, "has no relative position bias"),
        ({"extra": 3}, "has no additional tokens"),
        ({"dim": 12}, "head dim 12 is not a multiple of 8 up to 256"),
        ({"value_dim": 264}, "value dim 264 is not a multiple of 8 up to 256"),
    ],
)
def test_refusals_name_their_reason(options, reason):
    assert HOPPER.refusal(problem(**options)) == reason
