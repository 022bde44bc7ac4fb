r"""The Hopper kernels on a CPU, in a process of its own: numbers against the oracle, no fault in any order.

python -m tests.triton.interpreted_hopper \
    SEEDS SHARD SHARDS | any COUNT FIRST | kept | any_kept COUNT FIRST | orders | needs
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st

from tests import budget, oracle
from tests.triton import emulator
from tests.triton.emulator import arrays

with emulator.stand_ins():
    from tests.triton import partitions
    from vicinal.triton import (
        hopper_attention,
        hopper_plan,
        hopper_softmax,
    )

from tests.triton.interpreted import any_axis
from tests.triton.keeping import keeping, planned
from vicinal import Axis, Problem
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.hopper import HOPPER


def raise_units(peaks, units):
    """What the warps of a warpgroup do: a row's unit follows a score that is 8 ahead of it."""
    highest = arrays.highest(peaks, 1)[:, None]
    raised = arrays.where(highest - units > 8.0, highest, units)
    return raised, arrays.exp2(units - raised)


emulator.ASSEMBLY |= {
    hopper_softmax.RAISE: raise_units,
    hopper_softmax.HOLD: lambda sums: sums,
    **{hopper_softmax.rescaling(count): lambda acc, factor: acc * factor for count in (16, 32, 64, 128)},
}
# Three warpgroups, and sums that lag, where tiles walk over few boxes as well.
hopper_plan.WALK = hopper_plan.STARTING = 0
hopper_attention.Launch.__call__ = lambda self, *arguments: self.warmup(*arguments)


def take_turns(parts, rooms):
    """Parts in an order that streams allow, the last room's first; none finds what one before it left."""
    assert len(rooms) == min(len(parts), 2)
    for own in reversed(range(len(rooms))):
        for part in parts[own :: len(rooms)]:
            part(rooms[own].fill_(float("nan")))


hopper_attention.taking_turns = take_turns


def problem(*axes, **options):
    options = {"heads": 1, "dim": 64, "dtype": "bfloat16", "gradients": True} | options
    options.setdefault("kv_heads", options["heads"])
    options.setdefault("value_dim", options["dim"])
    return Problem(axes, device="cuda", **options)


# More boxes than stages, in every kernel.
LONG = problem(Axis(640, 500, 1, 1, False, 5), heads=3, kv_heads=1)
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
    "wide, boxes over stages": problem(Axis(300, 200), dim=256),
    "wide queries and keys": problem(Axis(200, 150, 1, 1, True), dim=208, value_dim=32),
    "three quarters of dims": problem(Axis(100, 65), heads=2, kv_heads=1, dim=96),
    "three quarters of wide dims": problem(Axis(9, 8), Axis(17, 7), dim=160),
    "three quarters of two dims": problem(Axis(100, 65), dim=192, value_dim=72),
    "volume": problem(Axis(3, 2), Axis(6, 4), Axis(9, 5)),
    "dilated": problem(Axis(200, 30, 1, 3, True)),
    "dilated plane": problem(Axis(11, 5, 1, 2), Axis(19, 5, 2, 2), dim=96),
    "groups of one length": problem(Axis(96, 20, 1, 2), batch=2, heads=2, kv_heads=1, value_dim=32),
    "groups of one length, plane": problem(Axis(12, 5, 1, 2), Axis(15, 4, 2, 3), dim=48, value_dim=64),
    "boxes over stages": LONG,
    # What three warpgroups share.
    "narrow": problem(Axis(400, 300), dtype="float16", value_dim=32),
    "narrow plane": problem(Axis(24, 13, 1, 1, True), Axis(24, 17), heads=2, kv_heads=1),
    "narrow, no masks": problem(Axis(48, 32, 16), Axis(48, 32, 16)),
    "narrow groups": problem(Axis(48, 19, 1, 2), Axis(24, 17), dim=32),
    "float8": problem(Axis(150, 70), key_dtype="float8_e4m3fn", gradients=False),
}

