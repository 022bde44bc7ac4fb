"""A user's arguments become numbers that hold together, or one error that says what to change."""

from collections.abc import Sequence
from math import prod
from numbers import Integral, Real
from typing import TypeVar, cast

from .window import Axis

# Operands that may be None.
OPTIONAL = ("bias", "additional_keys", "additional_values")
# Windows travel as int64, and lie in tables of int32.
_MOST = 2**31 - 1
_AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}

Sizes = int | tuple[int, ...] | list[int]
Flags = bool | tuple[bool, ...] | list[bool]
Shape = Sequence[int]
Entry = TypeVar("Entry", int, bool)
Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...], tuple[int, ...]]


def window(
    lengths: Sequence[int] | None,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    output_stride: Sizes = 1,
    rank: int | None = None,
) -> Window:
    """Check a window, against the `lengths` of the input where they are known already; else give the `rank`.

    Returns:
        `(kernel_size, stride, dilation, is_causal, output_stride)`, each a tuple with one entry per axis.

    Raises:
        TypeError: an entry is not an integer (or not a bool, for `is_causal`).
        ValueError: an entry, or two together, break a rule; the message names axis, values and way out.
    """
    rank = len(lengths or ()) if rank is None else rank
    sizes = _integers("kernel_size", kernel_size, rank)
    strides = _integers("stride", stride, rank)
    dilations = _integers("dilation", dilation, rank)
    outputs = _integers("output_stride", output_stride, rank)
    causal = _per_axis("is_causal", is_causal, rank, bool)
    for axis, (size, step) in enumerate(zip(sizes, strides, strict=True)):
        if step > size:
            raise ValueError(
                f"stride {step} is over kernel_size {size} on axis {axis}; some keys would be seen by "
                "no query, so lower stride or raise kernel_size"
            )
    for axis, length in enumerate(lengths or ()):
        size, apart = sizes[axis], dilations[axis]
        if length == 0:
            raise ValueError(
                f"axis {axis} is empty: spatial shape {_shape(lengths or ())}; "
                "pass at least one token per axis"
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
    if isinstance(scale, bool) or not isinstance(scale, Real):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"scale is {scale!r}, of type {_type(scale)}; pass a float, or None for dim ** -0.5")
    return float(scale)


def attention(
    query: Shape, key: Shape, value: Shape, extra_key: Shape | None = None, extra_value: Shape | None = None
) -> None:
    """Check the shapes `[batch, ..., heads, dim]` of an attention's operands against one another.

    Raises:
        ValueError: batch, heads, head dimension or the number of additional tokens do not fit together.
    """
    _elements("query", query)
    if len(query) != len(key):
        raise ValueError(
            f"key {_shape(key)} has {len(key)} axes, query {_shape(query)} has {len(query)}; pass the same"
        )
    if tuple(key[:-1]) != tuple(value[:-1]):
        raise ValueError(
            f"key {_shape(key)} and value {_shape(value)} differ before the last axis; "
            "they hold the same tokens and heads"
        )
    if key[0] != query[0]:
        raise ValueError(f"key has batch {key[0]}, query has {query[0]}; expand one of them")
    if key[-1] != query[-1]:
        raise ValueError(f"key has head dim {key[-1]}, query has {query[-1]}; only value's may differ")
    _elements("value", value)
    heads(query[-2], key[-2])
    if (extra_key is None) != (extra_value is None):
        lone = "additional_keys" if extra_value is None else "additional_values"
        raise ValueError(
            f"{lone} came alone; pass additional_keys and additional_values together, or neither"
        )
    if extra_key is None or extra_value is None:
        return
    extra("additional_keys", extra_key, "key", key)
    extra("additional_values", extra_value, "value", value)
    if extra_key[1] != extra_value[1]:
        raise ValueError(
            f"additional_keys {_shape(extra_key)} and additional_values {_shape(extra_value)} differ in "
            f"tokens, {extra_key[1]} and {extra_value[1]}; each additional key has one value"
        )


def extra(name: str, shape: Sequence[int], like_name: str, like: Sequence[int]) -> None:
    """Additional tokens have the batch, heads and head dim of what they are added to."""
    if len(shape) != 4 or shape[0] != like[0] or tuple(shape[-2:]) != tuple(like[-2:]):
        raise ValueError(
            f"{name} {_shape(shape)} must be [batch, tokens, kv_heads, dim] with the batch, heads and head "
            f"dim of {like_name}: {_shape((like[0], 'tokens', *like[-2:]))}"
        )


