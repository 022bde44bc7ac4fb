"""What a Hopper kernel is compiled for."""

from dataclasses import dataclass
from math import prod

from ..window import Axis
from .hopper_counts import Triple

# Starts and widths of parts of a head dimension.
Cuts = tuple[tuple[int, int], ...]

# Size of an element of what is multiplied, but for queries and keys in float8.
BYTES = 2


@dataclass(frozen=True, slots=True)
class Spec:
    """The constants of one kernel; lengths, heads and strides are run-time numbers.

    Args:
        rules: window rule per axis; its length is 1 on an axis of one token, and elsewhere 0 without meaning.
        rows, columns: box of one warpgroup's rows, and of the columns that are visited together.
        tile: box of a program's rows: `rows` for each warpgroup, or several.
        split: axis along which the warpgroups share the tile.
        warpgroups: how many there are.
        masked: axes on which a visited box holds columns that a row does not see.
        dim, value_dim: head dimensions, padded to a power of two.
        cuts, value_cuts: start and width of the parts of the two that products take.
        key_bytes: size of an element of queries and keys.
        order: axes along which neighboring programs follow one another, fastest first.
        stages: boxes of columns in flight.
        value_stages: the same of values, which the forward needs later than keys, and gradients not as long;
            in gradients of keys and values, of gradients of outputs, or 0 where they share those of queries.
        depth: tiles whose queries, gradients of outputs, or keys and values are in shared memory.
        turns: whether the warpgroups of the forward take turns.
        persistent: whether programs compute tile after tile.
        held: whether rows are multiplied from registers: queries, or keys for their gradients.
        value_held: the same of gradients of outputs, or of values.
        lags: whether gradients of keys and values make both sums of a box beside the scores of the next.
        wants_query, wants_key, wants_value: which sums gradients keep.
        has_grad_lse: whether log-sum-exps have a gradient.
        slots: boxes of keys, per axis, that a box of queries meets at most, where slopes are kept for the
            gradient of queries; boxes of columns then start at multiples of their sides.
        ragged: whether the last tile has rows past the end of the tensor.
    """

    rules: tuple[Axis, ...]
    rows: Triple
    columns: Triple
    tile: Triple
    split: int
    masked: tuple[bool, ...]
    dim: int
    value_dim: int
    stages: int
    key_bytes: int = BYTES
    order: Triple = (2, 1, 0)
    value_stages: int = 0
    depth: int = 1
    warpgroups: int = 2
    turns: bool = False
    persistent: bool = False
    held: bool = False
    value_held: bool = False
    lags: bool = False
    cuts: Cuts = ()
    value_cuts: Cuts = ()
    wants_query: bool = True
    wants_key: bool = True
    wants_value: bool = True
    has_grad_lse: bool = False
    slots: Triple = ()
    ragged: bool = False

    @property
    def keeps(self) -> bool:
        """Whether slopes are kept in memory."""
        return len(self.slots) > 0

    @property
    def together(self) -> int:
        """Boxes of rows of a tile."""
        return prod(self.tile) // prod(self.rows)

    @property
    def each(self) -> int:
        """Boxes of rows of a warpgroup."""
        return self.together // self.warpgroups

    @property
    def width(self) -> int:
        """Columns of a box."""
        return prod(self.columns)

    @property
    def offset(self) -> Triple:
        """How far apart in the tile the rows of warpgroups start."""
        return tuple(rows if axis == self.split else 0 for axis, rows in enumerate(self.rows))

    @property
    def flat(self) -> tuple[bool, ...]:
        """Axes of one token."""
        return tuple(rule.length == 1 for rule in self.rules)

    @property
    def in_place(self) -> bool:
        """Whether outputs take the place of queries, which are done with when outputs are ready."""
        return self.dim == self.value_dim and self.key_bytes == BYTES

    @property
    def apart(self) -> bool:
        """Whether in gradients values, or gradients of outputs, have stages of their own."""
        return 0 < self.value_stages < self.stages

    @property
    def at_once(self) -> bool:
        """Whether gradients that lag wait for all products of a box before its weights.

        Masks come from shared memory, which answers late while products read it. Two boxes are held while the
        next is waited for.
        """
        return self.lags and self.masks and self.stages > 2

    @property
    def later(self) -> int:
        """Products that gradients of keys and values start after a box's scores, and wait for later."""
        if self.at_once or not self.wants_key:
            return 0
        sums = 0 if self.apart else len(self.cuts) + self.lags * len(self.value_cuts)
        return sums + len(self.value_cuts)

    @property
    def masks(self) -> bool:
        return any(self.masked)

    @property
    def places(self) -> Triple:
        """Where in `order` each axis stands."""
        return tuple(self.order.index(axis) for axis in range(3))

    @property
    def veiled(self) -> bool:
        """Whether columns of the last axis are few enough to be hidden for all rows of a box at once."""
        return self.masked[2] and 8 <= self.columns[2] <= 32

    @property
    def mask_count(self) -> int:
        return sum(self.masked)

    @property
    def mask_places(self) -> Triple:
        """Masked axes that come before each axis."""
        return tuple(sum(self.masked[:axis]) for axis in range(3))

    @property
    def sizes(self) -> Triple:
        """Keys in every window of an axis, 0 where windows differ."""
        return tuple(0 if rule.causal else rule.size for rule in self.rules)

    @property
    def dilation(self) -> Triple:
        return tuple(rule.dilation for rule in self.rules)

    @property
    def described(self) -> bool:
        """Whether a program describes its dilation group itself, and computes one tile."""
        return not self.persistent

    @property
    def dilated(self) -> bool:
        return any(rule.dilation > 1 for rule in self.rules)