# Slopes kept, of so many heads of keys at a time. Tiles are ragged on either side, and on both.
KEPT = {
    "line, all heads": (problem(Axis(300, 65), heads=2, kv_heads=1, dim=128), 1),
    "line, head by head": (problem(Axis(130, 65), heads=3, dim=128), 1),
    "boxes over stages": (problem(Axis(640, 500), dim=96), 1),
    "two batches": (problem(Axis(48, 20, 4), Axis(32, 20, 16), dim=128, batch=2), 1),
    "ragged plane": (problem(Axis(17, 13), Axis(18, 16), dim=112), 1),
    "long and short": (problem(Axis(5, 3), Axis(90, 40, 7), heads=4, kv_heads=2, dim=96, value_dim=128), 2),
    "causal": (problem(Axis(140, 60, 1, 1, True), heads=2, dim=96, value_dim=128, dtype="float16"), 1),
    "causal in part": (problem(Axis(30, 9, 3, 1, True), Axis(21, 20), dim=128, dtype="float16"), 1),
    "flat between": (problem(Axis(16, 5), Axis(1, 1), Axis(20, 9), batch=2, dim=104, value_dim=96), 2),
    "three parts of five": (problem(Axis(70, 40), heads=5, dim=128), 2),
    "wide": (problem(Axis(150, 65), heads=2, dim=256, value_dim=96), 1),
    "wide volume": (problem(Axis(5, 3), Axis(9, 5, 2), Axis(10, 7), dim=256, value_dim=128), 1),
    "wide plane, two batches": (problem(Axis(17, 13), Axis(18, 16), dim=200, value_dim=96, batch=2), 1),
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
    ("partition 2", "partition 3", "partition 4", "load", "partition 0", "partition 1", "store", "product"),
    ("partition 0", "partition 1", "product", "store", "load", "partition 4", "partition 3", "partition 2"),
    ("partition 0", "load", "partition 2", "product", "store", "partition 1", "partition 4", "partition 3"),
    ("product", "store", "load", "partition 1", "partition 3", "partition 2", "partition 4", "partition 0"),
    ("partition 1", "partition 0", "partition 2", "partition 4", "partition 3", "product", "store", "load"),
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


def check_kept(case, heads, schedules, scale=0.2):
    assert planned(case, heads).turns == -(-case.batch * case.kv_heads // heads)
    with keeping(heads):
        check(case, schedules, scale)


def check_far_below_zero():
    """A weight of a key past the end is infinite: zeros there would make NaN of it."""
    for case in (problem(Axis(65, 64), dim=128), problem(Axis(9, 8), Axis(19, 18), dim=96)):
        apart = operands(case)
        given = apart._replace(query=apart.query / 8 + 3, key=apart.key / 8 - 3)
        grad_of = cotangents(case)
        wanted = exact(case, given, 0.2, grad_of)
        assert wanted[1].max() < -100
        with keeping(1), emulator.schedule():
            found = results(case, given, 0.2, grad_of)
        for name, actual, right in zip(("query", "key", "value"), found[2:], wanted[2:], strict=True):
            budget.check(name, array(actual), right, case.dtype, rounded_weights=True)


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
    """The kernel that racecheck is tried on is right, and races where it is to race."""
    source = torch.arange(partitions.ROUNDS * 128, dtype=torch.int32)
    out = torch.zeros_like(source)
    with emulator.schedule(order=order, restless=0.0):
        partitions.copy.warmup(source, out, partitions.ROUNDS, False, grid=(1,))
        assert torch.equal(out, source)
        said = ""
        try:
            partitions.copy.warmup(source, out, partitions.ROUNDS, True, grid=(1,))
        except emulator.Fault as fault:
            said = str(fault)
    assert "race on held" in said, said


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
        value_dim=draw(st.sampled_from((32, 64, 72, 128))),
        dtype=draw(st.sampled_from(("float16", "bfloat16"))),
    )


@st.composite
def any_kept(draw):
    """A problem and heads of keys at a time."""
    rank = draw(st.integers(1, 2))
    axes = [draw(any_axis((300, 24)[rank - 1])) for _ in range(rank)]
    axes = [replace(axis, output_stride=1, dilation=1) for axis in axes]
    batch, kv_heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    dims = st.sampled_from((96, 104, 128))
    case = problem(
        *axes,
        batch=batch,
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=draw(dims),
        value_dim=draw(dims),
        dtype=draw(st.sampled_from(("float16", "bfloat16"))),
    )
    return case, draw(st.integers(1, batch * kv_heads))


def check_any(count, first, problems=any_problem):
    """Random problems in random orders; `first` moves both."""

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.seed(first)
    @hypothesis.given(problems(), st.integers(0, 2**32), st.sampled_from((0.2, -0.3)))
    def test(found, order, scale):
        hypothesis.note(f"{found}, order {order}")
        if problems is any_kept:
            check_kept(*found, [{"seed": order}], scale)
        else:
            check(found, [{"seed": order}], scale)

    test()


# A module, what stands in it, what is planted there, what is to be said about it, and of what problem.
if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "any":
        check_any(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1] == "any_kept":
        check_any(int(sys.argv[2]), int(sys.argv[3]), any_kept)
    elif sys.argv[1:] == ["kept"]:
        for seed, (name, (case, heads)) in enumerate(KEPT.items()):
            check_kept(case, heads, [{"seed": seed}], scale=(0.2, -0.3)[seed % 2])
            print(name, flush=True)
        with many_tiles_each():
            check_kept(*KEPT["line, head by head"], [{"order": order, "restless": 0.0} for order in ORDERS])
        check_far_below_zero()
    elif sys.argv[1:] == ["orders"]:
        for dim in (64, 96):
            case = replace(LONG, dim=dim, value_dim=dim)
            check(case, [{"order": order, "restless": 0.0} for order in ORDERS])
        # Units of rows move from box to box.
        check(LONG, [{"seed": 0}], scale=2.0)
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
