"""The Hopper kernels with random delays at every barrier: a race would change what they compute; needs a GPU.

    python -m tests.triton.delays [MODE PROBLEM]

Without a mode, runs all modes of all problems and compares what they print, a digest of all results for each
repetition. `plain` is the kernels as they are; `delayed` sleeps before every wait and arrival, in every
partition; `torn` besides says that a box is there before it is, the fault that delays must show.
"""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import ModuleType

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from tests.triton import sanitize
from vicinal.torch.backends.hopper import HOPPER
from vicinal.triton import hopper_attention, hopper_copies

# Up to about two microseconds, by the clock, the multiprocessor and the warp.
SLEEP = gl.constexpr(
    "{ .reg .u32 a, b; mov.u32 a, %clock; mov.u32 b, %smid; mad.lo.u32 a, b, 2654435761, a;"
    "mov.u32 b, %warpid; mad.lo.u32 a, b, 40503, a; mul.lo.u32 a, a, 2246822519; shr.u32 a, a, 21;"
    "nanosleep.u32 a; mov.u32 $0, $1; }"
)
LONG_SLEEP = gl.constexpr("nanosleep.u32 50000; mov.u32 $0, $1;")


@gluon.jit
def _sleep():
    gl.inline_asm_elementwise(SLEEP, "=r,r", [gl.to_tensor(0)], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def wait(bar, phase, pred=True):
    _sleep()
    mbarrier.wait(bar, phase, pred)
    _sleep()


@gluon.jit
def arrive(bar, count: gl.constexpr = 1, pred=True):
    _sleep()
    mbarrier.arrive(bar, count=count, pred=pred)


@gluon.jit
def torn_fill(view, into, stage, plane, at, tile, head, SPEC: gl.constexpr):
    """As `hopper_copies.fill`, but the barrier is not the copy's, which starts later than readers can be."""
    bars = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    spare = bars.index(0)
    mbarrier.init(spare, count=1)
    mbarrier.arrive(into.full.index(stage), count=1)
    mbarrier.expect(spare, view.map.block_type.nbytes)
    gl.inline_asm_elementwise(LONG_SLEEP, "=r,r", [gl.to_tensor(0)], dtype=gl.int32, is_pure=False, pack=1)
    place = hopper_copies.place(view, plane, at, tile, head, SPEC)
    tma.async_copy_global_to_shared(view.map, place, spare, into.buffers.index(stage))
    mbarrier.wait(spare, 0)
    mbarrier.invalidate(spare)


def change(mode):
    """Put delays in the place of barriers."""
    slow: ModuleType = ModuleType("slow")
    slow.__dict__.update({name: getattr(mbarrier, name) for name in mbarrier.__all__})
    slow.__dict__.update(wait=wait, arrive=arrive)
    kernels = hopper_attention.__package__ + ".hopper_"
    for name, module in sys.modules.items():
        if name.startswith(kernels) and hasattr(module, "mbarrier"):
            module.mbarrier = slow
    if mode == "torn":
        hopper_copies.fill = torn_fill


MODES = ("plain", "delayed", "torn")
CASES = [(name, p) for name in ("hopper", "kept slopes") for p in sanitize.PROBLEMS[name]]
REPEATS = 8


def run(mode, name, problem):
    if mode != "plain":
        change(mode)
    sanitize.keep_few()
    for _ in range(REPEATS):
        digest = hashlib.sha256()
        with sanitize.keeps(name):
            found = sanitize.run(HOPPER, problem)
        for x in found:
            digest.update(x.view(torch.uint8).cpu().numpy().tobytes())
        print(digest.hexdigest(), flush=True)


def digests(task):
    """What a process of its own prints, which compiles its kernels first."""
    mode, place = task
    command = [sys.executable, "-m", "tests.triton.delays", mode, str(place)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert len(lines) == REPEATS
    return {*lines}


def main():
    """Number of faults: problems with results that delays change, or for which they miss the planted one."""
    if torch.cuda.get_device_capability() != (9, 0):
        print("left out: no Hopper GPU")
        return 0
    problems = [f"{name}: {p}" for name, p in CASES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(digests, product(MODES, range(len(problems)))))
    count = len(problems)
    plain, delayed, torn = (found[first : first + count] for first in range(0, len(found), count))
    # Several results of one mode are a race; other bits alone may be another order of roundings.
    describe = lambda p, one, other: f"{p}: {len(one)} results without, {len(other)} with"  # noqa: E731
    changed = [
        describe(*each) for each in zip(problems, plain, delayed, strict=True) if len(each[1] | each[2]) != 1
    ]
    missed = [describe(*each) for each in zip(problems, plain, torn, strict=True) if each[1] == each[2]]
    for what, those in (("changed", changed), ("did not change with a planted fault", missed)):
        print(f"delays: {len(those)} of {count} problems {what}", *those, sep="\n    ")
    return len(changed) + len(missed)


if __name__ == "__main__":
    if sys.argv[1:]:
        run(sys.argv[1], *CASES[int(sys.argv[2])])
    else:
        sys.exit(main())
