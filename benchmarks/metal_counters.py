"""What Metal kernels ask of the hardware, counted by tools/mslcpu: ours, and natten-mps' if installed.

    python benchmarks/metal_counters.py [--write]

Counts, not times: bytes that loads and stores of device memory ask for before any cache, integer operations,
exponentials. `--write` puts ours into tests/metal/counters.json, the budget that tests hold them to.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "mslcpu")]

from tests.metal import counting  # noqa: E402


def theirs(problem, session) -> dict[str, dict[str, int]]:
    """The same of natten-mps' fused kernels, forward and backward."""
    from natten_mps._core import inverse_maps, metal

    # Its tensors lie on the CPU here.
    metal._on_mps = lambda *tensors: True
    inverse_maps._to_mps_tensor = lambda array: torch.from_numpy(array).int()
    metal._LIB = metal._FUSED_LIB = None
    query, key, value, _, _, _ = counting.given(problem)
    rank, window = problem.rank, problem.window
    ones, scale = (1,) * rank, problem.dim**-0.5
    causal = (False,) * rank
    forward = getattr(metal, f"na{rank}d_forward_with_lse")
    out, lse = forward(query, key, value, window, ones, ones, causal, scale)
    found = {"forward": counting.total(session)}
    backward = getattr(metal, f"na{rank}d_fused_backward")
    backward(out, query, key, value, out, lse, window, ones, ones, causal, scale)
    return found | {"backward": counting.total(session)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    compared = importlib.util.find_spec("natten_mps") is not None
    budgets = {}
    print("problem | direction | counter | ours | natten-mps | ratio")
    for name, problem in counting.PROBLEMS.items():
        budgets[name] = ours = counting.count(problem)
        other = {}
        if compared:
            # Its comments have letters that PyTorch's encoding of sources does not hold.
            with counting.opened(edit=lambda text: text.encode("ascii", "ignore").decode()) as session:
                other = theirs(problem, session)
        for direction, counts in ours.items():
            for counter in counting.SHOWN:
                have, against = counts[counter], other.get(direction, {}).get(counter)
                ratio = "" if not against else f"{against} | {against / max(have, 1):.1f}"
                print(f"{name} | {direction} | {counter} | {have} | {ratio}", flush=True)
    if write:
        counting.FILE.write_text(json.dumps(budgets, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
