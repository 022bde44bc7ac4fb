"""Builds in a cache that processes share."""

import os
from pathlib import Path

from mslcpu import build


def test_no_build_writes_what_another_compiles(monkeypatch, tmp_path):
    """One is at its compiler while another builds the same library; neither leaves more than the result."""
    build.native()
    monkeypatch.setenv("MSLCPU_CACHE", str(tmp_path))
    run, text = build.run, '#include "metal.h"\n'

    def interrupted(command, *rest, **environment):
        source = Path(command[command.index("-c") + 1])
        os.utime(source, (0, 0))
        monkeypatch.setattr(build, "run", run)
        build.library(text, hooks=False, fast_math=False)
        assert source.stat().st_mtime == 0
        return run(command, *rest, **environment)

    monkeypatch.setattr(build, "run", interrupted)
    built = build.library(text, hooks=False, fast_math=False)
    assert list(tmp_path.iterdir()) == [built]
