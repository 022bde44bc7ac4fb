"""The window rule: which keys an output sees, and which outputs see a key, on one axis."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
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

    def keys(self, output: int) -> range:
        """Keys that `output` sees: one to `size` of them, `dilation` apart."""
        position, group = divmod(output * self.output_stride, self.dilation)
        length = -(-(self.length - group) // self.dilation)
        shared = position // self.stride * self.stride
        if self.causal:
            start = max(min(shared + self.stride, length) - self.size, 0)
            stop = position + 1
        else:
            leader = min(shared + self.stride // 2, length - 1)
            start = min(max(leader - self.size // 2, 0), length - self.size)
            stop = start + self.size
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
