"""The Hopper kernels on a CPU, in a process of its own: numbers against the oracle, no fault in any order.

python -m tests.triton.interpreted_hopper SEEDS SHARD SHARDS | any COUNT FIRST | orders | needs | faults
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st

from tests import budget, oracle
from tests.triton import emulator

with emulator.stand_ins():
    from tests.triton import partitions
    from vicinal.triton import (
        hopper_attention,
        hopper_forward,
        hopper_key_gradient,
        hopper_query_gradient,
        hopper_schedule,
        hopper_tile,
    )

from tests.triton.interpreted import any_axis
from vicinal import Axis, Problem
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.hopper import HOPPER

emulator.ASSEMBLY[hopper_forward.RESCALE] = lambda acc, factor: acc * factor
hopper_attention.Launch.__call__ = lambda self, *arguments: self.warmup(*arguments)


def problem(*axes, **options):
    options = {"heads": 1, "dim": 64, "dtype": "bfloat16", "gradients": True} | options
    options.setdefault("kv_heads", options["heads"])
    options.setdefault("value_dim", options["dim"])
    return Problem(axes, device="cuda", **options)


# More boxes than stages, in every kernel.
LONG = problem(Axis(640, 500, 1, 1, False, 5), heads=3, kv_heads=1)
# The same where rows of one tile fill shared memory.
WIDE = replace(LONG, dim=128, value_dim=128)
CASES = {
    "line": problem(Axis(300, 65)),
    "line, two batches": problem(Axis(150, 64), batch=2, dim=128),
    "causal, grouped": problem(Axis(140, 60, 1, 1, True), heads=2, kv_heads=1, dim=128, dtype="float16"),
    "strides": problem(Axis(200, 70, 16), dim=32),
    "output stride": problem(Axis(300, 40, 1, 1, False, 3)),
    "plane": problem(Axis(17, 13), Axis(18, 16)),
    "wide plane": problem(Axis(17, 9), Axis(19, 8, 4), dim=128),
    "ragged dims": problem(Axis(17, 9), Axis(19, 8, 4), dim=48, value_dim=40),
    "wide": problem(Axis(9, 8), Axis(17, 7), dim=256),
    "three quarters of dims": problem(Axis(100, 65), dim=192, value_dim=72),
    "volume": problem(Axis(3, 2), Axis(6, 4), Axis(9, 5)),
    "dilated": problem(Axis(200, 30, 1, 3, True)),
    "dilated plane": problem(Axis(11, 5, 1, 2), Axis(19, 5, 2, 2), dim=96),
    "groups of one length": problem(Axis(96, 20, 1, 2), batch=2, heads=2, kv_heads=1, value_dim=32),
    "groups of one length, plane": problem(Axis(12, 5, 1, 2), Axis(15, 4, 2, 3), dim=48, value_dim=64),
    "boxes over stages": LONG,
    "float8": problem(Axis(150, 70), key_dtype="float8_e4m3fn", gradients=False),
}


def operands(case, seed=0):
    generator = torch.Generator().manual_seed(seed)
    own, of_keys = getattr(torch, case.dtype), getattr(torch, case.key_dtype or case.dtype)

    def make(*shape, dtype=own):
        return torch.randn(shape, generator=generator).to(dtype)

    return Operands(
        make(case.batch, *case.outputs, case.heads, case.dim, dtype=of_keys),
        make(case.batch, *case.lengths, case.kv_heads, case.dim, dtype=of_keys),
        make(case.batch, *case.lengths, case.kv_heads, case.value_dim),
    )


def array(x):
    return x.double().numpy()


@contextmanager
def blank_is_nan() -> Iterator[None]:
    """Tensors that PyTorch allocates without a value hold NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def cotangents(case):
    generator = torch.Generator().manual_seed(1)
    rows = (case.batch, *case.outputs, case.heads)
    grad_out = torch.randn(*rows, case.value_dim, generator=generator).to(getattr(torch, case.dtype))
    return grad_out, torch.randn(rows, generator=generator)


