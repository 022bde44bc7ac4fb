"""Split operations as NATTEN had them before 0.20: heads first, and no scale."""

from collections.abc import Callable

from .front import Array, Flags, Front, Sizes, given


def operations(front: Front, rank: int) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Scores, and sums of values, of arrays `[batch, heads, *spatial, ...]`."""
    dot, mix, move = front.ranked(rank, "_qk"), front.ranked(rank, "_av"), front.move
    # The public functions say what is wrong with nothing.
    last = lambda x: None if x is None else move(x, 1, -2)  # noqa: E731

    def qk(
        query: Array,
        key: Array,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        is_causal: Flags | None = False,
        bias: Array | None = None,
        additional_keys: Array | None = None,
    ) -> Array:
        """`[batch, heads, *spatial, slots + tokens]`."""
        scores = dot(
            last(query),
            last(key),
            kernel_size,
            dilation=given(dilation, 1),
            is_causal=given(is_causal, False),
            scale=1.0,
            bias=bias,
            additional_keys=last(additional_keys),
        )
        return move(scores, -2, 1)

    def av(
        attn: Array,
        value: Array,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        is_causal: Flags | None = False,
        additional_values: Array | None = None,
    ) -> Array:
        """`[batch, heads, *spatial, dim]`."""
        out = mix(
            last(attn),
            last(value),
            kernel_size,
            dilation=given(dilation, 1),
            is_causal=given(is_causal, False),
            additional_values=last(additional_values),
        )
        return move(out, -2, 1)

    return qk, av
