"""Dense attention through PyTorch's own fused kernels, with the log-sum-exp they keep and its gradient.

Layout is `[batch, tokens, heads, dim]`. Causal attention here is square; `functional.attention` makes it so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import composite
from .composite import Walks

aten = torch.ops.aten


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
    if not query.numel():
        # The kernel for CPUs divides by the number of tokens.
        rows = query.shape[:-1]
        lse = query.new_empty(rows, dtype=composite.accumulating(query.dtype))
        return query.new_empty((*rows, value.shape[-1])), lse
    if not _fused(query, value):
        out, lse = composite.attend(walks(key, is_causal), composite.parts(query, key, value), scale)
        return out.to(query.dtype), lse.contiguous()
    width, group = value.shape[-1], _Group(query, key, is_causal)
    q, k, v = _aligned(group.fold(query), group.share(key), group.share(value))
    out, lse = _kernel(q, k).forward(q, k, v, is_causal, scale)
    out = group.unfold(out.transpose(1, 2))[..., :width]
    return out.contiguous(), group.unfold(lse.unsqueeze(-1).transpose(1, 2)).squeeze(-1).contiguous()


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
    if not query.numel():
        return torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    if not _fused(query, value):
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
        at = composite.parts(query, key, value)
        found = composite.attend_back(walks(key, is_causal), at, composite.wide(grad_out), grad_lse, scale)
        dq, dk, dv = (x.to(query.dtype) for x in (found.query, found.key.window, found.value.window))
        return dq.contiguous(), dk.contiguous(), dv.contiguous()
    group = _Group(query, key, is_causal)
    q, out, k, v = group.fold(query), group.fold(out), group.share(key), group.share(value)
    lse = group.fold(lse.unsqueeze(-1)).squeeze(-1).transpose(1, 2).contiguous()
    dim, width = q.shape[-1], v.shape[-1]
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    if grad_out is not None:
        q_, k_, v_, out_, grad_ = _aligned(q, k, v, out, group.fold(grad_out))
        parts = _kernel(q_, k_).backward(grad_, q_, k_, v_, out_, lse, is_causal, scale)
        dq, dk, dv = (
            x.transpose(1, 2)[..., :extent] for x, extent in zip(parts, (dim, dim, width), strict=True)
        )
    if grad_lse is not None:
        slope = group.fold((grad_lse * scale).unsqueeze(-1))
        q_, k_ = _aligned(q, k)
        kernel = _kernel(q_, k_)
        mean, lse = kernel.forward(q_, k_, k_, is_causal, scale)
        dq = dq + (mean.transpose(1, 2)[..., :dim] * slope).to(q.dtype)
        pull = (q_.transpose(1, 2) * slope).to(q.dtype).transpose(1, 2)
        pulled = kernel.backward(pull, q_, k_, k_, mean, lse, is_causal, scale)[2]
        dk = dk + pulled.transpose(1, 2)[..., :dim]
    return group.unfold(dq).contiguous(), group.gather(dk).contiguous(), group.gather(dv).contiguous()


def _fused(query: Tensor, value: Tensor) -> bool:
    dtype = str(query.dtype).removeprefix("torch.")
    return refusal(query.device.type, dtype, max(query.shape[-1], value.shape[-1])) is None


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


def unit_stride(x: Tensor) -> Tensor:
    """`x` with neighbors in memory along its last axis, which the kernels take for granted."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _aligned(*tensors: Tensor) -> list[Tensor]:
    """Heads first, and zero padded to one head dim, which no product and no useful value notices."""
    widest = max(x.shape[-1] for x in tensors)
    if tensors[0].device.type == "cuda":
        widest = -(-widest // 8) * 8
        # Kernels load 16 bytes at a time, from every row.
        tensors = tuple(x.contiguous() for x in tensors)
    wide = (x if x.shape[-1] == widest else pad(x, (0, widest - x.shape[-1])) for x in tensors)
    return [unit_stride(x).transpose(1, 2) for x in wide]


def walks(key: Tensor, is_causal: bool) -> Walks:
    """Walks of a window that is the whole input: slots are tokens."""
    tokens, kv_heads = key.shape[1], key.shape[-2]
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=key.device).triu(1) if is_causal else None

    def dot(x: Tensor, y: Tensor, fill: float) -> Tensor:
        weights = composite.dot_extra(x, y)
        return weights if hidden is None else weights.masked_fill(hidden[:, None], fill)

    def mix_back(weights: Tensor, x: Tensor) -> Tensor:
        grouped = (t.unflatten(-2, (kv_heads, t.shape[-2] // kv_heads)) for t in (weights, x))
        return torch.einsum("bnhge,bnhgd->behd", *grouped)

    def no_bias(_: Tensor) -> Tensor:
        raise AssertionError("dense attention has no bias")

    return Walks(dot, composite.mix_extra, mix_back, no_bias, no_bias, tokens)


class Kernel(NamedTuple):
    """A fused attention of PyTorch, heads first; `backward` takes the gradient, the operands, out and lse."""

    forward: Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float], tuple[Tensor, ...]]


def _kernel(query: Tensor, key: Tensor) -> Kernel:
    if query.device.type == "cpu":
        return _CPU
    if query.dtype == torch.float32:
        return _EFFICIENT
    # cuDNN's forward is the faster one where it has kernels of its own for the matrix units, except for a few
    # tokens. Its gradients differ from run to run.
    long = min(query.shape[2], key.shape[2]) >= 128
    if long and query.shape[-1] <= 128 and torch.cuda.get_device_capability(query.device)[0] in (9, 10):
        return _CUDNN
    return _FLASH


def _cpu_forward(q, k, v, is_causal, scale):
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, scale=scale)


