"""The operations that clients call, from the definition and in plain PyTorch; imports nothing of ours."""

from math import prod

import torch


def _keys(length, size, dilation):
    """`[length, size]` keys of every query's window, in its residue class, shifted inwards at borders."""
    rows = []
    for query in range(length):
        siblings = list(range(query % dilation, length, dilation))
        first = min(max(query // dilation - size // 2, 0), len(siblings) - size)
        rows.append(siblings[first : first + size])
    return torch.tensor(rows)


def _slots(lengths, sizes, dilations):
    """`[tokens, slots]` flat keys, and for each axis the relative position of key and query."""
    rank, flat, relative = len(lengths), 0, []
    for axis, (length, size, dilation) in enumerate(zip(lengths, sizes, dilations, strict=True)):
        keys = _keys(length, size, dilation)
        shape = [1] * 2 * rank
        shape[axis], shape[rank + axis] = length, size
        whole = (*lengths, *sizes)
        flat = flat * length + keys.view(shape)
        offset = (keys - torch.arange(length)[:, None]) // dilation + size - 1
        relative.append(offset.view(shape).expand(whole).reshape(prod(lengths), -1))
    return flat.expand(whole).reshape(prod(lengths), -1), relative


def qkrpb(query, key, rpb, kernel_size, dilation):
    """Heads-first scores with bias, unscaled, `[batch, heads, *spatial, slots]`."""
    lengths = query.shape[2:-1]
    sizes, dilations = [kernel_size] * len(lengths), [dilation] * len(lengths)
    flat, relative = _slots(lengths, sizes, dilations)
    window = key.flatten(2, -2)[:, :, flat]
    scores = torch.einsum("bhnd,bhnsd->bhns", query.flatten(2, -2), window)
    if rpb is not None:
        scores = scores + rpb[(slice(None), *relative)]
    return scores.unflatten(2, lengths)


def av(attn, value, kernel_size, dilation):
    """Heads-first sums of each window's values, `[batch, heads, *spatial, dim]`."""
    lengths = value.shape[2:-1]
    flat, _ = _slots(lengths, [kernel_size] * len(lengths), [dilation] * len(lengths))
    out = torch.einsum("bhns,bhnsd->bhnd", attn.flatten(2, -2), value.flatten(2, -2)[:, :, flat])
    return out.unflatten(2, lengths)


def attention(query, key, value, kernel_size, stride=1, dilation=1, scale=None):
    """Heads-last neighborhood attention; queries in groups of `stride` share their leader's window."""
    lengths = query.shape[1:-2]
    spread = lambda x: tuple(x) if isinstance(x, (tuple, list)) else (x,) * len(lengths)  # noqa: E731
    sizes, strides, dilations = spread(kernel_size), spread(stride), spread(dilation)
    leaders = 0
    for axis, (length, step, apart) in enumerate(zip(lengths, strides, dilations, strict=True)):
        token = torch.arange(length)
        group, place = token % apart, token // apart
        count = (length - group + apart - 1) // apart
        leader = torch.minimum(place // step * step + step // 2, count - 1) * apart + group
        shape = [1] * len(lengths)
        shape[axis] = length
        leaders = leaders * length + leader.view(shape)
    flat = _slots(lengths, sizes, dilations)[0][leaders.expand(lengths).flatten()]
    q, k, v = (x.flatten(1, -3) for x in (query, key, value))
    scores = torch.einsum("bnhd,bnshd->bnhs", q, k[:, flat]) * (
        q.shape[-1] ** -0.5 if scale is None else scale
    )
    out = torch.einsum("bnhs,bnshd->bnhd", scores.softmax(-1), v[:, flat])
    return out.unflatten(1, lengths)
