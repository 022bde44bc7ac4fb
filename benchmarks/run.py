"""Time of a backend on a GPU, beside dense cuDNN attention, copy bandwidth and compiled FlexAttention.

    python benchmarks/run.py [--backend triton] [--only plane_k7,...] [--flex] [--out results.json]

A row is timed only after outputs and gradients of sampled queries and keys agree with float64 arithmetic.
Times are medians of CUDA graph replays over operands that together do not fit in the cache. `_dense` is
cuDNN's time scaled by the visible share of its products, over ours; `_memory` is the time of moving each
operand once, at the measured copy bandwidth, over ours; `_3tb` the same at 3.0 TB/s. FlexAttention is left
out for more tokens than its mask is made of in seconds. Rows are printed, and `--out` is
written, as they are done.
"""

import argparse
import json
import random
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from statistics import median

import flex
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vicinal import Axis, Problem
from vicinal.torch.backends import hopper, triton
from vicinal.torch.backends.base import Operands

BACKENDS = {"triton": triton.TRITON, "hopper": hopper.HOPPER}
NEEDS = (True,) * 3 + (False,) * 3
CACHE = 200 << 20
SAMPLES = 12
WALKS = ("dot", "mix", "mix_back")


def problem(lengths, size, batch=1, heads=24, dim=128, stride=1, dilation=1, **options):
    spread = [x if isinstance(x, tuple) else (x,) * len(lengths) for x in (size, stride, dilation)]
    axes = tuple(Axis(*numbers) for numbers in zip(lengths, *spread, strict=True))
    given = {"dtype": "bfloat16", "device": "cuda", "gradients": True, **options}
    return Problem(axes, batch, heads, heads, dim, dim, **given)


ROWS = {
    "plane_k7": problem((56, 56), 7, 64, 4, 32),
    "plane_k7_dilation8": problem((56, 56), 7, 64, 4, 32, dilation=8),
    "tiny_k7": problem((14, 14), 7, 64, 16, 32),
    "plane_k7_dim64": problem((64, 64), 7, 8, 8, 64),
    "cube_k3": problem((32, 32, 32), 3, 1, 4, 32),
    "megapixel_k9": problem((1024, 1024), 9, 1, 4, 32),
    "line_k2048": problem((32768,), 2048),
    "plane_k80": problem((256, 256), 80),
    "plane_k80_stride16": problem((256, 256), 80, stride=16),
    "video_k18x24x24": problem((30, 48, 80), (18, 24, 24)),
    "video_k18x24x24_stride16x8x8": problem((30, 48, 80), (18, 24, 24), stride=(16, 8, 8)),
}


class Graph:
    """Calls of `function` over operand sets in turn, captured once."""

    def __init__(self, function, sets):
        self.calls = max(len(sets), 4)
        for operands in sets:
            function(*operands)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for call in range(self.calls):
                function(*sets[call % len(sets)])

    def microseconds(self, repeats=9):
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, stop in marks:
            start.record()
            self.graph.replay()
            stop.record()
        torch.cuda.synchronize()
        return median(start.elapsed_time(stop) for start, stop in marks) * 1e3 / self.calls


