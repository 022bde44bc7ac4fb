"""Partitions that take turns by a seeded schedule, what runs beside them, and who knows what of whom.

Everything that happens at a moment of its own is a task: a partition, until it waits, or an event, such as
the landing of a copy. A schedule ranks the tasks and runs the first that can go on; at random moments it
draws new ranks, so one seed starves a partition, another delays every copy for as long as it can.
"""

import random
import sys
import threading
from pathlib import Path

FOLDER = Path(__file__).parent
# The kind of what is not in a `warp_specialize`.
PROGRAM = "program"


class Fault(AssertionError):
    """What the hardware leaves undefined, or would hang in."""


class Stopped(BaseException):
    """Ends the thread of a partition after a fault elsewhere."""


def here():
    """The lines of a kernel that the caller was called from, innermost first."""
    frame, lines = sys._getframe(1), []
    while frame is not None and len(lines) < 3:
        path = Path(frame.f_code.co_filename)
        if path.parent != FOLDER:
            lines.append(f"{path.name}:{frame.f_lineno} {frame.f_code.co_name}")
        elif lines:
            break
        frame = frame.f_back
    return " < ".join(lines)


class Knowledge:
    """What happened before a moment, per lane of things that happen in order (a vector clock).

    `shown` is the same for what a proxy fence has shown to asynchronous operations.
    """

    __slots__ = ("seen", "shown")

    def __init__(self, seen=(), shown=()):
        self.seen, self.shown = dict(seen), dict(shown)

    def copy(self):
        return Knowledge(self.seen, self.shown)

    def learn(self, other):
        for own, news in ((self.seen, other.seen), (self.shown, other.shown)):
            for lane, count in news.items():
                if own.get(lane, 0) < count:
                    own[lane] = count

    def fence(self):
        self.learn(Knowledge((), self.seen))


class Lane:
    """Things that happen one after the other."""

    def __init__(self, name):
        self.name, self.count = name, 0

    def step(self):
        self.count += 1
        return self.count


class Event:
    """Something that happens by itself, once those of its queue before it have."""

    def __init__(self, kind, act, queue):
        self.kind, self.act, self.queue, self.done = kind, act, queue, False

    def run(self):
        """This event, after those that it stands behind."""
        while not self.done:
            first = self.queue.pop(0)
            first.done = True
            first.act()


class Partition(threading.Thread):
    """One function of a `warp_specialize`, or the whole program around it."""

    def __init__(self, scheduler, kind, label, call, knowledge, program):
        super().__init__(daemon=True)
        self.scheduler, self.kind, self.label, self.call = scheduler, kind, label, call
        self.knowledge, self.program = knowledge, program
        self.lane = Lane(label)
        self.knowledge.seen[self.lane] = self.lane.step()
        # Phases that it has waited for; events that it has started and not waited for.
        self.observed, self.products, self.stores = {}, [], []
        self.memories = []
        self.product_lane, self.store_lane = Lane("products"), Lane("stores")
        self.may_run, self.blocked, self.failure, self.ended = threading.Semaphore(0), None, None, False

    def run(self):
        self.may_run.acquire()
        try:
            if not self.scheduler.stopping:
                self.call()
                for lane in (self.product_lane, self.store_lane):
                    if self.knowledge.seen.get(lane, 0) < lane.count:
                        raise Fault(f"{self.label} ends without having waited for its {lane.name}")
        except Stopped:
            pass
        except BaseException as failure:
            # Raised again by the scheduler.
            self.failure = failure
        self.ended = True
        self.scheduler.idle.release()

    def release(self):
        """What this partition knows, for another; what it does from now on is not part of it."""
        known = self.knowledge.copy()
        self.knowledge.seen[self.lane] = self.lane.step()
        return known

    def switch(self, blocked=None):
        """Lets others run, until `blocked`, a function and why, is over."""
        self.blocked = blocked
        self.scheduler.idle.release()
        self.may_run.acquire()
        if self.scheduler.stopping:
            raise Stopped
        self.blocked = None

    def can_run(self):
        return not self.ended and (self.blocked is None or self.blocked[0]())


class Schedule:
    """Ranks of kinds of tasks. `order` names kinds, first to run first; `restless` is how often ranks change.

    Kinds are "partition 0", "partition 1", ... and "load", "store", "product".
    """

    def __init__(self, seed=0, order=None, restless=None):
        self.random = random.Random(seed)
        self.order = order
        self.restless = self.random.choice((0.0, 0.02, 0.2, 1.0)) if restless is None else restless
        self.ranks = {} if order is None else {kind: rank - len(order) for rank, kind in enumerate(order)}

    def first(self, tasks):
        if self.random.random() < self.restless:
            self.ranks = {}
        return min(tasks, key=lambda task: self._rank(task.kind))

    def _rank(self, kind):
        if kind not in self.ranks:
            self.ranks[kind] = self.random.random()
        return self.ranks[kind]


class Scheduler:
    """Runs programs to their end, one task at a time."""

    def __init__(self, schedule):
        self.schedule, self.stopping = schedule, False
        self.idle, self.partitions, self.queues = threading.Semaphore(0), [], []

    def add(self, partition):
        self.partitions.append(partition)
        partition.start()

    def later(self, kind, act, queue=None):
        """An event; those of one queue happen in their order."""
        queue = [] if queue is None else queue
        queue.append(Event(kind, act, queue))
        if not any(queue is known for known in self.queues):
            self.queues.append(queue)
        return queue[-1]

    def run(self):
        try:
            while self.partitions:
                self._step()
            for queue in self.queues:
                assert not queue, "something is under way after the end"
        finally:
            self.stopping = True
            for partition in self.partitions:
                if not partition.ended:
                    partition.may_run.release()
                partition.join()

    def _step(self):
        self.queues = [queue for queue in self.queues if queue]
        tasks = [partition for partition in self.partitions if partition.can_run()]
        tasks += [queue[0] for queue in self.queues]
        if not tasks:
            raise Fault(
                "deadlock:\n"
                + "\n".join(f"  {p.label} {p.blocked[1]()}" for p in self.partitions if p.blocked)
            )
        task = self.schedule.first(tasks)
        if isinstance(task, Event):
            task.run()
            return
        task.may_run.release()
        self.idle.acquire()
        if task.ended:
            self.partitions.remove(task)
            task.join()
            if task.failure is not None:
                raise task.failure