def results(case, given, scale, grad_of):
    """Output, log-sum-exp and gradients of the kernels."""
    with blank_is_nan():
        out, lse = HOPPER.attend(case, given, scale)
        if not case.gradients:
            return out, lse
        needs = (True,) * 3 + (False,) * 3
        grads = HOPPER.attend_back(case, given, out, lse, *grad_of, scale, needs)
    return out, lse, *grads[:3]


def exact(case, given, scale, grad_of):
    """The oracle's."""
    sampled = (slice(None), *(slice(None, None, axis.output_stride) for axis in case.axes))
    query = np.zeros((case.batch, *case.lengths, case.heads, case.dim))
    query[sampled] = array(given.query)
    rules = [tuple(getattr(axis, name) for axis in case.axes) for name in (
        "size", "stride", "dilation", "causal", "output_stride")]  # fmt: skip
    win = oracle.Window(*rules)
    grads = dict(zip(("grad_out", "grad_lse"), map(array, grad_of), strict=True)) if case.gradients else {}
    answer = oracle.attend(query, array(given.key), array(given.value), win, scale, **grads)
    if not case.gradients:
        return answer.out, answer.lse
    return answer.out, answer.lse, answer.query[sampled], answer.key, answer.value


# Producers as far ahead as they can be, then as far behind; one consumer ahead, then the other; what goes on
# beside partitions at once, or as late as it can be.
ORDERS = (
    ("partition 2", "partition 3", "load", "partition 0", "partition 1", "store", "product"),
    ("partition 0", "partition 1", "product", "store", "load", "partition 3", "partition 2"),
    ("partition 0", "load", "partition 2", "product", "store", "partition 1", "partition 3"),
    ("product", "store", "load", "partition 1", "partition 3", "partition 2", "partition 0"),
    ("partition 1", "partition 0", "partition 2", "partition 3", "product", "store", "load"),
)


def check(case, schedules, scale=0.2):
    given, grad_of = operands(case), cotangents(case)
    wanted = exact(case, given, scale, grad_of)
    for schedule in schedules:
        with emulator.schedule(**schedule):
            found = results(case, given, scale, grad_of)
        names = ("out", "lse", "query", "key", "value")
        for name, actual, right in zip(names, found, wanted, strict=False):
            dtype = "float32" if name == "lse" else case.dtype
            budget.check(name, array(actual), right, dtype, rounded_weights=name != "lse")


@contextmanager
def many_tiles_each():
    """One program computes all tiles."""
    resident, emulator.RESIDENT = emulator.RESIDENT, 1
    try:
        yield
    finally:
        emulator.RESIDENT = resident


def check_needs(case):
    """Gradients one by one are those that come together."""
    given, grad_of = operands(case), cotangents(case)
    out, lse, *whole = results(case, given, 0.2, grad_of)
    for needs in product((True, False), repeat=3):
        with blank_is_nan():
            some = HOPPER.attend_back(case, given, out, lse, *grad_of, 0.2, needs + (False,) * 3)
        for need, one, all_ in zip(needs, some, whole, strict=False):
            assert (one is None) if not need else torch.equal(one, all_), needs


def check_control(order):
    """The kernel that racecheck is tried on is right."""
    source = torch.arange(partitions.ROUNDS * 128, dtype=torch.int32)
    out = torch.zeros_like(source)
    with emulator.schedule(order=order, restless=0.0):
        partitions.copy.warmup(source, out, partitions.ROUNDS, grid=(1,))
    assert torch.equal(out, source)


@st.composite
def any_problem(draw):
    rank = draw(st.integers(1, 3))
    axes = [draw(any_axis((300, 24, 9)[rank - 1])) for _ in range(rank)]
    # No output stride on a dilated axis.
    axes = [replace(axis, output_stride=1) if axis.dilation > 1 else axis for axis in axes]
    kv_heads = draw(st.integers(1, 2))
    return problem(
        *axes,
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=draw(st.sampled_from((32, 64, 72, 128))),
        value_dim=draw(st.sampled_from((32, 64, 128))),
        dtype=draw(st.sampled_from(("float16", "bfloat16"))),
    )