def spatial(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Spatial lengths of `[batch, *spatial, heads, dim]`."""
    if not 4 <= len(shape) <= 6:
        raise ValueError(
            f"{name} {_shape(shape)} has {len(shape)} axes; "
            "pass [batch, *spatial, heads, dim] with 1 to 3 spatial axes"
        )
    _elements(name, shape)
    return tuple(shape[1:-2])


def same_spatial(lengths: Sequence[int], key: Sequence[int]) -> None:
    """Queries and keys of a neighborhood attention are the same tokens."""
    if tuple(key[1:-2]) != tuple(lengths):
        raise ValueError(
            f"key and value have spatial shape {_shape(key[1:-2])}, query has {_shape(lengths)}; "
            "neighborhood attention needs the same tokens in all three"
        )


def pinned(rank: int, name: str, shape: Sequence[int]) -> None:
    """A function with a rank in its name takes that many spatial axes."""
    if len(shape) == rank + 3:
        return
    other = len(shape) - 3
    hint = f"; for this shape call the {other}-D function" if 1 <= other <= 3 else ""
    raise ValueError(
        f"{name} {_shape(shape)} has {len(shape)} axes; a {rank}-D operation takes {rank + 3}, "
        f"[batch, {', '.join(_AXES[rank])}, heads, dim]{hint}"
    )


def dense(query: Sequence[int], key: Sequence[int]) -> None:
    """Dense attention takes one axis of tokens and needs a key."""
    if len(query) != 4:
        raise ValueError(
            f"query {_shape(query)} has {len(query)} axes; dense attention takes [batch, tokens, heads, dim]"
        )
    if key[1:2] == (0,):
        raise ValueError(f"key {_shape(key)} holds no tokens; pass at least one")


def heads(query_heads: int, kv_heads: int, name: str = "query") -> None:
    """Query heads must be a multiple of key/value heads."""
    if query_heads == kv_heads:
        return
    if kv_heads == 0 or query_heads % kv_heads:
        raise ValueError(
            f"{name} has {query_heads} heads, not a multiple of the {kv_heads} of key and value; "
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
    """Weights `[batch, *outputs, heads, slots]` for values `like` `[batch, *spatial, kv_heads, dim]`."""
    count = prod(sizes)
    slots = count + extra
    expected = (like[0], *outputs)
    if tuple(shape[:-2]) != expected or shape[-1] != slots:
        tokens = f" and {extra} additional tokens" if extra else ""
        raise ValueError(
            f"attention_weights {_shape(shape)} must be [batch, *spatial, heads, slots] = "
            f"{_shape((*expected, 'heads', slots))}, for {count} keys a window{tokens}"
        )
    heads(shape[-2], like[-2], "attention_weights")


def layer(embed_dim: int, num_heads: int, num_kv_heads: int | None) -> tuple[int, int, int]:
    """Channels divide into heads, and heads into groups; `num_heads` of them if None."""
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    (embed_dim,) = _integers("embed_dim", embed_dim, 1)
    (num_heads,) = _integers("num_heads", num_heads, 1)
    (num_kv_heads,) = _integers("num_kv_heads", kv_heads, 1)
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}; change one of them"
        )
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_heads {num_heads} is not a multiple of num_kv_heads {num_kv_heads}; change one of them"
        )
    return embed_dim, num_heads, num_kv_heads


def drop(name: str, rate: float) -> float:
    """A probability of dropout."""
    if isinstance(rate, bool) or not isinstance(rate, Real):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name} is {rate!r}, of type {_type(rate)}; pass a number from 0 to 1")
    if not 0 <= rate <= 1:
        raise ValueError(f"{name} is {rate}; pass a number from 0 to 1")
    return float(rate)


def channels_last(rank: int, shape: Sequence[int], embed_dim: int) -> None:
    """A layer takes `[batch, *spatial, embed_dim]`."""
    if len(shape) != rank + 2 or shape[-1] != embed_dim:
        raise ValueError(
            f"input {_shape(shape)} must be [batch, {', '.join(_AXES[rank])}, {embed_dim}], channels last; "
            "permute it or use the layer of its rank"
        )


def listed(name: str, value: object) -> None:
    """One array for every part of an attention; a single array would be taken apart along its batch."""
    instance(name, value, (list, tuple), "a list with one for every part")


def parts(outputs: Sequence[Sequence[int]], lses: Sequence[Sequence[int]]) -> None:
    """Parts of an attention are of one shape, and each has its log-sum-exp."""
    if not outputs or len(outputs) != len(lses):
        raise ValueError(
            f"{len(outputs)} outputs and {len(lses)} log-sum-exps; pass one of each for every part"
        )
    for place, (output, lse) in enumerate(zip(outputs, lses, strict=True)):
        if output != outputs[0] or lse != output[:-1]:
            raise ValueError(
                f"part {place} has output {_shape(output)} and log-sum-exp {_shape(lse)}; each part is "
                f"{_shape(outputs[0])} and {_shape(outputs[0][:-1])}, as the first"
            )


def packed(query: Shape, key: Shape, value: Shape) -> None:
    """Packed operands are `[tokens, heads, dim]`, of the same tokens."""
    for name, shape in (("query", query), ("key", key), ("value", value)):
        if len(shape) != 3 or shape[-1] == 0:
            raise ValueError(f"{name} {_shape(shape)} must be [tokens, heads, dim], with a dim of 1 or more")
        if shape[0] != query[0]:
            raise ValueError(f"{name} has {shape[0]} tokens, query has {query[0]}; they are the same tokens")
    if key[1] != value[1]:
        raise ValueError(f"value has {value[1]} heads, key has {key[1]}; they must be the same")


def sizes(shape: Shape, batch: int, rank: int) -> None:
    """Sizes of a padded batch are `[batch, spatial axes]`, or `[batch]` where there is one axis."""
    if tuple(shape) == (batch, rank) or (rank == 1 and tuple(shape) == (batch,)):
        return
    wanted = _shape((batch, rank)) + f" or {_shape((batch,))}" * (rank == 1)
    raise ValueError(f"sizes {_shape(shape)} must be [batch, spatial axes], here {wanted}")


def fit(value: object) -> bool:
    """Whether a window is clipped to a document that is shorter."""
    one_of("fit", value, ("error", "clip"))
    return value == "clip"


def instance(name: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """`value` must be of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is of type {_type(value)}; pass {wanted}")


def dtype(name: str, value: object, allowed: Sequence[object]) -> None:
    """The dtype of an operand must be among `allowed`."""
    if value not in allowed:
        *others, last = (str(x).rpartition(".")[2] for x in allowed)
        raise TypeError(f"{name} has dtype {value}; pass {', '.join(others)} or {last}")


def backend(name: object) -> None:
    """A backend is asked for by name."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"backend is {name!r}; pass the name of a backend, or None")


def whole(value: object) -> int | None:
    """An integer of any library as Python's; None for a bool, and for all else."""
    return None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)


