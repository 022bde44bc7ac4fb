"""Dense attention by MLX's own fused kernels, `[batch, tokens, heads, dim]`; if causal, square."""

import mlx.core as mx

from .composite import grouped
from .operands import wide


def attend(query: mx.array, key: mx.array, value: mx.array, is_causal: bool, scale: float) -> mx.array:
    """`[batch, tokens, heads, value_dim]`."""
    # On a CPU the fused kernel is a composition that rounds the scores to the dtype of its inputs.
    inner = wide if mx.default_device().type == mx.cpu else mx.array
    heads_first = [inner(x).swapaxes(1, 2) for x in (query, key, value)]
    mask = "causal" if is_causal else None
    out = mx.fast.scaled_dot_product_attention(*heads_first, scale=scale, mask=mask)
    return out.swapaxes(1, 2).astype(query.dtype)


def lse(query: mx.array, key: mx.array, is_causal: bool, scale: float) -> mx.array:
    """Log-sum-exp `[batch, tokens, heads]`, which the kernels do not keep: the scores of all pairs again."""
    scores = mx.einsum("bnhgd,bmhd->bnhgm", grouped(wide(query) * scale, key.shape[-2]), wide(key))
    if is_causal:
        hidden = mx.arange(key.shape[1]) > mx.arange(query.shape[1])[:, None]
        scores = mx.where(hidden[:, None, None], -float("inf"), scores)
    return mx.logsumexp(scores, -1).flatten(-2)
