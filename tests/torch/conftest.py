"""Fixtures of several modules."""

import pytest

from tests.torch.test_blocked import prefer
from vicinal.torch.strips import direct, plan


@pytest.fixture
def tiled(monkeypatch):
    """Small problems take tiles too."""
    prefer(monkeypatch, None)
    plan.parts.cache_clear()
    yield
    for cached in (plan.parts, direct.faster):
        cached.cache_clear()