def check_any(count, first):
    """Random problems in random orders; `first` moves both."""

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.seed(first)
    @hypothesis.given(any_problem(), st.integers(0, 2**32), st.sampled_from((0.2, -0.3)))
    def test(found, order, scale):
        hypothesis.note(f"{found}, order {order}")
        check(found, [{"seed": order}], scale)

    test()


# A module, what stands in it, what is planted there, what is to be said about it, and of what problem.
FAULTS = (
    # A stage of values is given back while the product that reads it is under way.
    (
        hopper_forward,
        """        acc = _added(adding)
        mbarrier.arrive(values.empty.index(before), count=1)""",
        """        mbarrier.arrive(values.empty.index(before), count=1)
        acc = _added(adding)""",
        r"race on values.buffers\[\d\]: a write at hopper_tile.py:\d+ fill.* unordered with .* _add",
    ),
    (
        hopper_query_gradient,
        """        pulled, grad = warpgroup_mma_wait(0, deps=(pulling, adding))
        mbarrier.arrive(keys.empty.index(before), count=1, pred=i > begin)""",
        """        mbarrier.arrive(keys.empty.index(before), count=1, pred=i > begin)
        pulled, grad = warpgroup_mma_wait(0, deps=(pulling, adding))""",
        r"race on keys.buffers\[\d\]: a write at hopper_tile.py:\d+ fill.* unordered with .* _walk",
    ),
    (
        hopper_key_gradient,
        "mbarrier.arrive(queries.empty.index(before), count=1, pred=i > opening)",
        "mbarrier.arrive(queries.empty.index(stage), count=1, pred=i > opening)",
        "race on queries.buffers|deadlock",
    ),
    # A product is used while it is under way.
    (
        hopper_forward,
        "warpgroup_mma_wait(len(adding), deps=(flying,))",
        "warpgroup_mma_wait(len(adding) + 1, deps=(flying,))",
        "takes the product of .* _score .* may be under way",
    ),
    # Counts of barriers.
    (
        hopper_forward,
        "keys = ht.ring(key, SPEC.stages, 2)",
        "keys = ht.ring(key, SPEC.stages, 1)",
        "race on keys.buffers|arrives 1 times at keys.empty|of keys.(full|empty)",
    ),
    (
        hopper_forward,
        "keys = ht.ring(key, SPEC.stages, 2)",
        "keys = ht.ring(key, SPEC.stages, 3)",
        r"deadlock:(.|\n)*_copy\) waits for phase 0 of keys.empty\[\d\], which has 2 of 3 arrivals",
    ),
    (
        hopper_key_gradient,
        "queries = ht.ring(query, SPEC.stages, 2, 3)",
        "queries = ht.ring(query, SPEC.stages, 2, 2)",
        "race on (notes|borders|queries)|arrives 1 times at queries.full",
    ),
    # Waits for too little, too much, and the wrong phase.
    (
        hopper_tile,
        "mbarrier.wait(values.empty.index(stage), i // SPEC.value_stages & 1 ^ 1)",
        "",
        "race on values.buffers|values.full",
    ),
    (
        hopper_tile,
        "mbarrier.wait(keys.empty.index(stage), i // SPEC.stages & 1 ^ 1)",
        "mbarrier.wait(keys.empty.index(stage), i // SPEC.stages & 1)",
        r"deadlock:(.|\n)*waits for phase 0 of keys.empty\[0\]",
    ),
    (
        hopper_forward,
        "mbarrier.wait(values.full.index(last), (end - 1) // SPEC.value_stages & 1)",
        "",
        "race on values.buffers.* _attend|values.full",
    ),
    (
        hopper_query_gradient,
        "    mbarrier.wait(grad_outs.full.index(slot), filled)\n    grad_out =",
        "    grad_out =",
        "race on grad_outs|reads grad_outs.*nothing",
    ),
    # Bytes.
    (
        hopper_tile,
        "block_type.nbytes)\n    tma",
        "block_type.nbytes - 16)\n    tma",
        "not all of them expected",
    ),
    (hopper_tile, "block_type.nbytes)\n    tma", "block_type.nbytes + 16)\n    tma", "lacks 16 bytes"),
    # What leaves shared memory.
    (
        hopper_forward,
        "        count += 1\n    tma.store_wait(0)\n",
        "        count += 1\n",
        "ends without having waited for its stores",
    ),
    # Queries of the next tiles, and outputs in their place.
    (
        hopper_forward,
        "        tma.store_wait(0)\n        before",
        "        before",
        "race on queries.buffers.* unordered with .* send",
    ),
    (hopper_forward, "(count + 1) % SPEC.depth", "count % SPEC.depth", "race on queries.buffers|deadlock"),
    # Rows of the next tiles, and gradients in their place.
    (
        hopper_query_gradient,
        "            fence_async_shared()\n            mbarrier.arrive(queries.empty",
        "            mbarrier.arrive(queries.empty",
        "no fence between hopper_tile.py:.* factor.* and the proxy of .* fill",
    ),
    (
        hopper_query_gradient,
        "            mbarrier.arrive(queries.empty.index(warpgroup), count=1)\n        row = ",
        "        row = ",
        r"deadlock:(.|\n)*queries.empty",
    ),
    (
        hopper_query_gradient,
        "            tma.store_wait(0)\n            before",
        "            before",
        "race on grad_outs.buffers.* unordered with .* send",
    ),
    (
        hopper_key_gradient,
        "        tma.store_wait(0)\n        before",
        "        before",
        "race on (keys|values).buffers.* unordered with .* send",
    ),
    (
        hopper_key_gradient,
        "    if SPEC.depth == 1:\n        tma.store_wait(0)\n",
        "    if SPEC.depth == 1:\n",
        "race on (keys|values).buffers.* unordered with .* send",
        WIDE,
    ),
    (
        hopper_tile,
        "    mbarrier.wait(into.empty.index(slot), turn // depth & 1 ^ 1)\n",
        "",
        "race on queries.buffers",
    ),
    # Numbers of tiles.
    (
        hopper_schedule,
        "ht.barriers(2, readers)",
        "ht.barriers(2, readers - 1)",
        "race on tickets.buffers|tickets.(full|empty)",
    ),
    (hopper_tile, "    fence_async_shared()\n", "\n", "no fence between hopper_(tile|forward).py:.*"),
    # A barrier that lives on where the compiler puts something else.
    (
        hopper_forward,
        "hs.turns() if SPEC.turns else ()",
        "hs.turns()",
        "no partition uses",
    ),
)


