"""A call like one before plans nothing and passes on no address of that one; needs no GPU.

In a process of its own: Triton's device is a stand-in.
"""

from contextlib import nullcontext
from functools import partial

import torch

from tests.triton import absent
from tests.triton.keeping import keeping
from vicinal import Problem
from vicinal.torch import na1d, na2d
from vicinal.triton import hopper_attention

CALLS = []
KEPT = "hopper, slopes kept"
# Function, length of every axis, heads, head dimension, and what else.
CASES = {
    "one box": (na2d, 8, 1, 24, {"kernel_size": 7, "backend": "triton"}),
    "rings": (na2d, 14, 2, 32, {"kernel_size": 5, "backend": "triton"}),
    "loop": (na1d, 300, 1, 24, {"kernel_size": 200, "backend": "triton"}),
    "hopper": (na2d, 32, 2, 128, {"kernel_size": 25, "backend": "hopper"}),
    "hopper, dilated": (na2d, 64, 2, 128, {"kernel_size": 25, "dilation": 2, "backend": "hopper"}),
    KEPT: (na1d, 1024, 3, 128, {"kernel_size": 500, "backend": "hopper"}),
}


def record(*arguments):
    CALLS.append(arguments)


def numbers(arguments):
    """Integers in arguments of a launch, those of tensor maps included."""
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from numbers(argument)
        elif isinstance(argument, int):
            yield argument


def called(attend, shape):
    """Tensors of a call forward and backward, in which all that was passed on lies, and its launches."""
    CALLS.clear()
    operands = [torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    out, lse = attend(*operands, return_lse=True)
    flow = torch.zeros_like(out), torch.zeros_like(lse)
    grads = torch.autograd.grad((out, lse), operands, flow)
    return [*operands, out, lse, *flow, *grads], [set(numbers(call)) for call in CALLS]


def check(function, length, heads, dim, options):
    shape = (1, *(length,) * (1 if function is na1d else 2), heads, dim)
    attend = partial(function, **options)
    before, first = called(attend, shape)
    hashed, Problem.__hash__ = Problem.__hash__, forbidden
    try:
        after, second = called(attend, shape)
    finally:
        Problem.__hash__ = hashed
    assert len(first) == len(second) >= 3
    stale, fresh = ({x.data_ptr() for x in tensors} for tensors in (before, after))
    assert not stale & fresh
    assert all(not stale & launch for launch in second)
    assert fresh == fresh.intersection(*[set().union(*second)])


def forbidden(_):
    raise AssertionError("a problem was looked up")


def take_turns(parts, rooms):
    """Without streams."""
    for number, part in enumerate(parts):
        part(rooms[number % len(rooms)])


if __name__ == "__main__":
    absent.install(record)
    hopper_attention.taking_turns = take_turns
    for name, case in CASES.items():
        with keeping(2) if name == KEPT else nullcontext():
            check(*case)
            assert name != KEPT or len(CALLS) == 2 + 2 * 2
