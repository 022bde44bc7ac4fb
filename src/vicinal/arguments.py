"""A user's arguments become numbers that hold together, or one error that says what to change."""

from collections.abc import Sequence
from math import prod
from numbers import Real

from .window import Axis

Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...], tuple[int, ...]]


def window(
    lengths: Sequence[int], kernel_size, stride=1, dilation=1, is_causal=False, output_stride=1
) -> Window:
    """Check a window against the spatial `lengths` of the input.

    Returns:
        `(kernel_size, stride, dilation, is_causal, output_stride)`, each a tuple with one entry per axis.

    Raises:
        TypeError: an entry is not an integer (or not a bool, for `is_causal`).
        ValueError: an entry, or two together, break a rule; the message names the axis, the values and the way out.
    """
    rank = len(lengths)
    sizes = _integers("kernel_size", kernel_size, rank)
    strides = _integers("stride", stride, rank)
    dilations = _integers("dilation", dilation, rank)
    outputs = _integers("output_stride", output_stride, rank)
    causal = _per_axis("is_causal", is_causal, rank, bool)
    for axis, length in enumerate(lengths):
        size, step, apart = sizes[axis], strides[axis], dilations[axis]
        if length == 0:
            raise ValueError(
                f"axis {axis} is empty: spatial shape {_shape(lengths)}; pass at least one token per axis"
            )
        if step > size:
            raise ValueError(
                f"stride {step} is over kernel_size {size} on axis {axis}; some keys would be seen by no query, "
                "so lower stride or raise kernel_size"
            )
        if size * apart > length:
            product = f"kernel_size {size}" + (
                f" times dilation {apart} is {size * apart}," if apart > 1 else " is"
            )
            raise ValueError(
                f"{product} over the {length} tokens of axis {axis}; lower one of them or pad the input"
            )
    return sizes, strides, dilations, causal, outputs


def axes(lengths: Sequence[int], checked: Window) -> tuple[Axis, ...]:
    """Axes of a window that `window` has checked."""
    return tuple(Axis(*numbers) for numbers in zip(lengths, *checked, strict=True))


def default_scale(scale: float | None, dim: int) -> float:
    """`scale`, or `dim ** -0.5` where it is None. Zero is a scale like any other."""
    if scale is None:
        return float(dim) ** -0.5 if dim else 1.0
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(
            f"scale is {scale!r}, of type {type(scale).__name__}; pass a float, or None for dim ** -0.5"
        )
    return float(scale)


def attention(query, key, value, extra_key=None, extra_value=None) -> None:
    """Check the shapes `[batch, ..., heads, dim]` of an attention's operands against one another.

    Raises:
        ValueError: batch, heads, head dimension or the number of additional tokens do not fit together.
    """
    if key[:-1] != value[:-1]:
        raise ValueError(
            f"key {_shape(key)} and value {_shape(value)} differ before the last axis; they hold the same tokens and heads"
        )
    _batch("key", query, key)
    _dim("key", query, key)
    heads(query[-2], key[-2])
    if (extra_key is None) != (extra_value is None):
        lone = "additional_keys" if extra_value is None else "additional_values"
        raise ValueError(
            f"{lone} came alone; pass additional_keys and additional_values together, or neither"
        )
    if extra_key is None:
        return
    if len(extra_key) != 4 or len(extra_value) != 4:
        raise ValueError(
            f"additional_keys {_shape(extra_key)} and additional_values {_shape(extra_value)} must be "
            "[batch, tokens, kv_heads, dim]"
        )
    if extra_key[:-1] != extra_value[:-1]:
        raise ValueError(
            f"additional_keys {_shape(extra_key)} and additional_values {_shape(extra_value)} differ before the last "
            "axis; they hold the same tokens and heads"
        )
    _batch("additional_keys", query, extra_key)
    for name, extra, like, against in (
        ("additional_keys", extra_key, "key", key),
        ("additional_values", extra_value, "value", value),
    ):
        if extra[-2:] != against[-2:]:
            raise ValueError(
                f"{name} {_shape(extra)} must have the heads and head dim of {like}, {against[-2]} and {against[-1]}"
            )