def _cpu_backward(grad, q, k, v, out, lse, is_causal, scale):
    operator = aten._scaled_dot_product_flash_attention_for_cpu_backward
    return operator(grad, q, k, v, out, lse, 0.0, is_causal, scale=scale)


def _efficient_forward(q, k, v, is_causal, scale):
    operator = aten._scaled_dot_product_efficient_attention
    out, lse, *_ = operator(q, k, v, None, True, 0.0, is_causal, scale=scale)
    return out, lse[..., : q.shape[2]]


def _efficient_backward(grad, q, k, v, out, lse, is_causal, scale):
    # The kernel reads the log-sum-exp in rows of 32.
    lse = pad(lse, (0, -lse.shape[-1] % 32))
    seed, needs = _no_seed(q), (True, True, True, False)
    operator = aten._scaled_dot_product_efficient_attention_backward
    with _deterministic():
        found = operator(grad, q, k, v, None, out, lse, seed, seed, 0.0, needs, is_causal, scale=scale)
    return found[:3]


def _flash_forward(q, k, v, is_causal, scale):
    return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, False, scale=scale)[:2]


def _flash_backward(grad, q, k, v, out, lse, is_causal, scale):
    seed, rows, columns = _no_seed(q), q.shape[2], k.shape[2]
    operator = aten._scaled_dot_product_flash_attention_backward
    with _deterministic():
        return operator(
            grad, q, k, v, out, lse, None, None, rows, columns, 0.0, is_causal, seed, seed, scale=scale
        )


def _cudnn_forward(q, k, v, is_causal, scale):
    operator = aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = operator(q, k, v, None, True, 0.0, is_causal, False, scale=scale)
    return out, lse.view(q.shape[:3])


def _no_seed(x: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=x.device)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Kernels ask PyTorch's process-wide switch whether gradients may be added in any order; here, never.

    Only the strict switch counts: with `warn_only` they warn, and add in any order all the same.
    """
    before = torch._C._get_deterministic_algorithms()
    warns = torch._C._get_deterministic_algorithms_warn_only()
    fills = torch._C._get_deterministic_fill_uninitialized_memory()
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    torch._C._set_deterministic_fill_uninitialized_memory(False)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(before, warn_only=warns)
        torch._C._set_deterministic_fill_uninitialized_memory(fills)


_CPU = Kernel(_cpu_forward, _cpu_backward)
_EFFICIENT = Kernel(_efficient_forward, _efficient_backward)
_FLASH = Kernel(_flash_forward, _flash_backward)
_CUDNN = Kernel(_cudnn_forward, _flash_backward)
