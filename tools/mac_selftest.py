"""Checks the Metal kernels on a Mac, measures them, and writes a results file to send in.

    python tools/mac_selftest.py [results.json]

Times are medians of 20 runs after 5 that do not count, of the whole call, on the problems of natten-mps'
README. natten-mps itself is measured where it is installed.
"""

import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.metal import checking, counting  # noqa: E402
from vicinal import Problem, __version__  # noqa: E402
from vicinal.catalog import SMALL  # noqa: E402
from vicinal.metal import source  # noqa: E402


def machine() -> dict[str, str]:
    chip = subprocess.run(
        ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True
    )
    return {
        "chip": chip.stdout.strip(),
        "macos": platform.mac_ver()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vicinal": __version__,
    }


def checks() -> dict[str, str]:
    """What each backend says of each small problem: `ok`, or the first error."""
    found = {}
    for backend in checking.BACKENDS:
        for case in (case for case in SMALL if case.problem.dtype in source.TYPES):
            name = f"{backend.name} {case.name}"
            try:
                checking.check(backend, case.problem)
                found[name] = "ok"
            except (AssertionError, RuntimeError, SyntaxError) as error:
                # The report must hold every failure, not end at the first.
                found[name] = f"{type(error).__name__}: {error}"[:2000]
            print(name, found[name], flush=True)
    return found


def median(run: Callable[[], object], runs: int = 20) -> float:
    """Milliseconds."""
    times = []
    for number in range(runs + 5):
        torch.mps.synchronize()
        start = time.perf_counter()
        run()
        torch.mps.synchronize()
        if number >= 5:
            times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[runs // 2]


def ours(problem: Problem, backend) -> tuple[Callable, Callable]:
    given, scale = counting.given(problem), problem.dim**-0.5
    out, lse = backend.attend(problem, given, scale)
    needs = (True, True, True, False, False, False)
    return (
        lambda: backend.attend(problem, given, scale),
        lambda: backend.attend_back(problem, given, out, lse, out, None, scale, needs),
    )


def theirs(problem: Problem) -> tuple[Callable, Callable]:
    from natten_mps._core import metal

    query, key, value, *_ = counting.given(problem)
    rank, window, scale = problem.rank, problem.window, problem.dim**-0.5
    ones, causal = (1,) * rank, (False,) * rank
    forward = getattr(metal, f"na{rank}d_forward_with_lse")
    backward = getattr(metal, f"na{rank}d_fused_backward")
    out, lse = forward(query, key, value, window, ones, ones, causal, scale)
    return (
        lambda: forward(query, key, value, window, ones, ones, causal, scale),
        lambda: backward(out, query, key, value, out, lse, window, ones, ones, causal, scale),
    )


def timings() -> dict[str, dict[str, float]]:
    """Milliseconds of each problem and direction, by implementation."""
    found = {}
    for name, problem in counting.PROBLEMS.items():
        calls = {backend.name: ours(problem, backend) for backend in checking.BACKENDS}
        if importlib.util.find_spec("natten_mps") is not None:
            calls["natten-mps"] = theirs(problem)
        for place, direction in enumerate(("forward", "backward")):
            found[f"{name} {direction}"] = {who: median(pair[place]) for who, pair in calls.items()}
            print(name, direction, found[f"{name} {direction}"], flush=True)
    return found


def main() -> None:
    if not checking.HAS_METAL:
        sys.exit("this machine has no Apple GPU that PyTorch can use")
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "mac_selftest.json")
    results = {"machine": machine(), "checks": checks(), "milliseconds": timings()}
    target.write_text(json.dumps(results, indent=1) + "\n")
    failed = [name for name, said in results["checks"].items() if said != "ok"]
    print(f"{target}: {len(results['checks']) - len(failed)} checks passed, {len(failed)} failed")


if __name__ == "__main__":
    main()
