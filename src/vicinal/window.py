"""The window rule: which keys an output sees, and which outputs see a key, on one axis."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import repeat
from math import gcd


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a neighborhood attention problem, in numbers that `arguments.py` has checked.

    Args:
        length: tokens on the axis.
        size: keys in a window (`kernel_size`).
        stride: queries that share one window's leader; the output keeps its shape.
        dilation: distance between neighboring keys of a window.
        causal: whether a query sees only keys at or before itself.
        output_stride: distance between the queries that are computed; output `o` is of token
            `o * output_stride`.
    """

    length: int
    size: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False
    output_stride: int = 1

    @property
    def outputs(self) -> int:
        """Outputs on the axis."""
        return -(-self.length // self.output_stride)

    @property
    def period(self) -> int:
        """Distance between outputs of one dilation group."""
        return self.dilation // gcd(self.dilation, self.output_stride)

    @property
    def covers(self) -> bool:
        """Whether every output sees every key."""
        return self.size == self.length and not (self.causal and self.length > 1)

    def positions(self, outputs: range) -> range:
        """Where in their dilation group the tokens of `outputs` are, all of one group."""
        start = outputs.start * self.output_stride // self.dilation
        step = max(outputs.step * self.output_stride // self.dilation, 1)
        return range(start, start + step * len(outputs), step)

    def seen(self, outputs: range) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First key of each of `outputs` of one dilation group, and the one behind its last, counted in the
        group; neither ever decreases."""
        positions, group = self.positions(outputs), outputs.start * self.output_stride % self.dilation
        shared = positions if self.stride == 1 else [at - at % self.stride for at in positions]
        lead = self.stride - self.size if self.causal else self.stride // 2 - self.size // 2
        last = -(-(self.length - group) // self.dilation) - self.size
        low, high = bisect_left(shared, -lead), bisect_left(shared, last - lead)
        inside = [first + lead for first in shared[low:high]]
        starts = (*repeat(0, low), *inside, *repeat(last, len(outputs) - high))
        if self.causal:
            return starts, tuple([at + 1 for at in positions])
        return starts, tuple([start + self.size for start in starts])

    def keys(self, output: int) -> range:
        """Keys that `output` sees: one to `size` of them, `dilation` apart."""
        group = output * self.output_stride % self.dilation
        (start,), (stop,) = self.seen(range(output, output + 1))
        return range(group + start * self.dilation, group + (stop - 1) * self.dilation + 1, self.dilation)

    def group(self, key: int) -> range:
        """Outputs whose tokens lie in the dilation group of `key`."""
        residue = key % self.dilation
        members = (o for o in range(self.period) if o * self.output_stride % self.dilation == residue)
        return range(next(members, self.outputs), self.outputs, self.period)

    def queries(self, key: int) -> range:
        """Outputs that see `key`, `period` apart: one range, since no end of a window ever moves back."""
        outputs = self.group(key)
        start = bisect_left(outputs, key, key=lambda output: self.keys(output)[-1])
        stop = bisect_right(outputs, key, key=lambda output: self.keys(output)[0])
        return outputs[start:stop]

    def reach(self, outputs: range) -> range:
        """Smallest range that holds every key seen by `outputs`: what a tile or a shard must read."""
        first, last = outputs[: self.period], outputs[-self.period :]
        if not first:
            return range(0)
        start = min(self.keys(output)[0] for output in first)
        stop = max(self.keys(output)[-1] for output in last) + 1
        alone = outputs.step % self.period == 0 or len(outputs) == 1
        return range(start, stop, self.dilation if alone else 1)
