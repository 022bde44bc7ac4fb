"""Small kernels that break one rule each, and what the emulator says about them."""

import re

import torch

from tests.triton import emulator
from tests.triton.emulator.operations import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

with emulator.stand_ins():
    from triton.experimental.gluon import language as gl


def barrier(count=1):
    found = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout()).index(0)
    mbarrier.init(found, count=count)
    return found


def room(dtype=gl.float16, shape=(1, 64, 64)):
    return gl.allocate_shared_memory(dtype, shape, None).index(0)


def box(x):
    return tma.make_tensor_descriptor(x, [64, 64], [64, 1], [64, 64], None)


def nothing(*_):
    pass


def two(first, second, *arguments):
    """Two partitions with the same arguments."""
    gl.warp_specialize([(first, arguments), (second, arguments)], [1], [24])


def zeros():
    return gl.full([64, 64], 0.0, gl.float16)


def arrives_twice(x):
    bar = barrier(2)
    mbarrier.arrive(bar, count=3)


def made_again(x):
    bar = barrier()
    mbarrier.init(bar, count=1)


def ended_in_use(x):
    bar = barrier(2)
    mbarrier.arrive(bar, count=1)
    mbarrier.invalidate(bar)


def used_after_its_end(x):
    bar = barrier()
    mbarrier.invalidate(bar)
    mbarrier.arrive(bar, count=1)


def phase_left_out(x):
    bar = barrier()
    for _ in range(2):
        mbarrier.arrive(bar, count=1)
    mbarrier.wait(bar, 1)
    mbarrier.arrive(bar, count=1)
    mbarrier.wait(bar, 1)


def end_missed(x):
    def waits(bar):
        mbarrier.wait(bar, 0)

    def hurries(bar):
        mbarrier.arrive(bar, count=1)
        mbarrier.arrive(bar, count=1)

    two(waits, hurries, barrier())


def nobody_arrives(x):
    def waits(bar):
        mbarrier.wait(bar, 0)

    two(waits, nothing, barrier())


def never_written(x):
    room().load()


def unordered(x):
    def reads(buffer):
        buffer.load()

    def writes(buffer):
        buffer.store(zeros())

    buffer = room()
    buffer.store(zeros())
    two(reads, writes, buffer)


def ordered(x):
    """Breaks none: a write, an arrival, a wait, a read."""

    def reads(buffer, bar):
        mbarrier.wait(bar, 0)
        buffer.load()

    def writes(buffer, bar):
        buffer.store(zeros())
        mbarrier.arrive(bar, count=1)

    two(reads, writes, room(), barrier())


def early_read(x):
    buffer, bar = room(), barrier()
    mbarrier.expect(bar, 8192)
    tma.async_copy_global_to_shared(box(x), [0, 0], bar, buffer)
    buffer.load()


def multiplied_without_a_fence(x):
    buffer = room()
    buffer.store(zeros())
    acc = gl.full([64, 64], 0.0, gl.float32)
    warpgroup_mma_wait(0, (warpgroup_mma(buffer, buffer, acc, is_async=True),))


def overwritten_without_a_fence(x):
    buffer, bar = room(), barrier()
    for phase in range(2):
        mbarrier.expect(bar, 8192)
        tma.async_copy_global_to_shared(box(x), [0, 0], bar, buffer)
        mbarrier.wait(bar, phase)
        buffer.load()


def overwritten_while_multiplied(x):
    buffer = room()
    buffer.store(zeros())
    fence_async_shared()
    flying = warpgroup_mma(buffer, buffer, gl.full([64, 64], 0.0, gl.float32), is_async=True)
    buffer.store(zeros())
    warpgroup_mma_wait(0, (flying,))


def product_used_early(x):
    buffer = room()
    buffer.store(zeros())
    fence_async_shared()
    acc = gl.full([64, 64], 0.0, gl.float32)
    first = warpgroup_mma(buffer, buffer, acc, is_async=True)
    second = warpgroup_mma(buffer, buffer, acc, is_async=True)
    first, second = warpgroup_mma_wait(1, (first, second))
    gl.where(first > 0.0, first, second)


def product_taken_by_another(x):
    """Breaks none: a product adds to one under way."""
    buffer = room()
    buffer.store(zeros())
    fence_async_shared()
    acc = gl.full([64, 64], 0.0, gl.float32)
    for _ in range(3):
        acc = warpgroup_mma_wait(1, (warpgroup_mma(buffer, buffer, acc, is_async=True),))
    assert not warpgroup_mma_wait(0, (acc,)).held.any()


def overwritten_while_stored(x):
    buffer = room()
    buffer.store(zeros())
    fence_async_shared()
    tma.async_copy_shared_to_global(box(x), [0, 0], buffer)
    buffer.store(zeros())
    tma.store_wait(0)


def barrier_unused(x):
    barrier()
    two(nothing, nothing, x)


def outside(x):
    gl.load(x + 64 * 64)


def misaligned(x):
    box(x + 4)


def two_results(x):
    gl.store(x, gl.to_tensor(1.0) + gl.program_id(0))


RULES = (
    (arrives_twice, "arrives 3 times"),
    (made_again, "without having ended it"),
    (ended_in_use, "which is in use"),
    (used_after_its_end, "which is no barrier"),
    (phase_left_out, "never did for the one before"),
    (end_missed, "never did for the one before|misses the end of phase 0|deadlock"),
    (nobody_arrives, r"deadlock:(.|\n)*partition 0 \(waits\) waits for phase 0 of bar.*0 of 1 arrivals"),
    (never_written, "which nothing has written"),
    (unordered, "race on buffer"),
    (ordered, ""),
    (early_read, "race on"),
    (multiplied_without_a_fence, "no fence"),
    (overwritten_without_a_fence, "no fence"),
    (overwritten_while_multiplied, "race on"),
    (product_used_early, "product_used_early takes the product of .* may be under way"),
    (product_taken_by_another, ""),
    (overwritten_while_stored, "race on"),
    (barrier_unused, "no partition uses"),
    (outside, "outside of a tensor"),
    (misaligned, "multiples of 16 bytes"),
    (two_results, "hold other results"),
)


def said(kernel, seed):
    """What is wrong with a kernel, in one schedule."""
    try:
        with emulator.schedule(seed):
            emulator.launch(kernel, torch.zeros(64 * 64, dtype=torch.float16), grid=(2,))
    except emulator.Fault as fault:
        return str(fault)
    return ""


def main():
    for kernel, message in RULES:
        found = [said(kernel, seed) for seed in range(8)]
        assert any(found) == (message != ""), kernel.__name__
        # Orders in which nothing goes wrong are those of `end_missed` alone.
        assert all(found) or kernel is end_missed or not message, kernel.__name__
        assert all(re.search(message, one) for one in found if one), (kernel.__name__, found)


if __name__ == "__main__":
    main()
