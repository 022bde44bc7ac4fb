"""Documents of different shapes in one launch of the `cuda` backend."""

from dataclasses import replace
from importlib import import_module

import mlx.core as mx
import numpy as np
import pytest

import vicinal.mlx as na
from tests.documents import CASES, EXTRA
from tests.mlx import documents
from tests.mlx.test_cuda import SHARED, Handed, interpret, needs_torch, needs_triton, on_gpu
from vicinal.mlx.backends.cuda import Cuda

form = pytest.mark.parametrize("form", documents.FORMS)
TURNS = [(name, ("float32", "float16", "bfloat16")[place % 3]) for place, name in enumerate(EXTRA)]


@needs_triton
@form
def test_parameters_are_those_of_the_kernels(form, monkeypatch):
    """Of attention and its gradients; tables are the last inputs."""
    handed = Handed(monkeypatch, 90)
    monkeypatch.setattr(Cuda, "refusal", lambda self, problem: None)
    monkeypatch.setattr(import_module("vicinal.mlx.ops"), "device", lambda: "cuda")
    found = replace(CASES["everything"], dtype="float16")
    mx.eval(documents.run(documents.FORMS[form], found, documents.drawn(found, 0), "cuda"))
    # Of the bias there are two kernels; what is left is the row sums.
    assert len(handed.check(SHARED[90])) == len(handed.calls) == 7


@needs_triton
@needs_torch
@pytest.mark.slow
def test_kernels_match_the_oracle():
    interpret("documents", "line", "everything", "clipped", "volume", "planes")


@pytest.mark.cuda
@on_gpu
@form
@pytest.mark.parametrize(("name", "dtype"), TURNS)
def test_matches_the_oracle_on_every_document(form, name, dtype):
    documents.check(documents.FORMS[form], replace(EXTRA[name], dtype=dtype), backend="cuda")


@pytest.mark.cuda
@on_gpu
@form
def test_a_kernel_is_launched_once(form, monkeypatch):
    fused, launched = import_module("vicinal.mlx.fused"), []
    run = fused.run
    monkeypatch.setattr(
        fused, "run", lambda launch, *rest: launched.append(launch.kernel.__name__) or run(launch, *rest)
    )
    found = replace(CASES["everything"], dtype="float32")
    mx.eval(documents.run(documents.FORMS[form], found, documents.drawn(found, 0), "cuda"))
    assert sorted(launched) == [
        "attend",
        "delta_of",
        "extra_gradient",
        "key_gradient",
        "query_gradient",
        "score_gradient",
        "tally",
    ]


@pytest.mark.cuda
@on_gpu
def test_deterministic_and_compiled():
    layout = na.VarlenLayout([(30, 20), (17, 40), (9, 9)])
    x = mx.random.normal((layout.total_tokens, 4, 32)).astype(mx.bfloat16)
    attend = lambda x: na.neighborhood_attention_packed(x, x, x, layout, 5, backend="cuda")  # noqa: E731
    loss = lambda x: attend(x).astype(mx.float32).square().sum()  # noqa: E731
    wanted = mx.grad(loss)(x)
    for function in (mx.grad(loss), mx.compile(mx.grad(loss))):
        for _ in range(3):
            assert np.array_equal(*(np.array(y.astype(mx.float32)) for y in (function(x), wanted)))