def check_fault(module, right, wrong, message, case=LONG):
    """A planted fault is found, in any schedule."""
    path = Path(module.__file__)
    source = path.read_text()
    assert source.count(right) == 1, right

    def put(text):
        with emulator.stand_ins():
            exec(compile(text, path, "exec"), module.__dict__)

    put(source.replace(right, wrong))
    try:
        with many_tiles_each():
            results(case, operands(case), 0.2, cotangents(case))
        said = "nothing"
    except emulator.Fault as fault:
        said = str(fault)
    finally:
        put(source)
    assert re.search(message, said), f"{wrong}: {said}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["faults"]:
        for found in FAULTS:
            check_fault(*found)
    elif sys.argv[1] == "any":
        check_any(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:] == ["orders"]:
        check(LONG, [{"order": order, "restless": 0.0} for order in ORDERS])
        for order in (("partition 0", "partition 1"), ("partition 1", "partition 0")):
            check_control(order)
    elif sys.argv[1:] == ["needs"]:
        check_needs(CASES["output stride"])
        with many_tiles_each():
            check_needs(CASES["wide"])
    else:
        seeds, shard, shards = map(int, sys.argv[1:])
        for first, name in list(enumerate(CASES))[shard::shards]:
            check(CASES[name], [{"seed": seed} for seed in range(first, first + seeds)])
            print(name, flush=True)
