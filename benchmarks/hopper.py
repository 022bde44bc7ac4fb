"""Large windows on a Hopper GPU: time, share of dense cuDNN attention's speed, and host time a call.

    python benchmarks/hopper.py [--out results.json] [--only b1,b16] [--quick] [--flex]
                                [--between | --float8]

Every row is checked on sampled queries and keys in float64 before it is timed: in a few calls, and alone
for 0.4 seconds on end, after which a device is at the clock that its power limit leaves a kernel. `ratio`
is the time of dense cuDNN attention, scaled by the visible share of its products, over that of a few calls:
1.0 is its speed; calls of dense attention are so long that they are sustained by themselves.
`sustained_ratio` is the same of the sustained time, `tflops` the useful products a second then, and `kept`
those of a row with an option over those of the row without it, which is timed again in turns with it: as a
device gets hotter, its clock falls during a run. `--between` times, in microseconds of graph
replays, windows between small and large, and close to the whole axis, with `hopper`, with `triton` and with
dense attention, without a mask and, forward, with one; `--float8` the forward with queries and keys in
float8 and in bfloat16. `--flex` adds compiled FlexAttention to rows without an option.
Rows are printed, and `--out` is written, as they are done.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from math import prod
from pathlib import Path

import torch
import triton
from run import Graph, flex_times
from sampled import worst
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vicinal import Axis, Problem
from vicinal.torch import dense as whole
from vicinal.torch.backends.base import Operands
from vicinal.torch.backends.hopper import HOPPER
from vicinal.torch.backends.triton import TRITON
from vicinal.triton import crossover

NEEDS = (True,) * 3 + (False,) * 3


def problem(lengths, size, stride=1, dilation=1, causal=False, **options) -> Problem:
    rank = len(lengths)
    spread = [x if isinstance(x, tuple) else (x,) * rank for x in (size, stride, dilation, causal)]
    options = {"heads": 24, "dim": 128, "dtype": "bfloat16", "device": "cuda", "gradients": True} | options
    options.setdefault("kv_heads", options["heads"])
    return Problem(
        tuple(Axis(*numbers) for numbers in zip(lengths, *spread, strict=True)),
        value_dim=options["dim"],
        **options,
    )


LINE, PLANE, VIDEO = (32768,), (256, 256), (30, 48, 80)
SHAPES = {"a": (LINE, 2048), "b": (PLANE, 80), "c": (VIDEO, (18, 24, 24))}
OPTIONS = {
    "causal": {"causal": True},
    "fp16": {"dtype": "float16"},
    "grouped 24/8": {"kv_heads": 8},
    "dim 64": {"dim": 64},
    "dim 96": {"dim": 96},
    "dim 256": {"dim": 256, "heads": 12},
}
ROWS = {
    "a1": problem(*SHAPES["a"]),
    "a256": problem(LINE, 2048, 256),
    "b1": problem(*SHAPES["b"]),
    "b16": problem(PLANE, 80, 16),
    "c1": problem(*SHAPES["c"]),
    "c16": problem(VIDEO, (18, 24, 24), (16, 8, 8)),
    **{
        f"{shape}1 {option}": problem(*SHAPES[shape], **changed)
        for shape, (option, changed) in product(SHAPES, OPTIONS.items())
    },
    "c1 causal in time": problem(VIDEO, (18, 24, 24), causal=(True, False, False)),
    "b16 dim 64": problem(PLANE, 80, 16, dim=64),
    "a1 K=1024": problem(LINE, 1024),
    "a1 K=1024 dilation 2": problem(LINE, 1024, dilation=2),
    "b1 K=40": problem(PLANE, 40),
    "b1 K=40 dilation 2": problem(PLANE, 40, dilation=2),
    "c1 K=9x12x12": problem(VIDEO, (9, 12, 12)),
    "c1 K=9x12x12 dilation 2": problem(VIDEO, (9, 12, 12), dilation=2),
}
NEAR = (
    *(((14, 14), 7), ((14, 14), 13), ((16, 16), 15), ((32, 32), 13), ((32, 32), 25), ((32, 32), 31)),
    *(((64, 64), 13), ((64, 64), 21), ((64, 64), 33), ((64, 64), 61)),
    *(((512,), 501), ((2048,), 255), ((2048,), 2001), ((8, 16, 16), (7, 13, 13))),
)
BETWEEN = {
    f"{'x'.join(map(str, lengths))} K={size} dim {dim}": problem(
        lengths, size, dim=dim, heads=16, batch=max(1, 16384 // prod(lengths))
    )
    for dim, (lengths, size) in product((32, 64, 128), NEAR)
}


def plain(name: str) -> str:
    """The row without the option of `name`, which may be that row itself."""
    shape, _, option = name.partition(" ")
    return name.removesuffix(" dilation 2") if option.startswith("K=") else shape


def elapsed(call, calls: int) -> list[float]:
    """Milliseconds between device events."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in pairwise(events)]


