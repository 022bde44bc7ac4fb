"""A control for racecheck: a kernel of two partitions, in Gluon, that share nothing.

Triton starts partitions through shared memory: warps of the first write which function the others run, and
its arguments, between barriers of all warps. Arguments of the kernel, and constants, do not go that way.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

WIDE = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
NARROW = gl.constexpr(gl.BlockedLayout([1], [32], [1], [0]))


@gluon.jit
def _count(out, loaded, first: gl.constexpr, size: gl.constexpr, layout: gl.constexpr):
    at = loaded + first + gl.arange(0, size, layout=layout)
    gl.store(out + at, at)


@gluon.jit
def count(out):
    loaded = gl.load(out)
    gl.warp_specialize(
        [(_count, (out, loaded, 0, 128, WIDE)), (_count, (out, loaded, 128, 32, NARROW))], [1], [24]
    )


def main():
    out = torch.zeros(160, dtype=torch.int32, device="cuda")
    count[(1,)](out, num_warps=4)
    assert torch.equal(out.cpu(), torch.arange(160, dtype=torch.int32)), "partitions computed something else"
