"""Sequences packed along one axis, as NATTEN 0.21 takes them: each is attended on its own."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from . import knobs
from .front import Array, Front, named


def functions(front: Front, module: str) -> tuple[Callable, ...]:
    """`attention` and `generate_varlen_parameters`."""

    def generate(
        query: Array,
        key: Array,
        value: Array,
        seqlens_Q: Array | None = None,
        seqlens_KV: Array | None = None,
    ) -> tuple[Array | None, Array | None, int, int]:
        """Offsets of packed sequences of given lengths, and the longest; `(None, None, 0, 0)` for none."""
        if (seqlens_Q is None) != (seqlens_KV is None):
            raise ValueError("seqlens_Q and seqlens_KV belong together; pass both or neither")
        if seqlens_Q is None or seqlens_KV is None:
            return None, None, 0, 0
        counts = [_lengths(*given) for given in (("seqlens_Q", seqlens_Q), ("seqlens_KV", seqlens_KV))]
        offsets = [front.integers(list(accumulate(one, initial=0)), seqlens_Q) for one in counts]
        return offsets[0], offsets[1], max(counts[0]), max(counts[1])

    def attention(
        query: Array,
        key: Array,
        value: Array,
        is_causal: bool = False,
        scale: float | None = None,
        seqlens_Q: Array | None = None,
        seqlens_KV: Array | None = None,
        cumulative_seqlen_Q: Array | None = None,
        cumulative_seqlen_KV: Array | None = None,
        max_seqlen_Q: int | None = None,
        max_seqlen_KV: int | None = None,
        backend: str | None = None,
        q_tile_size: int | None = None,
        kv_tile_size: int | None = None,
        backward_q_tile_size: int | None = None,
        backward_kv_tile_size: int | None = None,
        backward_kv_splits: int | None = None,
        backward_use_pt_reduction: bool = False,
        run_persistent_kernel: bool = True,
        kernel_schedule=None,
        torch_compile: bool = False,
        return_lse: bool = False,
    ):
        """Dense attention; with lengths or offsets, of each sequence in `[1, tokens, heads, dim]` on its own.

        From `backend` to `torch_compile` nothing changes a number.
        """
        tiles = (q_tile_size, kv_tile_size, backward_q_tile_size, backward_kv_tile_size)
        flags = (backward_use_pt_reduction, run_persistent_kernel, torch_compile)
        knobs.check(None, backend, kernel_schedule, tiles, backward_kv_splits, flags)
        dense = front.na.attention
        if cumulative_seqlen_Q is None and cumulative_seqlen_KV is None:
            found = generate(query, key, value, seqlens_Q, seqlens_KV)
            cumulative_seqlen_Q, cumulative_seqlen_KV = found[:2]
        if cumulative_seqlen_Q is None and cumulative_seqlen_KV is None:
            return dense(query, key, value, is_causal, scale, return_lse=return_lse)
        if cumulative_seqlen_Q is None or cumulative_seqlen_KV is None:
            raise ValueError(
                "cumulative_seqlen_Q and cumulative_seqlen_KV belong together; pass both or neither"
            )
        rows, columns = cumulative_seqlen_Q.tolist(), cumulative_seqlen_KV.tolist()
        check_pack(query, rows, "cumulative_seqlen_Q")
        check_pack(key, columns, "cumulative_seqlen_KV")
        parts = [
            dense(query[:, a:b], key[:, c:d], value[:, c:d], is_causal, scale, return_lse=True)
            for (a, b), (c, d) in zip(pairwise(rows), pairwise(columns), strict=True)
        ]
        return joined(front, parts, return_lse)

    return named(module, ("attention", "generate_varlen_parameters"), (attention, generate))


def _lengths(name: str, lengths: Array) -> list[int]:
    if lengths.ndim != 1 or str(lengths.dtype).rpartition(".")[2] != "int32":
        raise ValueError(f"{name} is {lengths.ndim}-D {lengths.dtype}; pass a 1-D int32 array")
    return lengths.tolist()


def check_pack(x: Array, offsets: Sequence[int], name: str) -> None:
    """Packed sequences hold every token."""
    if x.shape[0] != 1 or offsets[0] != 0 or offsets[-1] != x.shape[1]:
        raise ValueError(
            f"{name} spans tokens {offsets[0]} to {offsets[-1]} of an input {list(x.shape)}; packed inputs "
            "are [1, tokens, heads, dim] and every token belongs to a sequence"
        )


def joined(front: Front, parts: Sequence[tuple[Array, Array]], return_lse: bool):
    """Outputs, and log-sum-exps if wanted, of sequences packed again."""
    out, lse = (front.join(found, 1) for found in zip(*parts, strict=True))
    return (out, lse) if return_lse else out
