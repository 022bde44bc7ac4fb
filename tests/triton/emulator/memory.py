"""Shared memory that remembers who touched it, barriers in it, and tensors in global memory."""

from typing import NamedTuple

import numpy as np
import torch

from .arrays import DTYPES, Block, Pointer, block, int1, number, rounded
from .schedule import Fault, Knowledge, Lane, here


class Access(NamedTuple):
    """What touched a slot: its place in a lane, whether through the generic proxy, and from where."""

    lane: Lane
    count: int
    generic: bool
    where: str

    def known(self, lanes):
        return lanes.get(self.lane, 0) >= self.count


class Slot:
    """What lies behind one index of an allocation: a box of elements, or a barrier."""

    def __init__(self, memory, place):
        self.memory, self.place = memory, place
        self.write, self.reads, self.barrier = None, {}, None
        self.loads = Lane(f"loads into {self.name}")

    @property
    def name(self):
        return f"{self.memory.name}[{self.place}]"

    def _must_know(self, other, access, knowledge, doing):
        if not other.known(knowledge.seen):
            raise Fault(f"race on {self.name}: {doing} at {access.where} is unordered with {other.where}")

    def record_read(self, access, knowledge):
        if self.write is None:
            raise Fault(f"{access.where} reads {self.name}, which nothing has written")
        self._must_know(self.write, access, knowledge, "a read")
        self._must_be_shown([self.write], access, knowledge)
        self.reads[access.lane] = access

    def record_write(self, access, knowledge):
        others = [other for other in (self.write, *self.reads.values()) if other is not None]
        for other in others:
            self._must_know(other, access, knowledge, "a write")
        self._must_be_shown(others, access, knowledge)
        self.write, self.reads = access, {}

    def _must_be_shown(self, others, access, knowledge):
        """Asynchronous operations are ordered with generic ones from before a fence alone."""
        for before in others:
            if before.generic and not access.generic and not before.known(knowledge.shown):
                raise Fault(f"no fence between {before.where} and the proxy of {access.where} on {self.name}")


class Memory:
    """An allocation in shared memory."""

    def __init__(self, dtype, shape):
        self.dtype, self.shape, self.name = dtype, tuple(map(number, shape)), f"memory of {here()}"
        self.where, self.stays = here(), False
        self.held = np.full(self.shape, np.nan if dtype.is_floating else -(2**30), dtype.held)
        self.slots = [Slot(self, place) for place in range(self.shape[0])]

    def index(self, place):
        at = int(number(place))
        if not 0 <= at < len(self.slots):
            raise Fault(f"{here()} reaches for slot {at} of {len(self.slots)} of {self.name}")
        return View(self.slots[at], self.held[at])


def check_places(programs):
    """Faults where barriers outlive their memory: the compiler reuses what no program's partitions use."""
    for same in zip(*programs, strict=True):
        made = any(slot.barrier for memory in same for slot in memory.slots)
        if made and not any(memory.stays for memory in same):
            first = same[0]
            raise Fault(f"barriers of {first.where} are not ended, and no partition uses {first.name}")


class View:
    """A slot as code sees it, reshaped, permuted, or a slice of it."""

    def __init__(self, slot, held):
        self.slot, self.held = slot, held

    @property
    def dtype(self):
        return self.slot.memory.dtype

    @property
    def shape(self):
        return list(self.held.shape)

    def reshape(self, shape):
        found = self.held.view()
        found.shape = tuple(map(number, shape))
        return View(self.slot, found)

    def permute(self, order):
        return View(self.slot, self.held.transpose(order))

    def slice(self, start, length, dim=0):
        where = slice(number(start), number(start) + number(length))
        return View(self.slot, self.held[(slice(None),) * dim + (where,)])


class Barrier:
    """An mbarrier. Phases count from 0; -1 has completed when it is made."""

    def __init__(self, slot, count):
        self.slot, self.count, self.where = slot, count, here()
        self.pending, self.missing, self.completed = count, 0, -1
        self.gathered, self.released, self.waiting = Knowledge(), Knowledge(), []

    def __str__(self):
        arrived = f"{self.count - self.pending} of {self.count} arrivals"
        return (
            f"{self.slot.name}, which has {arrived}, lacks {self.missing} bytes in phase {self.completed + 1}"
        )

    def arrive(self, count, knowledge):
        if count > self.pending:
            raise Fault(f"{here()} arrives {count} times at {self}")
        self.pending -= count
        self.gathered.learn(knowledge)
        self._complete()

    def expect(self, size):
        self.missing += size
        if self.missing >= 2**20:
            raise Fault(f"{here()} expects more bytes than a barrier counts at {self}")

    def land(self, size, knowledge, where):
        if size > self.missing:
            raise Fault(f"{where} brings {size} bytes, not all of them expected, to {self}")
        self.missing -= size
        self.gathered.learn(knowledge)
        self._complete()

    def _complete(self):
        if self.pending or self.missing:
            return
        self.completed += 1
        self.pending, self.released, self.gathered = self.count, self.gathered, Knowledge()
        for partition, phase in self.waiting:
            if phase < self.completed:
                raise Fault(
                    f"{partition.label} misses the end of phase {phase} of {self}: it ends the next one"
                )


