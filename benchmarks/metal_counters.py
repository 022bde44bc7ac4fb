"""What Metal kernels ask of the hardware, counted by tools/mslcpu: ours, and natten-mps 0.3.3's.

    python benchmarks/metal_counters.py [--peers DIR] [--write]

Counts, not times: bytes that loads and stores of device memory ask for before any cache, integer operations,
exponentials. natten-mps comes from PyPI, into `--peers`; its results are compared with ours before it is
counted. Fails where ours ask for more than GATES allow. `--write` puts ours into tests/metal/counters.json,
the budget that tests hold them to.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "mslcpu")]

from tests.metal import counting  # noqa: E402
from vicinal.torch.backends.metal import METAL  # noqa: E402

PINNED = "natten-mps==0.3.3"
# What ours may ask for, as a part of what natten-mps does: direction, counter, problems, part.
TILED, SHORT = ("2d_32_k7", "2d_64_k7"), ("1d_1024_k7", "3d_16_k3")
GATES = (
    ("forward", "device_bytes", TILED, 1 / 8),
    ("forward", "device_bytes", SHORT, 1 / 3),
    ("forward", "integer", TILED + SHORT, 1 / 5),
    ("forward", "exp", TILED + SHORT, 1 / 5),
    ("backward", "device_bytes", TILED + SHORT, 1 / 2),
    ("backward", "integer", TILED + SHORT, 1 / 4),
)


def install(folder: Path) -> None:
    """Makes natten-mps importable."""
    if not (folder / "natten_mps").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), PINNED]
        subprocess.run(pip, check=True)
    sys.path.insert(0, str(folder))


def theirs(problem) -> dict[str, dict[str, int]]:
    """Counters of natten-mps' fused kernels, forward and backward."""
    from natten_mps._core import inverse_maps, metal

    # Its tensors lie on the CPU here.
    metal._on_mps = lambda *tensors: True
    inverse_maps._to_mps_tensor = lambda array: torch.from_numpy(array).int()
    metal._LIB = metal._FUSED_LIB = None
    query, key, value, _, _, _ = counting.given(problem)
    rank, window, scale = problem.rank, problem.window, problem.dim**-0.5
    rest = (window, (1,) * rank, (1,) * rank, (False,) * rank, scale)
    forward, backward = (
        getattr(metal, f"na{rank}d_{name}") for name in ("forward_with_lse", "fused_backward")
    )
    # Its comments have letters that PyTorch's encoding of sources does not hold.
    with counting.opened(edit=lambda text: text.encode("ascii", "ignore").decode()) as session:
        out, lse = forward(query, key, value, *rest)
        found = {"forward": counting.total(session)}
        grads = backward(out, query, key, value, out, lse, *rest)
        found["backward"] = counting.total(session)
    check(problem, (out, *grads))
    return found


def check(problem, results) -> None:
    """natten-mps computes what we do, forward and backward."""
    given, scale = counting.given(problem), problem.dim**-0.5
    needs = (True, True, True, False, False, False)
    with counting.opened():
        out, lse = METAL.attend(problem, given, scale)
        grads = METAL.attend_back(problem, given, out, lse, out, None, scale, needs)
    tolerance = {"float32": 1e-5, "float16": 1e-2}[problem.dtype]
    for one, other in zip(results, (out, *grads[:3]), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def over(name: str, counts: dict, other: dict) -> list[str]:
    """Gates that a problem does not pass."""
    return [
        f"{name} {direction} {counter}"
        for direction, counter, problems, part in GATES
        if name.rsplit("_", 1)[0] in problems
        and counts[direction][counter] > part * other[direction][counter]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers", type=Path, help="where natten-mps lies, or goes (default: a temporary folder)"
    )
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        install(args.peers or Path(folder))
        budgets, failed = {}, []
        print("problem | direction | counter | ours | natten-mps | ratio")
        for name, problem in counting.PROBLEMS.items():
            budgets[name] = ours = counting.count(problem)
            other = theirs(problem)
            for direction, counts in ours.items():
                for counter in counting.SHOWN:
                    have, against = counts[counter], other[direction][counter]
                    print(
                        f"{name} | {direction} | {counter} | {have} | {against} | {against / have:.1f}",
                        flush=True,
                    )
            failed += over(name, ours, other)
    if args.write:
        counting.FILE.write_text(json.dumps(budgets, indent=1) + "\n")
    if failed:
        sys.exit("over their gates: " + ", ".join(failed))


if __name__ == "__main__":
    with torch.no_grad():
        main()
