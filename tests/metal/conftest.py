"""On Linux the kernels run in the checker of tools/mslcpu, on a Mac on its GPU; the tests are the same."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "mslcpu"))
torch = pytest.importorskip("torch")
build = pytest.importorskip("mslcpu.build")

from tests.metal import checking  # noqa: E402


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    missing = not checking.HAS_METAL and shutil.which(build.CLANG) is None
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.metal)
            if missing:
                item.add_marker(
                    pytest.mark.skip(reason=f"no {build.CLANG}; tools/mslcpu/setup.sh installs it")
                )


@pytest.fixture
def session():
    """Kernels run, outputs start as NaN, and nothing is found; the checker's session, or None on a Mac."""
    torch.use_deterministic_algorithms(True)
    with checking.opened() as session:
        yield session
    torch.use_deterministic_algorithms(False)
    if session is not None:
        assert not session.findings, "\n".join(session.findings[:10])