class Storage:
    """The memory behind tensors of PyTorch, element by element."""

    def __init__(self, tensor):
        self.tensor = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        self.dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        floating = self.dtype.is_floating
        self.held = self.tensor.float().numpy().copy() if floating else self.tensor.numpy().copy()
        self.written = np.zeros(self.held.shape, bool)

    def flush(self):
        """What kernels have written, back to the tensors."""
        at = torch.from_numpy(self.written)
        self.tensor[at] = torch.from_numpy(self.held)[at].to(self.tensor.dtype)


def _mark(held, written, at, values, where):
    """Programs write no element twice, unless with the same value."""
    again = written[at] & (held[at] != values)
    if again.any():
        raise Fault(f"{where} writes {again.sum()} elements that hold other results")
    held[at], written[at] = values, True


def _reached(pointer, mask):
    """Elements that a pointer addresses where `mask` lets it, and the mask, of one shape."""
    mask = block(True if mask is None else mask)
    assert mask.dtype is int1
    at, mask = np.broadcast_arrays(pointer.offset, mask.held)
    wrong = mask & ((at < 0) | (at >= pointer.memory.held.size))
    if wrong.any():
        raise Fault(f"{here()} addresses {wrong.sum()} elements outside of a tensor")
    return at, mask


def load(pointer, mask=None, other=None):
    at, mask = _reached(pointer, mask)
    found = pointer.memory.held[np.where(mask, at, 0)]
    missing = np.nan if other is None and pointer.dtype.is_floating else other or 0
    return Block(np.where(mask, found, pointer.dtype.held(missing)), pointer.dtype)


def store(pointer, value, mask=None):
    at, mask = _reached(pointer, mask)
    values = np.broadcast_to(rounded(block(value).held, pointer.dtype), at.shape)
    _mark(pointer.memory.held, pointer.memory.written, at[mask], values[mask], here())


class Descriptor:
    """A tensor map: `base` is a `Pointer`, strides count elements."""

    def __init__(self, base, shape, strides, box, layout):
        self.base, self.box, self.layout = base, tuple(map(number, box)), layout
        self.shape, self.strides = tuple(map(block, shape)), tuple(map(block, strides))
        self.block_type = BlockType(self.box, base.dtype)
        size = base.dtype.bits // 8
        extents, steps = tuple(map(int, self.shape)), tuple(map(int, self.strides))
        start = int(base.offset)
        if start * size % 16 or any(step * size % 16 for step in steps[:-1]) or steps[-1] != 1:
            raise Fault(f"{here()}: a tensor map takes multiples of 16 bytes")
        last = start + sum((extent - 1) * step for extent, step in zip(extents, steps, strict=True))
        if min(extents) < 1 or start < 0 or last >= base.memory.held.size:
            raise Fault(f"{here()}: a tensor map reaches outside of its tensor")
        self.held, self.written = (
            np.lib.stride_tricks.as_strided(flat[start:], extents, [step * flat.itemsize for step in steps])
            for flat in (base.memory.held, base.memory.written)
        )

    @property
    def dtype(self):
        return self.base.dtype

    def _overlap(self, corner):
        """Slices of the tensor and of the box at `corner` where they meet."""
        ends = list(zip(corner, self.box, self.held.shape, strict=True))
        inside = [slice(max(at, 0), max(min(at + side, extent), 0)) for at, side, extent in ends]
        return tuple(inside), tuple(
            slice(one.start - at, max(one.stop - at, one.start - at))
            for one, at in zip(inside, corner, strict=True)
        )

    def read(self, corner):
        """The box, zeros outside of the tensor."""
        inside, own = self._overlap(corner)
        found = np.zeros(self.box, np.float32)
        found[own] = self.held[inside]
        return found

    def write(self, corner, values, where):
        """The box, without what lies outside of the tensor."""
        inside, own = self._overlap(corner)
        _mark(self.held, self.written, inside, values[own], where)


class BlockType:
    def __init__(self, shape, dtype):
        self.shape, self.element_ty = list(shape), dtype
        self.nbytes = int(np.prod(shape)) * dtype.bits // 8


def address(storages, tensor):
    """The first element of a tensor; tensors of one storage share it."""
    key = tensor.untyped_storage().data_ptr(), tensor.dtype
    if key not in storages:
        storages[key] = Storage(tensor)
    return Pointer(storages[key], np.int64(tensor.storage_offset()))