def milliseconds(call, repeats: int) -> float:
    """Median time after two calls."""
    return sorted(elapsed(call, 2 + repeats)[2:])[repeats // 2]


def sustained(call, seconds: float = 0.4) -> float:
    """Median time in the later half of so many seconds, in milliseconds."""
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 10:
        times += elapsed(call, 5)
    later = sorted(times[len(times) // 2 :])
    return later[len(later) // 2]


def in_turns(calls) -> list[float]:
    """Mean sustained times of calls, one after the other and then the other way round, in milliseconds."""
    there = [sustained(call) for call in calls]
    back = [sustained(call) for call in reversed(calls)]
    return [(one + other) / 2 for one, other in zip(there, reversed(back), strict=True)]


def host_microseconds(call, calls: int = 60) -> float:
    """Median time of a call on the host while the device is busy."""
    call()
    torch.cuda.synchronize()
    spent = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return sorted(spent)[calls // 2] * 1e6


BASELINES: dict[str, tuple[float, float]] = {}


def dense(tokens: int, heads: int, dim: int) -> tuple[float, float]:
    """Forward and backward milliseconds of cuDNN's dense attention, once a shape."""
    name = f"{tokens} tokens, {heads} heads, dim {dim}"
    if name in BASELINES:
        return BASELINES[name]
    operands = [
        torch.randn(1, heads, tokens, dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    ]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = scaled_dot_product_attention(*operands)
        grad = torch.randn_like(out)
        with torch.no_grad():
            forward = milliseconds(lambda: scaled_dot_product_attention(*operands), 3)
        backward = milliseconds(lambda: torch.autograd.grad(out, operands, grad, retain_graph=True), 3)
    BASELINES[name] = forward, backward
    return forward, backward


def copy_bandwidth() -> float:
    """Bytes read and written by a large copy, in TB/s."""
    x = torch.randn(2**29, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.nbytes / milliseconds(lambda: y.copy_(x), 10) / 1e9


class Calls:
    """Forward and backward of a problem, on random operands."""

    def __init__(self, case: Problem):
        size, dtype = (case.batch, *case.lengths), getattr(torch, case.dtype)
        heads = (case.heads, case.kv_heads, case.kv_heads, case.heads)
        *given, self.grad_out = (
            torch.randn(*size, count, case.dim, device="cuda", dtype=dtype) for count in heads
        )
        self.case, self.given, self.scale = case, Operands(*given), case.dim**-0.5
        self.out, self.lse = self.forward()

    def forward(self):
        return HOPPER.attend(self.case, self.given, self.scale)

    def backward(self, needs=NEEDS):
        return HOPPER.attend_back(
            self.case, self.given, self.out, self.lse, self.grad_out, None, self.scale, needs
        )


def measure(name: str, case: Problem, quick: bool, wants_flex: bool) -> dict:
    calls = Calls(case)
    error = worst(case, calls.given, calls.out, calls.lse, calls.grad_out, calls.backward())
    if not error < 1e-2:
        return {"name": name, "problem": str(case), "error": error, "failed": True}
    times = {
        "forward": milliseconds(calls.forward, 7),
        "backward": milliseconds(calls.backward, 5),
        "query": milliseconds(lambda: calls.backward((True,) + (False,) * 5), 5),
    }
    row = {"name": name, "problem": str(case), "error": error, **times}
    # Of a row without an option once more: it says how far the other ratios can be trusted.
    without = Calls(ROWS[plain(name)])
    for part, products in (("forward", 1.0), ("backward", 2.5)):
        apart, taken = in_turns((getattr(without, part), getattr(calls, part)))
        row[f"{part}_sustained"] = taken
        row[f"{part}_tflops"] = products * case.flops / taken / 1e9
        row[f"{part}_kept"] = case.flops / taken / (without.case.flops / apart)
    del without
    row["host_forward_us"] = host_microseconds(calls.forward)
    if not quick:
        tokens = prod(case.lengths)
        share = case.pairs / tokens**2
        dim = max(64, 1 << (case.dim - 1).bit_length()) if case.dim != 256 else 128
        baseline = dense(tokens, 24, dim)
        scaled = case.heads * case.dim / (24 * dim) * share
        for part, time_of_all in zip(("forward", "backward"), baseline, strict=True):
            row[f"{part}_ratio"] = time_of_all * scaled / times[part]
            row[f"{part}_sustained_ratio"] = time_of_all * scaled / row[f"{part}_sustained"]
    if wants_flex:
        found = flex_times(case, (*calls.given[:3], calls.grad_out), calls.out)
        row |= {key: x if key == "flex_failure" else x / 1e3 for key, x in found.items()}
    return row


def visible(case: Problem) -> torch.Tensor:
    """A mask of all pairs."""
    mask = torch.ones(1, 1, dtype=torch.bool, device="cuda")
    for axis in case.axes:
        seen = torch.zeros(axis.length, axis.length, dtype=torch.bool)
        for i in range(axis.length):
            seen[i, list(axis.keys(i))] = True
        mask = torch.kron(mask, seen.cuda())
    return mask


def compare(name: str, case: Problem) -> dict:
    """Times of this backend, whatever it refuses, of `triton`'s, and of dense attention."""
    given, grad, scale = (calls := Calls(case)).given, calls.grad_out, calls.scale
    row = {"name": name, "problem": str(case), "slowdown": crossover.slowdown(case)}
    row["refusal"] = HOPPER.refusal(case)
    found = {}
    for backend in (HOPPER, TRITON):
        call, back = partial(backend.attend, case, given, scale), partial(backend.attend_back, case, given)
        found[backend.name] = out, lse = call()
        row[f"{backend.name}_forward"] = Graph(call, [()]).microseconds()
        row[f"{backend.name}_backward"] = Graph(back, [(out, lse, grad, None, scale, NEEDS)]).microseconds()
    error = (found["hopper"][0] - found["triton"][0]).norm() / found["triton"][0].norm()
    assert error < 1e-2, f"{name}: the backends differ by {error:.2e}"
    tokens = [x.flatten(1, case.rank) for x in (*given[:3], grad)]
    call = partial(whole.attend, *tokens[:3], False, scale)
    row["dense_forward"] = Graph(call, [()]).microseconds()
    back = partial(whole.attend_back, *tokens[:3], *call(), tokens[3], None, False, scale)
    row["dense_backward"] = Graph(back, [()]).microseconds()
    heads, mask = [x.transpose(1, 2) for x in tokens[:3]], visible(case)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        row["masked_forward"] = Graph(
            partial(scaled_dot_product_attention, *heads, mask), [()]
        ).microseconds()
    parts = [f"{key} {row[key]:.1f}" for key in list(row)[4:]]
    print(f"{name:26} slowdown {row['slowdown']:.2f}", "  ".join(parts), flush=True)
    return row


def float8(name: str, case: Problem) -> dict:
    """Times of a forward with queries and keys in float8 and in bfloat16, and how far the outputs differ.

    `error` is against the same rounded operands in bfloat16, `rounding` against operands before rounding.
    """
    narrow = replace(case, key_dtype="float8_e4m3fn", gradients=False)
    wide = Calls(case)
    given, scale = wide.given, wide.scale
    rounded = Operands(*(x.to(torch.float8_e4m3fn) for x in given[:2]), given.value)
    widened = Operands(*(x.to(torch.bfloat16) for x in rounded[:2]), given.value)
    calls = {
        "float8": lambda: HOPPER.attend(narrow, rounded, scale)[0],
        "bfloat16": lambda: wide.forward()[0],
    }
    off = lambda x, y: ((x - y).norm() / y.norm()).item()  # noqa: E731
    out = calls["float8"]()
    row = {
        "name": name,
        "problem": str(narrow),
        "error": off(out, HOPPER.attend(case, widened, scale)[0]),
        "rounding": off(out, calls["bfloat16"]()),
        **{key: milliseconds(call, 9) for key, call in calls.items()},
    }
    assert row["error"] < 1e-2, row
    print("  ".join([f"{name:10}"] + [f"{key} {row[key]:.4g}" for key in list(row)[2:]]), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out")
    parser.add_argument("--only", help="names of rows, separated by commas")
    parser.add_argument("--quick", action="store_true", help="without the dense baseline")
    parser.add_argument("--flex", action="store_true", help="compiled FlexAttention too")
    parser.add_argument("--between", action="store_true", help="windows between small and large alone")
    parser.add_argument("--float8", action="store_true", help="float8 queries and keys alone")
    options = parser.parse_args()
    result: dict = {
        "device": torch.cuda.get_device_name(),
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cudnn": torch.backends.cudnn.version(),
        },
    }
    wanted = options.only.split(",") if options.only else list(BETWEEN if options.between else ROWS)
    if options.between:
        rows = (compare(name, BETWEEN[name]) for name in wanted)
    elif options.float8:
        rows = (float8(name, ROWS[name]) for name in ("b1", "b16", "c1", "c16"))
    else:
        result |= {"copy_tb_s": copy_bandwidth(), "dense": BASELINES}
        rows = large(wanted, options.quick, options.flex)
    print(result)
    done = []
    for row in rows:
        done.append(row)
        if options.out:
            Path(options.out).write_text(json.dumps(result | {"rows": done}, indent=1))


def large(wanted: list[str], quick: bool, flex: bool) -> Iterator[dict]:
    """Rows of large windows, each beside the row without its option."""
    print("row                  fwd ms  TF/s ratio | bwd ms  TF/s ratio (  dq   dkv) | host us    error")
    for name in wanted:
        row = measure(name, ROWS[name], quick, flex and " " not in name)
        torch.cuda.empty_cache()
        yield row
        if row.get("failed"):
            print(f"{name:20} WRONG: relative error {row['error']:.3g}", flush=True)
            continue
        parts = row["query"], row["backward"] - row["query"]
        print(
            f"{name:20} {row['forward']:7.3f} {row['forward_tflops']:5.0f} "
            f"{row.get('forward_ratio', 0):5.2f} | {row['backward']:7.3f} {row['backward_tflops']:5.0f} "
            f"{row.get('backward_ratio', 0):5.2f} ({parts[0]:.2f} {parts[1]:.2f}) | "
            f"{row['host_forward_us']:5.1f} {row['error']:.1e}",
            *(f"{key} {row[key]}" for key in row if key.startswith("flex")),
            flush=True,
        )


if __name__ == "__main__":
    main()