def spatial(rank: int | None, name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Spatial lengths of `[batch, *spatial, heads, dim]`, for a rank that is pinned or, if None, read off the shape."""
    found = len(shape) - 3
    if rank is None and not 1 <= found <= 3:
        raise ValueError(
            f"{name} {_shape(shape)} has {len(shape)} axes; pass [batch, *spatial, heads, dim] with 1 to 3 spatial axes"
        )
    if rank is not None and found != rank:
        spaces = ", ".join(("depth", "height", "width")[-rank:]) if rank > 1 else "length"
        hint = f"; for this shape call the {found}-D function" if 1 <= found <= 3 else ""
        raise ValueError(
            f"{name} {_shape(shape)} has {len(shape)} axes; a {rank}-D operation takes {rank + 3}, "
            f"[batch, {spaces}, heads, dim]{hint}"
        )
    return tuple(shape[1:-2])


def heads(query_heads: int, kv_heads: int) -> None:
    """Query heads must be a multiple of key/value heads."""
    if query_heads == kv_heads:
        return
    if kv_heads == 0 or query_heads % kv_heads:
        raise ValueError(
            f"query has {query_heads} heads, not a multiple of the {kv_heads} of key and value; "
            "grouped-query attention gives each key/value head the same number of query heads"
        )


def bias(shape: Sequence[int], query_heads: int, sizes: Sequence[int]) -> None:
    """A relative position bias holds one entry per head and relative position."""
    wanted = (query_heads, *(2 * size - 1 for size in sizes))
    if tuple(shape) != wanted:
        raise ValueError(
            f"bias {_shape(shape)} must be [heads, *(2 * kernel_size - 1)], here {_shape(wanted)}"
        )


def weights(
    shape: Sequence[int], outputs: Sequence[int], like: Sequence[int], sizes: Sequence[int], extra: int
) -> None:
    """Attention weights `[batch, *outputs, heads, window + extra]` for values `like` `[batch, *spatial, kv_heads, dim]`."""
    count = prod(sizes)
    slots = count + extra
    expected = (like[0], *outputs)
    if tuple(shape[:-2]) != expected or shape[-1] != slots:
        tokens = f" and {extra} additional tokens" if extra else ""
        raise ValueError(
            f"attention weights {_shape(shape)} must be [batch, *spatial, heads, slots] = "
            f"{_shape((*expected, 'heads', slots))}, for {count} keys a window{tokens}"
        )
    heads(shape[-2], like[-2])


def same(kind: str, values: dict[str, object]) -> None:
    """Dtypes, devices or batches that must agree; `values` maps argument names to what each holds."""
    first_name, first = next(iter(values.items()))
    for name, value in values.items():
        if value != first:
            raise ValueError(f"{name} has {kind} {value}, {first_name} has {first}; they must be the same")


def _batch(name: str, query: Sequence[int], other: Sequence[int]) -> None:
    if query[0] != other[0]:
        raise ValueError(f"{name} has batch {other[0]}, query has {query[0]}; expand one of them")


def _dim(name: str, query: Sequence[int], other: Sequence[int]) -> None:
    if query[-1] != other[-1]:
        raise ValueError(f"{name} has head dim {other[-1]}, query has {query[-1]}; only value's may differ")


def _integers(name: str, value, rank: int) -> tuple[int, ...]:
    values = _per_axis(name, value, rank, int)
    for axis, entry in enumerate(values):
        if entry < 1:
            raise ValueError(f"{name} is {entry} on axis {axis}; pass an integer of 1 or more")
    return values


def _per_axis(name: str, value, rank: int, kind: type) -> tuple:
    if isinstance(value, (tuple, list)):
        values = tuple(value)
        if len(values) != rank:
            raise ValueError(
                f"{name} {values} has {len(values)} entries for {rank} spatial axes; pass one, or one per axis"
            )
    else:
        values = (value,) * rank
    for entry in values:
        if isinstance(entry, bool) != (kind is bool) or not isinstance(entry, kind):
            article = "an integer" if kind is int else "True or False"
            raise TypeError(
                f"{name} is {value!r}; each entry is {article}, this one is of type {type(entry).__name__}"
            )
    return values


def _shape(shape: Sequence) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
