"""The program for a Mac runs, here in the checker, and its report has every row."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("mlx.core")

from tests.metal import checking
from tests.metal.test_documents import Anywhere
from tests.metal.test_mlx import opened
from vicinal.catalog import named
from vicinal.mlx import ops as mlx_ops
from vicinal.torch import backends, ops

ROOT = Path(__file__).parents[2]


@pytest.fixture
def selftest(monkeypatch):
    spec = importlib.util.spec_from_file_location("mac_selftest", ROOT / "tools" / "mac_selftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TABLE", {"small": ((6, 5), 3, True)})
    monkeypatch.setattr(module, "DOCUMENTS", {"documents": (2, (9,), 3)})
    monkeypatch.setattr(module, "SMALL", [named("odd_2d"), named("float64")])
    monkeypatch.setattr(backends, "BACKENDS", (Anywhere("metal", 8.0), Anywhere("metal-plain", 0.0)))
    monkeypatch.setattr(mlx_ops, "device", lambda: "metal")
    caches = (ops._chosen, ops._together, mlx_ops._found)
    for cache in caches:
        cache.cache_clear()
    yield module
    for cache in caches:
        cache.cache_clear()


def test_every_row_and_check(selftest):
    with checking.opened(), opened():
        said = selftest.checks()
        found = selftest.timings(list(selftest.ours()))
    assert set(said.values()) == {"ok"}
    assert list(said) == [
        f"{who} odd_2d"
        for who in ("PyTorch metal-tiles", "PyTorch metal-plain", "MLX metal", "MLX metal-plain")
    ]
    every = {"PyTorch metal", "PyTorch metal-plain", "MLX metal", "MLX metal-plain"}
    for row in ("small forward", "small training"):
        assert found[row].keys() == every
    assert found["documents training"].keys() >= {"PyTorch metal", "PyTorch metal-plain"}
    assert all(isinstance(number, float) for row in found.values() for number in row.values())


def test_a_failure_is_reported(selftest, monkeypatch):
    def wrong(*_):
        raise AssertionError("out: error 1 is over 0.1")

    monkeypatch.setattr(checking, "check", wrong)
    with checking.opened(), opened():
        said = selftest.checks()
    assert said["PyTorch metal-tiles odd_2d"] == "AssertionError: out: error 1 is over 0.1"
    assert said["MLX metal odd_2d"] == "ok"
