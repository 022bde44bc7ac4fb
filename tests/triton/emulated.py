"""Gluon in Triton's interpreter, as far as sweeps use it: layouts vanish, copies stay asynchronous.

Kernels imported inside `stand_ins()` run in the interpreter; needs TRITON_INTERPRET=1. What a copy brings can
be read once its group has been waited for. Reading a slot that is empty, or that a copy is under way to, is
an error.
"""

import sys
from contextlib import contextmanager
from types import ModuleType
from unittest.mock import patch

import triton
import triton.experimental.gluon.nvidia.hopper
import triton.language as tl
from triton.runtime import jit

LAYOUTS = (
    "NVMMADistributedLayout",
    "DotOperandLayout",
    "SliceLayout",
    "BlockedLayout",
    "SwizzledSharedLayout",
)


def plain(x):
    return x.value if isinstance(x, tl.constexpr) else x


class Memory:
    """Shared memory of `slots` blocks."""

    def __init__(self, shape):
        self.shape = tuple(map(plain, shape))
        self.slots = [None] * self.shape[0]

    def index(self, slot):
        place = int(plain(slot))
        assert 0 <= place < len(self.slots)
        return Slot(self, place)


class Slot:
    def __init__(self, memory, place, swapped=False):
        self.memory, self.place, self.swapped = memory, place, swapped

    def permute(self, order):
        assert tuple(order) == (1, 0)
        return Slot(self.memory, self.place, not self.swapped)

    def load(self, layout):
        held = self.memory.slots[self.place]
        assert held is not None, "read before a copy arrived"
        return tl.trans(held) if self.swapped else held


class Copies:
    """Groups of copies under way."""

    def __init__(self):
        self.open, self.committed = [], []

    def async_copy_global_to_shared(self, slot, pointers):
        block = tl.load(pointers)
        assert tuple(map(plain, block.shape)) == slot.memory.shape[1:]
        slot.memory.slots[slot.place] = None
        self.open.append((slot, block))

    def commit_group(self):
        self.committed.append(self.open)
        self.open = []

    def wait_group(self, left):
        while len(self.committed) > left:
            for slot, block in self.committed.pop(0):
                slot.memory.slots[slot.place] = block


def without_layout(name):
    """The function of Triton's language, whose arguments are the first ones."""

    def call(*arguments, layout=None, **options):
        return getattr(tl, name)(*map(plain, arguments), **options)

    return call


def assembly(source, constraints, arguments, dtype, is_pure, pack):
    assert plain(source) == "and.b32 $0, $1, $2;"
    left, right = arguments
    return left & right


@contextmanager
def stand_ins():
    """Stand-ins in the place of Gluon's modules."""
    language = ModuleType("triton.experimental.gluon.language")
    for name in (
        "program_id",
        "arange",
        "minimum",
        "maximum",
        "where",
        "exp2",
        "log2",
        "sum",
        "max",
        "load",
        "store",
        "cdiv",
        "join",
        "split",
        "permute",
        "reshape",
    ):
        setattr(language, name, without_layout(name))
    for name in ("constexpr", "float32", "uint32", "int16", "int32", "int64"):
        setattr(language, name, getattr(tl, name))
    for name in LAYOUTS:
        setattr(language, name, lambda *_, **__: None)
    language.static_range = lambda *ends: range(*map(plain, ends))
    language.zeros = lambda shape, dtype, layout: tl.zeros(list(map(plain, shape)), dtype)
    language.inline_asm_elementwise = assembly
    language.convert_layout = lambda block, layout: block
    language.allocate_shared_memory = lambda dtype, shape, layout: Memory(shape)
    ampere = ModuleType("triton.experimental.gluon.language.nvidia.ampere")
    ampere.async_copy = Copies()
    ampere.mma_v2 = without_layout("dot")
    gluon = ModuleType("triton.experimental.gluon")
    gluon.jit, gluon.language = triton.jit, language
    gluon.constexpr_function = lambda function: function
    stand_in = {module.__name__: module for module in (gluon, language, ampere)}
    kept = {name: sys.modules[name] for name in stand_in}
    sys.modules |= stand_in
    with patch.object(triton.experimental, "gluon", gluon):
        yield
    # The interpreter knows `tl.constexpr` alone.
    normal = jit._normalize_ty
    jit._normalize_ty = lambda ty: normal(ty.removeprefix("gl.") if isinstance(ty, str) else ty)
    sys.modules |= kept
