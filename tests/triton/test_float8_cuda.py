"""Queries and keys in float8 on a GPU of compute capability 9.0, against the float64 oracle."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from tests.triton.test_hopper_cuda import array, compare, exact, operands, problem
from vicinal.torch import na2d
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.hopper import HOPPER

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("blank_is_nan")]


@pytest.mark.parametrize("scale", [0.02, -0.02])
@pytest.mark.parametrize(
    "case",
    [
        problem((300,), 65, dim=128, batch=2, heads=4, kv_heads=2),
        problem((31, 37), (13, 16), dim=64, value_dim=128),
        problem((24, 41), (8, 11), stride=(3, 5), causal=(True, False), dtype="float16", dim=32),
        problem((7, 12, 11), (3, 6, 5), dim=128),
        problem((40,), 20, dim=256, value_dim=64),
        problem((90,), 33, dim=96, value_dim=80),
    ],
    ids=str,
)
def test_float8_scores_match_the_oracle(case, scale):
    # The oracle sees the rounded operands; products of float8 are summed with some 14 bits.
    case = replace(case, key_dtype="float8_e4m3fn", gradients=False)
    given = operands(case)
    rounded = (3 * given.query).to(torch.float8_e4m3fn), (3 * given.key).to(torch.float8_e4m3fn)
    given = Operands(*rounded, given.value)
    out, lse = HOPPER.attend(case, given, scale)
    answer = exact(case, given, scale)
    assert out.dtype == given.value.dtype
    compare("out", out, answer.out, case.dtype)
    assert np.abs(array(lse) - answer.lse).max() < 1e-3 * max(1, np.abs(answer.lse).max())


def test_float8_is_captured_and_compiles_to_one_operator():
    torch._dynamo.reset()
    make = lambda: torch.randn(1, 40, 36, 2, 64, device="cuda")  # noqa: E731
    query, key = (make().to(torch.float8_e4m3fn) for _ in range(2))
    value, graphs = make().bfloat16(), []
    attend = partial(na2d, kernel_size=(20, 18), return_lse=True)

    def keep(graph, _):
        graphs.append([n.target for n in graph.graph.nodes if n.op == "call_function"])
        return make_boxed_func(graph.forward)

    expected = attend(query, key, value)
    compiled = torch.compile(attend, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    found = compiled(query, key, value)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert [str(x) for x in graphs[0] if "vicinal" in str(x)] == ["vicinal.attend.default"]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend(query, key, value)
    query.copy_(make().to(torch.float8_e4m3fn))
    graph.replay()
    wanted = attend(query, key, value)
    assert all(torch.equal(*pair) for pair in zip(captured, wanted, strict=True))
