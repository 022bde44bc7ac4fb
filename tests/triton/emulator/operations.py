"""Gluon's operations that synchronize, or go on beside the code that starts them."""

import threading

import numpy as np

from .arrays import Block, block, float32, int32, number, product
from .memory import Access, Barrier, Memory, View
from .schedule import PROGRAM, Fault, Partition, here


def this():
    """The partition that calls."""
    found = threading.current_thread()
    assert isinstance(found, Partition), "kernels run through a launch"
    return found


def _used(view, me):
    """Memory that a partition uses keeps its place for as long as partitions run."""
    view.slot.memory.stays |= me.kind != PROGRAM


def _touched(view, record):
    """A read or write by code itself."""
    me = this()
    _used(view, me)
    getattr(view.slot, record)(Access(me.lane, me.lane.count, True, here()), me.knowledge)


def _started(me, lane, view, record):
    """An asynchronous read or write of a view, in a lane of its own: what it knows, itself included."""
    _used(view, me)
    known = me.release()
    known.seen[lane] = lane.count
    getattr(view.slot, record)(Access(lane, lane.count, False, here()), known)
    return known


def load(self, layout=None):
    _touched(self, "record_read")
    return Block(self.held.copy(), self.dtype)


def store(self, values):
    if tuple(values.shape) != self.held.shape or values.dtype is not self.dtype:
        raise Fault(f"{here()} stores {values.dtype.name}{values.shape} as {self.dtype.name}{self.shape}")
    _touched(self, "record_write")
    self.held[...] = values.held


View.load, View.store = load, store


def allocate_shared_memory(dtype, shape, layout):
    found = Memory(dtype, shape)
    this().memories.append(found)
    return found


def fence_async_shared(cluster=False):
    this().switch()
    this().knowledge.fence()


def thread_barrier():
    this().switch()


class mbarrier:
    """Barriers: `wait` is for parities, and an expectation arrives."""

    class MBarrierLayout:
        pass

    @staticmethod
    def init(bar, count):
        if bar.slot.barrier is not None:
            raise Fault(f"{here()} makes {bar.slot.name} again, without having ended it")
        _touched(bar, "record_write")
        bar.slot.barrier = Barrier(bar.slot, number(count))

    @staticmethod
    def invalidate(bar):
        this().switch()
        found = _known(bar)
        if found.waiting or found.missing or found.pending != found.count:
            raise Fault(f"{here()} ends {found}, which is in use")
        _touched(bar, "record_write")
        bar.slot.barrier = None

    @staticmethod
    def expect(bar, size, pred=True):
        me = this()
        if pred:
            me.switch()
            _known(bar).expect(number(size))
            _known(bar).arrive(1, me.release())

    @staticmethod
    def arrive(bar, *, count=1, pred=True):
        me = this()
        if pred:
            me.switch()
            _known(bar).arrive(number(count), me.release())

    @staticmethod
    def wait(bar, phase, pred=True, deps=()):
        me, parity = this(), int(number(phase))
        if not pred:
            return
        me.switch()
        found = _known(bar)
        if parity not in (0, 1):
            raise Fault(f"{here()} waits for parity {parity}")
        target = found.completed + (found.completed & 1 != parity)
        if target > me.observed.get(found, -1) + 1:
            raise Fault(f"{here()} waits for phase {target} of {found}, but never did for the one before")
        if target > found.completed:
            where, waiter = here(), (me, target)
            found.waiting.append(waiter)
            why = f"waits for phase {target} of"
            me.switch((lambda: found.completed >= target, lambda: f"{why} {found}, at {where}"))
            found.waiting.remove(waiter)
        me.observed[found] = target
        me.knowledge.learn(found.released)


def _known(bar):
    """The barrier of a view, by code that knows that it has been made."""
    slot = bar.slot
    _used(bar, this())
    if slot.barrier is None:
        raise Fault(f"{here()} uses {slot.name}, which is no barrier")
    if not slot.write.known(this().knowledge.seen):
        raise Fault(f"{here()} uses {slot.name}, unordered with {slot.write.where}")
    return slot.barrier


