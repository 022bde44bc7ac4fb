"""Fixtures of tests of the Hopper kernels."""

import pytest

from tests.triton import geometry


@pytest.fixture(scope="module")
def kernels():
    """The Gluon geometry, run by Python on numbers."""
    with geometry.gluon() as found:
        yield found
