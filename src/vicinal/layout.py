"""Documents of different shapes in one tensor: where each one lies, and which are computed together."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple, TypeVar, cast

from . import arguments
from .arguments import Sizes, Window
from .problem import Documents

Shape = tuple[int, ...]
Layout = TypeVar("Layout", bound="VarlenLayout")


class VarlenLayout:
    """Shapes of documents packed one after another, each row-major, along one axis of tokens.

    Picklable; equal to every layout of the same shapes, and hashed like it.

    Args:
        shapes: one spatial shape per document, all of the same 1 to 3 axes; an integer is a shape of one
            axis. A document with an extent of 0 is empty.
        rank: axes of a document; needed only where there are none.

    Raises:
        TypeError, ValueError: a shape is not what is said above.
    """

    def __init__(self, shapes: Sequence[int | Sequence[int]], rank: int | None = None) -> None:
        self.shapes, self.rank = _checked(shapes, rank)
        self.offsets = (0, *accumulate(map(prod, self.shapes)))

    @classmethod
    def from_tensors(cls: type[Layout], documents: Sequence[Any]) -> Layout:
        """The layout of documents `[*shape, heads, dim]`, in their order."""
        shapes = _extents(documents)
        for place, shape in enumerate(shapes):
            if not 3 <= len(shape) <= 5:
                raise ValueError(
                    f"document {place} is {list(shape)}; pass [*shape, heads, dim] with 1 to 3 spatial axes"
                )
        return cls([shape[:-2] for shape in shapes])

    @property
    def total_tokens(self) -> int:
        """Tokens of all documents."""
        return self.offsets[-1]

    def sampled(self: Layout, output_stride: Sizes) -> Layout:
        """The layout of the outputs where only queries `output_stride` apart are computed."""
        steps = arguments.window(None, 1, output_stride=output_stride, rank=self.rank)[4]
        shapes = [
            tuple(-(-extent // step) for extent, step in zip(shape, steps, strict=True))
            for shape in self.shapes
        ]
        return type(self)(shapes, self.rank)

    def split(self, packed: Any) -> list[Any]:
        """The documents `[*shape, ...]` of a packed tensor `[total_tokens, ...]`, without a copy."""
        shape = _extent("packed tensor", packed)
        if shape[:1] != (self.total_tokens,):
            raise ValueError(
                f"packed tensor {list(shape)} has no axis of {self.total_tokens} tokens first; pass "
                "one that this layout describes"
            )
        return [
            packed[start : start + prod(shape)].reshape(*shape, *packed.shape[1:])
            for start, shape in zip(self.offsets, self.shapes, strict=False)
        ]

    def __len__(self) -> int:
        return len(self.shapes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VarlenLayout) and (self.shapes, self.rank) == (other.shapes, other.rank)

    def __hash__(self) -> int:
        return hash((self.shapes, self.rank))

    def __reduce__(self) -> tuple[type["VarlenLayout"], tuple[tuple[Shape, ...], int]]:
        return type(self), (self.shapes, self.rank)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.shapes)}, rank={self.rank})"


class Group(NamedTuple):
    """Documents of one shape, in order, and the window that fits them."""

    shape: Shape
    documents: tuple[int, ...]
    window: Window

    @property
    def neighbors(self) -> bool:
        """Whether the documents follow one another."""
        return self.documents[-1] - self.documents[0] == len(self.documents) - 1


@lru_cache(256)
def groups(shapes: tuple[Shape, ...], window: Window, clip: bool) -> tuple[Group, ...]:
    """Documents that can be computed together; empty ones are in no group.

    Args:
        shapes: shape of every document.
        window: a window that `arguments.window` has checked.
        clip: whether a document shorter than the window attends to its whole extent.

    Raises:
        ValueError: a document is shorter than the window, and `clip` is false or cannot help.
    """
    found: dict[Shape, list[int]] = {}
    for document, shape in enumerate(shapes):
        if prod(shape):
            found.setdefault(shape, []).append(document)
    _fitting(found, window, clip)
    return tuple(Group(shape, tuple(mine), _clipped(shape, window)) for shape, mine in found.items())


def together(
    shapes: tuple[Shape, ...], frame: Shape | None, window: Window, clip: bool
) -> tuple[Shape, Documents]:
    """Lengths of the axes of a problem that holds all documents, and the documents, which `groups` has
    checked."""
    largest = [max(extents) for extents in zip(*filter(all, shapes), strict=True)] or [1] * len(window[0])
    reach = [size * apart for size, apart in zip(window[0], window[2], strict=True)]
    lengths = tuple(
        max(1 << (long - 1).bit_length(), most) for long, most in zip(largest, reach, strict=True)
    )
    short = any(extent < size for shape in shapes for extent, size in zip(shape, window[0], strict=True))
    return lengths, Documents(shapes, frame, clip and short)


def output_frame(
    places: VarlenLayout, frame: Shape | None, extent: int, steps: Sequence[int]
) -> Shape | None:
    """Extents of an entry of the outputs of a padded batch with entries of `frame`; None where packed.

    Raises:
        ValueError: documents do not fit into their entries, or are not the `extent` tokens packed.
    """
    if frame is not None:
        within(places.shapes, frame)
        return tuple(-(-room // step) for room, step in zip(frame, steps, strict=True))
    if places.total_tokens != extent:
        raise ValueError(
            f"query has {extent} tokens, its layout {places.total_tokens}; pass the layout it was packed by"
        )
    return None


def packable(places: VarlenLayout, documents: Sequence[Any], kind: type, wanted: str) -> None:
    """Arrays `[*shape, ...]` of a framework, of type `kind`, are the documents of a layout.

    Raises:
        TypeError: one is something else than `wanted`.
        ValueError: they are other documents or none, or differ in what a token holds.
    """
    if not len(documents):
        raise ValueError("there is no document to pack; make an empty array [0, heads, dim] instead")
    for place, x in enumerate(documents):
        arguments.instance(f"document {place}", x, kind, wanted)
    way_out = "pass the layout of these documents, VarlenLayout.from_tensors(documents)"
    if len(documents) != len(places):
        raise ValueError(f"there are {len(documents)} documents, {len(places)} in their layout; {way_out}")
    for place, (x, shape) in enumerate(zip(documents, places.shapes, strict=True)):
        if tuple(x.shape[: places.rank]) != shape:
            raise ValueError(
                f"document {place} {list(x.shape)} does not begin with {list(shape)}, its shape in the "
                f"layout; {way_out}"
            )
    named = {f"document {place}": x for place, x in enumerate(documents)}
    arguments.same("tokens of shape", {name: list(x.shape[places.rank :]) for name, x in named.items()})
    arguments.same("dtype", {name: x.dtype for name, x in named.items()})


def within(shapes: Sequence[Shape], frame: Shape) -> None:
    """Documents of a padded batch are no larger than the tensors that hold them.

    Raises:
        ValueError: one is.
    """
    for document, shape in enumerate(shapes):
        for axis, (extent, room) in enumerate(zip(shape, frame, strict=True)):
            if extent > room:
                raise ValueError(
                    f"sizes has {extent} for document {document} on axis {axis}, over the {room} tokens "
                    "there; lower it or pad the batch to its longest document"
                )


def _checked(shapes: object, rank: int | None) -> tuple[tuple[Shape, ...], int]:
    if not isinstance(shapes, Sequence) or isinstance(shapes, str):
        raise TypeError(f"shapes is of type {type(shapes).__name__}; pass a list with one per document")
    if rank is not None and arguments.whole(rank) not in (1, 2, 3):
        raise ValueError(f"rank is {rank!r}; pass 1, 2 or 3, or None to read it off the shapes")
    found: list[Shape] = []
    for document, entry in enumerate(cast("Sequence[object]", shapes)):
        shape: Shape = ()
        for extent in cast("Sequence[object]", entry) if isinstance(entry, Sequence) else (entry,):
            number = arguments.whole(extent)
            if number is None:
                raise TypeError(
                    f"document {document} has shape {entry!r}; each extent is an integer, one is of type "
                    f"{type(extent).__name__}"
                )
            shape += (number,)
        rank = len(shape) if rank is None else rank
        if len(shape) != rank:
            raise ValueError(
                f"document {document} has shape {list(shape)}, of {len(shape)} axes instead of {rank}; all "
                "documents of a layout have the same number"
            )
        if min(shape, default=0) < 0:
            raise ValueError(f"document {document} has shape {list(shape)}; pass extents of 0 or more")
        found.append(shape)
    if rank is None:
        raise ValueError("a layout of no documents cannot tell their axes; pass rank=")
    if rank not in (1, 2, 3):
        raise ValueError(f"documents have {rank} spatial axes; pass 1 to 3")
    return tuple(found), rank


def _extents(documents: Sequence[Any]) -> list[Shape]:
    return [_extent(f"document {place}", x) for place, x in enumerate(documents)]


def _extent(name: str, x: Any) -> Shape:
    if not hasattr(x, "shape"):
        raise TypeError(f"{name} is of type {type(x).__name__}; pass a tensor")
    return tuple(x.shape)


def _fitting(documents: Mapping[Shape, Sequence[int]], window: Window, clip: bool) -> None:
    """Windows fit into the documents of every shape, or can be clipped to them."""
    for axis, (size, apart) in enumerate(zip(window[0], window[2], strict=True)):
        if clip and apart == 1:
            continue
        short = sorted(
            (document, shape[axis])
            for shape, mine in documents.items()
            if size * apart > shape[axis]
            for document in mine
        )
        if not short:
            continue
        reach = f"kernel_size {size}" + (f" times dilation {apart} is {size * apart}," * (apart > 1) or " is")
        names = ", ".join(f"{document} ({extent} tokens)" for document, extent in short[:8])
        more = f" and {len(short) - 8} more" * (len(short) > 8)
        way_out = 'pass fit="clip" to let them attend to their whole extent'
        if clip:
            way_out = 'fit="clip" works only where dilation is 1, so lower one of the two or leave them out'
        elif apart > 1:
            way_out = "lower one of the two or leave them out"
        raise ValueError(f"{reach} over the extent on axis {axis} of documents {names}{more}; {way_out}")


def _clipped(shape: Shape, window: Window) -> Window:
    """`window`, cut to the whole axis where it is longer: there queries see the same keys at any stride."""
    sizes = tuple(map(min, window[0], shape))
    return sizes, tuple(map(min, window[1], sizes)), *window[2:]
