"""Dense attention through PyTorch's own fused kernels, with the log-sum-exp they keep and its gradient.

Layout is `[batch, tokens, heads, dim]`. Causal attention here is square; `functional.attention` makes it so.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

aten = torch.ops.aten


class Dense(NamedTuple):
    """What a kernel returns; `state` is what its backward wants besides."""

    out: Tensor
    lse: Tensor
    state: tuple = ()


def refusal(device: str, dtype: str, dim: int) -> str | None:
    """Why no fused kernel of PyTorch runs this, or None."""
    if device == "cpu":
        return None
    if device != "cuda":
        return f"PyTorch keeps no log-sum-exp of attention on {device}"
    if dtype == "float64":
        return "PyTorch has no fused float64 attention on cuda"
    if dim > 256:
        return f"head dim {dim} is over 256"
    return None


def attend(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """`out` `[batch, tokens, heads, value_dim]` and `lse` `[batch, tokens, heads]`."""
    width, group = value.shape[-1], _Group(query, key, is_causal)
    q, k, v = _aligned(group.fold(query), group.share(key), group.share(value))
    found = _forward(q, k, v, is_causal, scale)
    out = group.unfold(found.out.transpose(1, 2))[..., :width]
    return out.contiguous(), group.unfold(found.lse.unsqueeze(-1).transpose(1, 2)).squeeze(-1).contiguous()


def attend_back(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value.

    The kernels know no gradient of the log-sum-exp. Its part is `scale * grad_lse * (P k)` for the query, an
    attention whose values are the keys, and `scale * P^T (grad_lse * q)` for the key, which is that
    attention's gradient of the values.
    """
    group = _Group(query, key, is_causal)
    folded = [group.fold(x) for x in (query, out)]
    k, v = group.share(key), group.share(value)
    lse = group.fold(lse.unsqueeze(-1)).squeeze(-1).transpose(1, 2).contiguous()
    q, out = folded
    dim, width = q.shape[-1], v.shape[-1]
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    if grad_out is not None:
        q_, k_, v_, out_, grad_ = _aligned(q, k, v, out, group.fold(grad_out))
        parts = _backward(grad_, q_, k_, v_, out_, lse, is_causal, scale)
        dq, dk, dv = (
            x.transpose(1, 2)[..., :extent] for x, extent in zip(parts, (dim, dim, width), strict=True)
        )
    if grad_lse is not None:
        slope = group.fold((grad_lse * scale).unsqueeze(-1))
        q_, k_ = _aligned(q, k)
        mean = _forward(q_, k_, k_, is_causal, scale)
        dq = dq + (mean.out.transpose(1, 2)[..., :dim] * slope).to(q.dtype)
        pull = (q_.transpose(1, 2) * slope).to(q.dtype).transpose(1, 2)
        parts = _backward(pull, q_, k_, k_, mean.out, mean.lse, is_causal, scale)
        dk = dk + parts[2].transpose(1, 2)[..., :dim]
    return group.unfold(dq).contiguous(), group.gather(dk).contiguous(), group.gather(dv).contiguous()


class _Group:
    """Grouped-query attention without repeated keys: the queries of a group become more tokens of one head.

    A causal mask counts tokens, so there the keys are repeated instead.
    """

    def __init__(self, query: Tensor, key: Tensor, is_causal: bool) -> None:
        self.size = query.shape[-2] // key.shape[-2] if key.shape[-2] else 1
        self.repeats = is_causal

    def fold(self, x: Tensor) -> Tensor:
        if self.repeats or self.size == 1:
            return x
        return x.unflatten(-2, (-1, self.size)).transpose(-2, -3).flatten(1, 2)

    def unfold(self, x: Tensor) -> Tensor:
        if self.repeats or self.size == 1:
            return x
        return x.unflatten(1, (-1, self.size)).transpose(-2, -3).flatten(-3, -2)

    def share(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.size, -2) if self.repeats and self.size > 1 else x

    def gather(self, x: Tensor) -> Tensor:
        return x.unflatten(-2, (-1, self.size)).sum(-2) if self.repeats and self.size > 1 else x


def _aligned(*tensors: Tensor) -> list[Tensor]:
    """Heads first, zero padded to one head dim, which changes no score and no value that is kept."""
    widest = max(x.shape[-1] for x in tensors)
    if tensors[0].device.type == "cuda":
        widest = -(-widest // 8) * 8
    return [pad(x, (0, widest - x.shape[-1])).transpose(1, 2) for x in tensors]


def _forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Dense:
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, scale=scale)
        return Dense(out, lse)
    if q.dtype == torch.float32:
        out, lse, *state = aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, is_causal, scale=scale
        )
        return Dense(out, lse[..., : q.shape[2]], tuple(state))
    out, lse, *state = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, False, scale=scale)
    return Dense(out, lse, tuple(state))


def _backward(grad, q, k, v, out, lse, is_causal: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, is_causal, scale=scale
        )
    seed = torch.zeros((), dtype=torch.int64, device=q.device)
    if q.dtype == torch.float32:
        # The kernel reads rows of 32.
        lse = pad(lse, (0, -lse.shape[-1] % 32))
        return aten._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, None, out, lse, seed, seed, 0.0, (True, True, True, False), is_causal, scale=scale
        )[:3]
    rows, columns = q.shape[2], k.shape[2]
    return aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, lse, None, None, rows, columns, 0.0, is_causal, seed, seed, scale=scale
    )