def sets_of(p, seed=0):
    """Query, key, value and output gradient, as often as it takes to fill the cache."""
    generator = torch.Generator("cuda").manual_seed(seed)
    shape, dtype = (p.batch, *p.lengths, p.heads, p.dim), getattr(torch, p.dtype)
    count = max(1, min(8, CACHE // (8 * prod(shape))))
    make = partial(torch.randn, shape, generator=generator, device="cuda", dtype=dtype)
    return [tuple(make() for _ in range(4)) for _ in range(count)]


def sampled(p):
    """Tokens at borders and between, each with what picks rows of tensors, its keys and its queries."""
    chance = random.Random(0)
    for _ in range(SAMPLES):
        batch, head = chance.randrange(p.batch), chance.randrange(p.heads)
        at = [chance.choice((0, length - 1, chance.randrange(length))) for length in p.lengths]
        pick = lambda x, spans, b=batch, h=head: rows(x[b, ..., h, :], spans)  # noqa: E731
        keys = [axis.keys(i) for axis, i in zip(p.axes, at, strict=True)]
        seers = [axis.queries(i) for axis, i in zip(p.axes, at, strict=True)]
        yield at, pick, [range(i, i + 1) for i in at], keys, seers


def relative(pairs):
    """Largest error of any, relative to its largest exact value."""
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


def error(p, operands, out, lse, grads, scale):
    """Largest error of sampled rows, each relative to the largest exact value."""
    query, key, value, grad_out = operands
    worst = 0.0
    for _, pick, here, keys, seers in sampled(p):
        q, k, v, g = pick(query, here), pick(key, keys), pick(value, keys), pick(grad_out, here)
        scores = scale * q @ k.T
        weights = scores.softmax(-1)
        slope = weights * (g @ v.T - (weights * (g @ v.T)).sum(-1, keepdim=True))
        found = [
            (pick(out, here), weights @ v),
            (pick(lse.unsqueeze(-1), here), scores.logsumexp(-1, True)),
            (pick(grads.query, here), scale * slope @ k),
        ]
        q, g, o, level = (pick(x, seers) for x in (query, grad_out, out, lse.unsqueeze(-1)))
        weights = (scale * q @ pick(key, here).T - level).exp()
        slope = weights * (g @ pick(value, here).T - (g * o).sum(-1, keepdim=True))
        found += [(pick(grads.key, here), scale * slope.T @ q), (pick(grads.value, here), weights.T @ g)]
        worst = max(worst, relative(found))
    return worst


def walk_error(p, operands, weights, mixed, back):
    """As `error`, of the walks."""
    (x, y), slots, worst = operands, prod(p.window), 0.0
    for at, pick, here, keys, seers in sampled(p):
        k = pick(y, keys)
        slot = [
            sum(
                axis.keys(q).index(j) * prod(p.window[place + 1 :])
                for place, (axis, q, j) in enumerate(zip(p.axes, query, at, strict=True))
            )
            for query in product(*seers)
        ]
        each = pick(weights, seers).reshape(-1, slots)[range(len(slot)), slot]
        found = [
            (pick(weights, here), pick(x, here) @ k.T),
            (pick(mixed, here), pick(weights, here) @ k),
            (pick(back, here), each[None] @ pick(x, seers)),
        ]
        worst = max(worst, relative(found))
    return worst


def walk_times(p, backend, sets, copy):
    """Times of the walks, and those of moving their operands over them; nothing where a result is wrong."""
    problems = [replace(p, operation=name) for name in WALKS]
    if any(map(backend.refusal, problems)):
        return {}
    dot, mix, mix_back = problems
    sets = [(x, y, backend.dot(dot, x, y, None, 1.0, 0.0)) for x, y, *_ in sets]
    calls = {
        "dot": lambda x, y, _: backend.dot(dot, x, y, None, 1.0, 0.0),
        "mix": lambda _, y, weights: backend.mix(mix, weights, y),
        "mix_back": lambda x, _, weights: backend.mix_back(mix_back, weights, x),
    }
    x, y, weights = sets[0]
    found = walk_error(p, (x, y), weights, calls["mix"](*sets[0]), calls["mix_back"](*sets[0]))
    row = {"walk_error": found}
    if found < 0.03:
        row |= {name: Graph(call, sets).microseconds() for name, call in calls.items()}
        moved = (2 * x.nbytes + weights.nbytes) / copy * 1e6
        row |= {f"{name}_memory": moved / row[name] for name in calls}
    return row


def rows(x, spans):
    for place, span in enumerate(spans):
        x = x.index_select(place, torch.tensor(span, device=x.device))
    return x.flatten(0, -2).double()


def dense_times(p, seconds=0.5):
    """Forward and backward of dense cuDNN attention, where forward takes no longer than about `seconds`."""
    tokens = prod(p.lengths)
    if 4 * p.batch * p.heads * tokens**2 * p.dim > seconds * 4e14:
        return None, None
    shape = (p.batch, p.heads, tokens, p.dim)
    make = lambda: torch.randn(shape, device="cuda", dtype=getattr(torch, p.dtype), requires_grad=True)  # noqa: E731
    query, key, value = make(), make(), make()
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        attend = partial(scaled_dot_product_attention, query, key, value)
        forward = elapsed(attend)
        out = attend()
        grad = torch.randn_like(out)
        backward = elapsed(lambda: torch.autograd.grad(out, (query, key, value), grad, retain_graph=True))
    return forward, backward


def flex_times(p, operands, out):
    """Forward and backward of compiled FlexAttention on operands of which `out` is the output, or why not."""
    from torch._functorch import config

    # Repeated backward passes keep the buffers of the first.
    config.donated_buffer = False
    try:
        found = flex.Flex(p)
        *operands, grad = map(found.tokens, operands)
        attend = partial(found.attend, *(x.requires_grad_() for x in operands))
        forward, result = elapsed(attend), attend()
        wrong = relative([(found.spatial(result).float(), out.float())])
        assert wrong < 0.03, f"it is {wrong:.3g} off"
        backward = elapsed(lambda: torch.autograd.grad(result, operands, grad, retain_graph=True))
    except Exception as failure:
        return {"flex_failure": repr(failure)[:300]}
    return {"flex_forward": forward, "flex_backward": backward}


def elapsed(function, repeats=5, enough=1e5):
    """Microseconds of an eager call, on the GPU; fewer repeats where one takes over `enough` of them."""
    times = []
    while len(times) < repeats + 2 and (len(times) < 3 or times[-1] < enough):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return median(times[2:])


def bandwidth():
    """Bytes read and written a second by a large copy: a kernel's, which is faster than the driver's."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copy = partial(torch.add, source, 0.0, out=target)
    return 2 * source.nbytes / Graph(copy, [()]).microseconds() * 1e6


def measure(name, p, backend, copy, wants_flex):
    reason = backend.refusal(p)
    if reason is not None:
        return {"name": name, "problem": str(p), "refused": reason}
    sets, scale = sets_of(p), p.dim**-0.5
    attend = lambda q, k, v, *_: backend.attend(p, Operands(q, k, v), scale)  # noqa: E731
    outs = [attend(*operands) for operands in sets]

    def attend_back(q, k, v, grad, out, lse):
        return backend.attend_back(p, Operands(q, k, v), out, lse, grad, None, scale, NEEDS)

    both = [(*operands, *results) for operands, results in zip(sets, outs, strict=True)]
    found = error(p, sets[0], *outs[0], attend_back(*both[0]), scale)
    row = {"name": name, "problem": str(p), "error": found}
    if not found < 0.03:
        return row
    row |= {
        "forward": Graph(attend, sets).microseconds(),
        "backward": Graph(attend_back, both).microseconds(),
    }
    for direction, operands in (("forward", 4), ("backward", 8)):
        seconds = row[direction] / 1e6
        moved = operands * sets[0][0].nbytes
        row |= {f"{direction}_memory": moved / copy / seconds, f"{direction}_3tb": moved / 3e12 / seconds}
    one, out = sets[0], outs[0][0]
    del both, outs
    row |= walk_times(p, backend, sets, copy)
    del sets
    if wants_flex and flex.runs(p):
        row |= flex_times(p, one, out)
    del one, out
    row["dense_forward"], row["dense_backward"] = dense_times(p)
    share = p.pairs / prod(p.lengths) ** 2
    for direction in ("forward", "backward"):
        dense = row[f"dense_{direction}"]
        row[f"{direction}_dense"] = dense and dense * share / row[direction]
    return row


PAIRS = ("", "_memory", "_3tb", "_dense")
COLUMNS = tuple(f"{direction}{kind}" for kind in PAIRS for direction in ("forward", "backward"))
COLUMNS += tuple(f"{kind}_{direction}" for kind in ("dense", "flex") for direction in ("forward", "backward"))
COLUMNS += (*WALKS, *(f"{name}_memory" for name in WALKS))


def line(row):
    """A row of the table."""
    if "forward" not in row:
        return f"{row['name']:30}  {row.get('refused') or 'wrong'}"
    cells = ("-" if row.get(column) is None else f"{row[column]:.4g}" for column in (*COLUMNS, "error"))
    return f"{row['name']:30}" + "".join(f"{cell:>16}" for cell in cells)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--backend", choices=BACKENDS, default="triton")
    options.add_argument("--only", help="names of rows, separated by commas")
    options.add_argument("--flex", action="store_true", help="time compiled FlexAttention too")
    options.add_argument("--out", type=Path)
    wanted = options.parse_args()
    backend, copy = BACKENDS[wanted.backend], bandwidth()
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "backend": wanted.backend}
    machine |= {"triton": sys.modules["triton"].__version__, "copy_bytes_per_second": copy}
    print(json.dumps(machine))
    print(f"{'':30}" + "".join(f"{column:>16}" for column in (*COLUMNS, "error")), flush=True)
    found = []
    for name in wanted.only.split(",") if wanted.only else ROWS:
        found.append(measure(name, ROWS[name], backend, copy, wanted.flex))
        torch.cuda.empty_cache()
        print(line(found[-1]), flush=True)
        if wanted.out:
            wanted.out.write_text(json.dumps({**machine, "rows": found}, indent=1) + "\n")
    sys.exit(any("error" in row and "forward" not in row for row in found))


if __name__ == "__main__":
    main()
