"""Microseconds the host spends on an eager call of a geometry seen before; it does not wait for the GPU.

    python benchmarks/host.py [--out results.json]

`forward` is the public function without gradients, `recorded` with them, `backward` the backward pass through
autograd, `backend` what the backend prepared, alone. The baseline is PyTorch's dense attention on the same
tensors. Windows are so small that the GPU keeps up. Every row is checked against `reference` first.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
import triton
from torch.nn.functional import scaled_dot_product_attention

from vicinal import Axis, Problem
from vicinal.torch import na2d
from vicinal.torch.backends import BACKENDS
from vicinal.torch.backends.base import Operands

# Side of a plane, window, dilation, heads, head dimension.
ROWS = {
    "triton, one box": ("triton", 8, 7, 1, 1, 24),
    "triton, rings": ("triton", 14, 5, 1, 2, 32),
    "triton, loop": ("triton", 40, 20, 1, 1, 24),
    "hopper": ("hopper", 32, 25, 1, 2, 128),
    "hopper, dilation 2": ("hopper", 64, 25, 2, 2, 128),
}


def microseconds(function, calls=300, rounds=7):
    """Least mean over rounds; the queue is empty when one starts."""
    for _ in range(20):
        function()
    best = float("inf")
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (perf_counter() - start) / calls * 1e6)
    torch.cuda.synchronize()
    return round(best, 1)


def measure(name, side, size, dilation, heads, dim):
    backend = next(found for found in BACKENDS if found.name == name)
    axis = Axis(side, size, 1, dilation)
    problem = Problem((axis, axis), 1, heads, heads, dim, dim, "bfloat16", "cuda", gradients=True)
    reason = backend.refusal(problem)
    if reason is not None:
        return {"problem": str(problem), "refused": reason}
    make = partial(torch.randn, 1, side, side, heads, dim, device="cuda", dtype=torch.bfloat16)
    query, key, value = make(), make(), make()
    attend = partial(na2d, query, key, value, size, dilation=dilation)
    wanted = attend(backend="reference")
    error = float((attend(backend=name) - wanted).abs().max() / wanted.abs().max())
    assert error < 0.02, (problem, error)
    found = {"problem": str(problem), "error": error, "forward": microseconds(partial(attend, backend=name))}
    ready = backend.prepare(problem, Operands(query, key, value), 0.2)
    found["backend"] = microseconds(partial(ready, query, key, value, None, None, None))
    flat = [x.flatten(1, 2).transpose(1, 2) for x in (query, key, value)]
    found["dense_forward"] = microseconds(partial(scaled_dot_product_attention, *flat))
    for call, operands, kind in (
        (partial(attend, backend=name), (query, key, value), ""),
        (partial(scaled_dot_product_attention, *flat), flat, "dense_"),
    ):
        for x in operands:
            x.requires_grad_()
        found[f"{kind}recorded"] = microseconds(call)
        out = call()
        back = partial(torch.autograd.grad, out, operands, torch.randn_like(out), retain_graph=True)
        found[f"{kind}backward"] = microseconds(back)
        for x in operands:
            x.requires_grad_(False)
    return found


COLUMNS = ("forward", "backend", "recorded", "backward", "dense_forward", "dense_recorded", "dense_backward")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    found = {"device": torch.cuda.get_device_name(), "versions": versions, "rows": {}}
    print(json.dumps(found))
    print(f"{'':20}" + "".join(f"{column:>16}" for column in COLUMNS))
    for name, row in ROWS.items():
        found["rows"][name] = measured = measure(*row)
        cells = (f"{measured[column]:>16}" for column in COLUMNS if column in measured)
        print(f"{name:20}" + "".join(cells) + measured.get("refused", ""), flush=True)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
