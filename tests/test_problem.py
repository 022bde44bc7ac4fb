"""Problems print as one line, and count their work."""

from dataclasses import replace

import pytest

from vicinal import Axis, Problem
from vicinal.catalog import CASES, MODELS, named
from vicinal.problem import Documents


def test_the_line():
    axes = (Axis(64, 7, 1, 2, False), Axis(64, 7, 1, 2, True))
    problem = Problem(
        axes, heads=8, kv_heads=2, dim=320, value_dim=320, dtype="float16", device="cuda", gradients=True
    )
    assert str(problem) == (
        "attend 2-D 64x64, window 7x7, dilation 2x2, causal ft, 8 heads over 2 kv, dim 320, float16, cuda, "
        "with gradients"
    )
    other = Problem((Axis(9, 3, 3, 1, False, 2),), batch=4, dim=8, value_dim=4, bias=True, extra=5, tf32=True)
    assert str(other) == (
        "attend 1-D 9, window 3, stride 3, output stride 2, batch 4, 1 head, dim 8 to 4, bias, "
        "5 additional tokens, float32 as tf32, cpu"
    )


def test_documents_are_in_the_line():
    documents = Documents(((9, 5), (0, 3)), None, True)
    problem = Problem((Axis(16, 3), Axis(8, 3)), batch=2, documents=documents)
    assert str(problem) == "attend 2-D 16x8, window 3x3, batch 2, 1 head, dim 32, packed, float32, cpu"
    framed = replace(problem, documents=documents._replace(frame=(9, 5)))
    assert ", padded to 9x5, " in str(framed)


def test_pairs_and_flops():
    problem = Problem((Axis(5, 3), Axis(4, 2, causal=True)), batch=2, heads=3, dim=8, value_dim=4, extra=1)
    assert problem.pairs == 15 * 7 + 20
    assert problem.flops == 2 * 2 * 3 * problem.pairs * 12
    assert replace(problem, operation="dot", extra=0).flops == 2 * 2 * 3 * 105 * 8
    assert replace(problem, operation="mix", extra=0).flops == 2 * 2 * 3 * 105 * 4


def test_catalog():
    assert len(MODELS) == 25
    assert len({case.name for case in CASES}) == len(CASES)
    assert named("naf_x16").problem.value_dim == 256
    with pytest.raises(ValueError, match="case 'nothing' is unknown; pass one of nat_tiny_s1"):
        named("nothing")