class tma:
    """Copies of boxes."""

    @staticmethod
    def async_copy_global_to_shared(descriptor, coordinate, bar, result, pred=True):
        me = this()
        if not pred:
            return
        me.switch()
        corner, where, barrier = [int(number(x)) for x in coordinate], here(), _known(bar)
        if result.dtype is not descriptor.dtype or tuple(result.shape) != descriptor.box:
            raise Fault(f"{where} copies boxes {descriptor.box} into {result.shape}")
        result.slot.loads.step()
        known = _started(me, result.slot.loads, result, "record_write")
        result.held[...] = np.nan

        def land():
            result.held[...] = descriptor.read(corner)
            barrier.land(descriptor.block_type.nbytes, known, where)

        me.scheduler.later("load", land)

    @staticmethod
    def async_copy_shared_to_global(descriptor, coordinate, source):
        me = this()
        me.switch()
        corner, where = [int(number(x)) for x in coordinate], here()
        if source.dtype is not descriptor.dtype or tuple(source.shape) != descriptor.box:
            raise Fault(f"{where} copies {source.shape} as boxes {descriptor.box}")
        me.store_lane.step()
        _started(me, me.store_lane, source, "record_read")
        me.scheduler.later("store", lambda: descriptor.write(corner, source.held, where), me.stores)

    @staticmethod
    def store_wait(pendings):
        me = this()
        me.switch()
        _finish(me, me.stores, me.store_lane, number(pendings))


def _finish(me, queue, lane, left):
    """Waits until at most `left` of what was started is under way."""
    if len(queue) > left:
        queue[len(queue) - left - 1].run()
    me.knowledge.seen[lane] = max(lane.count - left, me.knowledge.seen.get(lane, 0))


class Accumulator(Block):
    """Sums of a product under way, which no more than another product may take."""

    def __init__(self, number, shape, where):
        self.number, self.extents, self.where, self.sums, self.dtype = number, shape, where, None, float32

    @property
    def shape(self):
        return list(self.extents)

    @property
    def held(self):
        raise Fault(f"{here()} takes the product of {self.where}, which may be under way")


def _summed(x):
    return x.sums if isinstance(x, Accumulator) else x.held


def warpgroup_mma(a, b, acc, *, use_acc=True, precision=None, max_num_imprecise_acc=None, is_async=False):
    me = this()
    me.switch()
    shape = (a.shape[0], b.shape[1])
    if a.shape[1] != b.shape[0] or a.dtype is not b.dtype or tuple(acc.shape) != shape or shape[0] != 64:
        raise Fault(
            f"{here()} multiplies {a.dtype.name}{a.shape} by {b.dtype.name}{b.shape} into {acc.shape}"
        )
    me.product_lane.step()
    for operand in (a, b):
        if isinstance(operand, View):
            _started(me, me.product_lane, operand, "record_read")
    found = Accumulator(me.product_lane.count, shape, here())

    def multiply():
        found.sums = product(a.held, b.held, _summed(acc) if use_acc else None).held

    me.scheduler.later("product", multiply, me.products)
    return found if is_async else warpgroup_mma_wait(0, (found,))


def warpgroup_mma_wait(num_outstanding=0, deps=None):
    me = this()
    me.switch()
    left = number(num_outstanding)
    _finish(me, me.products, me.product_lane, left)
    flying = lambda one: isinstance(one, Accumulator) and one.number > me.product_lane.count - left  # noqa: E731
    found = tuple(one if flying(one) else Block(_summed(one), one.dtype) for one in deps)
    return found[0] if len(found) == 1 else found


def atomic_add(pointer, value, sem=None):
    this().switch()
    held, at = pointer.memory.held, int(pointer.offset)
    before = held[at].copy()
    held[at] += number(value)
    return Block(before, pointer.dtype)


def program_id(axis):
    return block(this().program[0] if axis == 0 else 0).to(int32)


def num_programs(axis):
    return block(this().program[1] if axis == 0 else 1).to(int32)


def _named(name, value):
    """Shared memory is known by the names of parameters."""
    if isinstance(value, View):
        _named(name, value.slot.memory)
    elif isinstance(value, Memory) and value.name.startswith("memory of"):
        value.name = name
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for field, member in zip(value._fields, value, strict=True):
            _named(f"{name}.{field}", member)


def warp_specialize(functions, worker_num_warps, worker_num_regs):
    me, parts = this(), []
    if len(worker_num_warps) != len(functions) - 1:
        raise Fault(f"{here()} names warps of {len(worker_num_warps)} of {len(functions) - 1} workers")
    for place, (function, arguments) in enumerate(functions):
        code = function.__code__
        for name, value in zip(code.co_varnames[: code.co_argcount], arguments, strict=False):
            _named(name, value)
        part = Partition(
            me.scheduler,
            f"partition {place}",
            f"{me.label}, partition {place} ({function.__name__})",
            lambda function=function, arguments=arguments: function(*arguments),
            me.release(),
            me.program,
        )
        parts.append(part)
        me.scheduler.add(part)
    me.switch((lambda: all(part.ended for part in parts), lambda: "waits for its partitions"))
    for part in parts:
        me.knowledge.learn(part.knowledge)
        me.knowledge.seen[part.lane] = part.lane.count
