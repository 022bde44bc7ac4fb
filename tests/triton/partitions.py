"""A control for racecheck: a kernel of partitions, in Gluon, that is right, or races where it is asked to.

Triton starts partitions through shared memory: warps of the first write which function the others run, and
its arguments, between barriers of all warps. Here they then hand over words, and a warp tells which come
next, as the kernels of `hopper` do.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

WIDE = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
NARROW = gl.constexpr(gl.BlockedLayout([1], [32], [1], [0]))
PLAIN = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
WORDS = gl.constexpr(128)
STAGES = gl.constexpr(2)
ROUNDS = 6


@gluon.jit
def _number(numbers, told, heard, rounds):
    for i in range(rounds):
        stage = i % STAGES
        mbarrier.wait(heard.index(stage), (i // STAGES & 1) ^ 1)
        numbers.index(stage).store(gl.full([1], i, gl.int32, layout=NARROW))
        mbarrier.arrive(told.index(stage), count=1)


@gluon.jit
def _write(source, held, full, empty, numbers, told, heard, rounds):
    at = gl.arange(0, WORDS, layout=WIDE)
    for i in range(rounds):
        stage = i % STAGES
        mbarrier.wait(told.index(stage), i // STAGES & 1)
        number = gl.max(numbers.index(stage).load(WIDE), 0)
        mbarrier.arrive(heard.index(stage), count=1)
        words = gl.load(source + number * WORDS + at)
        mbarrier.wait(empty.index(stage), (i // STAGES & 1) ^ 1)
        held.index(stage).store(words)
        mbarrier.arrive(full.index(stage), count=1)


@gluon.jit
def _read(out, held, full, empty, rounds, EARLY: gl.constexpr):
    at = gl.arange(0, WORDS, layout=NARROW)
    for i in range(rounds):
        stage = i % STAGES
        mbarrier.wait(full.index(stage), i // STAGES & 1)
        if EARLY:
            mbarrier.arrive(empty.index(stage), count=1)
        words = held.index(stage).load(NARROW)
        if not EARLY:
            mbarrier.arrive(empty.index(stage), count=1)
        gl.store(out + i * WORDS + at, words)


@gluon.jit
def _barriers():
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(bars.index(i), count=1)
    return bars


@gluon.jit
def copy(source, out, rounds, EARLY: gl.constexpr):
    held = gl.allocate_shared_memory(gl.int32, [STAGES, WORDS], PLAIN)
    numbers = gl.allocate_shared_memory(gl.int32, [STAGES, 1], PLAIN)
    full, empty, told, heard = _barriers(), _barriers(), _barriers(), _barriers()
    gl.warp_specialize(
        [
            (_write, (source, held, full, empty, numbers, told, heard, rounds)),
            (_read, (out, held, full, empty, rounds, EARLY)),
            (_number, (numbers, told, heard, rounds)),
        ],
        [1, 1],
        [24, 24],
    )


def main(early=False):
    """With `early` words are given free before they are read: a race."""
    source = torch.arange(ROUNDS * WORDS.value, dtype=torch.int32, device="cuda")
    out = torch.zeros_like(source)
    copy[(1,)](source, out, ROUNDS, early, num_warps=4)
    torch.cuda.synchronize()
    assert early or torch.equal(out, source), "partitions handed over something else"
