"""What Triton's descriptors were seen to do wrong, on a GPU with TMA: the kernels here stay clear of it.

Boxes of several panels that pass through registers lost rows; boxes of float32 that one warp copies ended in
an illegal instruction. With Triton 3.6 these small kernels show neither on an H200.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.nvidia.hopper", reason="Triton has no Gluon for Hopper")

from tests.triton import defects

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper GPU"
    ),
]


@pytest.mark.parametrize("box", defects.BOXES, ids=str)
@pytest.mark.parametrize("rank", [3, 5])
@pytest.mark.parametrize(
    "kernel", [defects.multiply, defects.write, defects.read], ids=["multiply", "write", "read"]
)
def test_boxes_keep_their_rows(kernel, rank, box):
    torch.manual_seed(0)
    assert defects.panels(kernel, box, rank) == 0.0


@pytest.mark.parametrize("rank", [2, 5])
def test_a_warp_copies_boxes_of_float32(rank):
    # A fault would end the process.
    command = [sys.executable, "-m", "tests.triton.defects", "floats", str(rank)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "error 0"), done.stderr[-2000:]
