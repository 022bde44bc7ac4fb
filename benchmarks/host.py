"""Microseconds the host spends on an eager call of a geometry seen before; it does not wait for the GPU.

    python benchmarks/host.py [--out results.json]
    PYTHONPATH=. python benchmarks/host.py --absent

`forward` is the public function without gradients, `recorded` with them, `backward` the backward pass through
autograd, `backend` what the backend prepared, alone. The baseline is PyTorch's dense attention on the same
tensors. Windows are so small that the GPU keeps up. Every row is checked against `reference` first.

`--absent` needs no GPU: kernels are compiled for one, and launched nowhere. Nothing is computed, checked and
compared; what the driver, a GPU's allocator and autograd's thread for it take is missing.
"""

import argparse
import json
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter

import torch
import triton
from torch.nn.functional import scaled_dot_product_attention

from vicinal import Axis, Problem
from vicinal.torch import VarlenLayout, na2d, na2d_av, na2d_qk, neighborhood_attention_packed
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


def microseconds(function, wait, calls=100, rounds=20):
    """Least mean over rounds; the queue is empty when one starts."""
    for _ in range(20):
        function()
    best = float("inf")
    for _ in range(rounds):
        wait()
        start = perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (perf_counter() - start) / calls * 1e6)
    wait()
    return round(best, 1)


def directions(call, operands, time, kind=""):
    """A call without gradients, with them, and its backward pass."""
    found = {f"{kind}forward": time(call)}
    for x in operands:
        x.requires_grad_()
    found[f"{kind}recorded"] = time(call)
    out = call()
    back = partial(torch.autograd.grad, out, operands, torch.randn_like(out), retain_graph=True)
    found[f"{kind}backward"] = time(back)
    for x in operands:
        x.requires_grad_(False)
    return found


def measure(time, device, name, side, size, dilation, heads, dim):
    backend = next(found for found in BACKENDS if found.name == name)
    axis = Axis(side, size, 1, dilation)
    problem = Problem((axis, axis), 1, heads, heads, dim, dim, "bfloat16", "cuda", gradients=True)
    reason = backend.refusal(problem)
    if reason is not None:
        return {"problem": str(problem), "refused": reason}
    operands = query, key, value = random(device, (1, side, side, heads, dim))
    attend = partial(na2d, *operands, size, dilation=dilation)
    found = {"problem": str(problem)}
    if device == "cuda":
        found["error"] = error(attend(backend=name), attend(backend="reference"))
    ready = backend.prepare(problem, Operands(*operands), 0.2)
    found["backend"] = time(partial(ready, query, key, value, None, None, None))
    found |= directions(partial(attend, backend=name), operands, time)
    if device == "cuda":
        flat = [x.flatten(1, 2).transpose(1, 2) for x in operands]
        found |= directions(partial(scaled_dot_product_attention, *flat), flat, time, "dense_")
    return found


def measure_others(time, device):
    """Split operations of one plane, and a packed batch, in `triton`."""
    query, key, value = random(device, (1, 14, 14, 2, 32))
    (weights, *_) = random(device, (1, 14, 14, 2, 25))
    layout = VarlenLayout([(14, 14), (10, 12), (9, 9)])
    packed = random(device, (layout.total_tokens, 2, 32))
    calls = {
        "qk": (partial(na2d_qk, query, key, 5), (query, key)),
        "av": (partial(na2d_av, weights, value, 5), (weights, value)),
        "packed": (partial(neighborhood_attention_packed, *packed, layout, 5), packed),
    }
    for name, (call, operands) in calls.items():
        found = {"problem": name}
        if device == "cuda":
            found["error"] = error(call(backend="triton"), call(backend="reference"))
        yield name, found | directions(partial(call, backend="triton"), operands, time)


def random(device, shape):
    return tuple(torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3))


def error(found, wanted):
    """Largest error over the largest value."""
    worst = float((found - wanted).abs().max() / wanted.abs().max())
    assert worst < 0.02, worst
    return worst


COLUMNS = ("forward", "backend", "recorded", "backward", "dense_forward", "dense_recorded", "dense_backward")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--absent", action="store_true")
    options = parser.parse_args()
    device, name, wait = "cpu", "absent", lambda: None
    if options.absent:
        from tests.triton import absent

        absent.install(lambda *_: None)
    else:
        device, name, wait = "cuda", torch.cuda.get_device_name(), torch.cuda.synchronize
    time = partial(microseconds, wait=wait)
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    found = {"device": name, "versions": versions, "rows": {}}
    print(json.dumps(found))
    print(f"{'':20}" + "".join(f"{column:>16}" for column in COLUMNS))
    fused = ((title, measure(time, device, *row)) for title, row in ROWS.items())
    for title, measured in chain(fused, measure_others(time, device)):
        found["rows"][title] = measured
        cells = (f"{measured.get(column, ''):>16}" for column in COLUMNS)
        print(f"{title:20}" + "".join(cells) + measured.get("refused", ""), flush=True)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