def one_of(what: str, value: object, allowed: Sequence[object]) -> None:
    """`value` must be among `allowed`."""
    if value not in allowed:
        raise ValueError(f"{what} is {value}; pass {' or '.join(dict.fromkeys(map(str, allowed)))}")


def same(kind: str, values: dict[str, object]) -> None:
    """Dtypes, devices or batches that must agree; `values` maps argument names to what each holds."""
    first_name, first = next(iter(values.items()))
    for name, value in values.items():
        if value != first:
            raise ValueError(f"{name} has {kind} {value}, {first_name} has {first}; they must be the same")


def _elements(name: str, shape: Sequence[int]) -> None:
    if tuple(shape[-1:]) == (0,):
        raise ValueError(f"{name} {_shape(shape)} has head dim 0; pass at least one element per head")


def _integers(name: str, value: object, rank: int) -> tuple[int, ...]:
    values = _per_axis(name, value, rank, int)
    for axis, entry in enumerate(values):
        if entry < 1:
            raise ValueError(f"{name} is {entry} on axis {axis}; pass an integer of 1 or more")
        if entry > _MOST:
            raise ValueError(f"{name} is {entry} on axis {axis}; pass an integer of {_MOST} or less")
    return values


def _per_axis(name: str, value: object, rank: int, kind: type[Entry]) -> tuple[Entry, ...]:
    values: tuple[object, ...] = (value,) * rank
    if isinstance(value, (tuple, list)):
        values = tuple(cast("Sequence[object]", value))
        if len(values) != rank:
            raise ValueError(
                f"{name} {values} has {len(values)} entries for {rank} spatial axes; pass one, or one per "
                "axis"
            )
    elif type(value) is kind:
        return cast("tuple[Entry, ...]", values)
    return tuple(_entry(name, cast("object", value), entry, kind) for entry in values)


def _entry(name: str, value: object, entry: object, kind: type[Entry]) -> Entry:
    if isinstance(entry, kind) and isinstance(entry, bool) == (kind is bool):
        return entry
    number = whole(entry) if kind is int else None
    if number is not None:
        return cast("Entry", number)
    wanted = "an integer" if kind is int else "True or False"
    raise TypeError(f"{name} is {value!r}; each entry is {wanted}, this one is of type {_type(entry)}")


def _type(value: object) -> str:
    """The name of its type, with the library's where it is not Python's own: numpy has a `bool` too."""
    found = type(value)
    return found.__name__ if found.__module__ == "builtins" else f"{found.__module__}.{found.__name__}"


def _shape(shape: Sequence[object]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
