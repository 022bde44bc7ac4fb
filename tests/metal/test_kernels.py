"""Tiled and plain Metal kernels against the oracle, without a finding of the checker."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.metal import checking
from tests.metal.strategies import geometries
from tests.torch import problems
from vicinal import Axis, Problem
from vicinal.catalog import SMALL, named
from vicinal.metal import source

pytestmark = [pytest.mark.filterwarnings("ignore:.*deterministic"), pytest.mark.usefixtures("session")]
RUNNABLE = [case for case in SMALL if case.problem.dtype in source.TYPES]


@pytest.mark.parametrize("case", RUNNABLE, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", checking.BACKENDS, ids=lambda backend: backend.name)
def test_catalog(backend, case):
    checking.check(backend, case.problem)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["everything", "odd_3d", "odd_1d"])
@pytest.mark.parametrize("backend", checking.BACKENDS, ids=lambda backend: backend.name)
def test_dtypes(backend, name, dtype):
    checking.check(backend, replace(named(name).problem, dtype=dtype))


DIMS = [
    (1, 3, "float32"),
    (10, 6, "float16"),
    (33, 16, "float16"),
    (64, 64, "float16"),
    (100, 36, "bfloat16"),
    (128, 40, "float32"),
    (256, 256, "float32"),
    (250, 256, "float16"),
]


@pytest.mark.parametrize(("dim", "value_dim", "dtype"), DIMS)
def test_head_dims(dim, value_dim, dtype):
    problem = Problem((Axis(19, 5),), heads=2, kv_heads=1, dim=dim, value_dim=value_dim, dtype=dtype)
    checking.check(checking.BACKENDS[0], problem)


# A session stays open over all examples: what it finds fails the test in the end.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=geometries(), seed=st.integers(0, 99), tiled=st.booleans())
def test_every_window(problem, seed, tiled):
    checking.check(checking.BACKENDS[not tiled], problem, seed)


def test_boxes_that_are_too_wide_run_plainly():
    problem = Problem((Axis(600, 590, output_stride=299), Axis(2, 1), Axis(1, 1)), dim=4, value_dim=4)
    checking.check(checking.BACKENDS[0], problem)


@pytest.mark.parametrize("name", ["odd_2d", "everything"])
def test_any_strides_and_offsets(name):
    problem = replace(named(name).problem, dim=8, value_dim=8)
    backend, scale = checking.BACKENDS[0], 0.3
    plain = checking.arrange(problem, problems.operands(problem))
    moved = type(plain)(*(None if x is None else _elsewhere(x) for x in plain))
    results = [backend.attend(problem, given, scale) for given in (plain, moved)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    cotangent = checking.cotangents(problem, 0)
    turned = (_elsewhere(cotangent[0]), _elsewhere(cotangent[1]))
    grads = [
        checking.attend_back(backend, problem, given, *results[0], tangent, scale)
        for given, tangent in ((plain, cotangent), (moved, turned))
    ]
    assert all(a is None or torch.equal(a, b) for a, b in zip(*grads, strict=True))


def _elsewhere(x):
    """`x`, one element further on in memory."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def test_only_what_is_needed():
    problem = named("everything").problem
    given = checking.arrange(problem, problems.operands(problem))
    out, lse = checking.BACKENDS[0].attend(problem, given, 0.2)
    for wanted in range(6):
        needs = tuple(place == wanted for place in range(6))
        grads = checking.BACKENDS[0].attend_back(
            problem, given, out, lse, None, torch.ones_like(lse), 0.2, needs
        )
        assert [x is not None for x in grads] == list(needs)
        assert grads[wanted].shape == given[wanted].shape
