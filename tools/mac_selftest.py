"""Checks the Metal kernels on a Mac, measures them, and writes a results file to send in.

    make mac-selftest
    python tools/mac_selftest.py [results.json] [--peers DIR]

Every small problem of the catalog is compared with the float64 oracle, from PyTorch and from MLX. Then come
the tables of natten-mps' README: its problems, float32, one batch entry, 4 heads, head dim 32, and its padded
batches, whose entries are from half to all of their room. Numbers are milliseconds of the whole call, medians
of 20 runs after 5 that do not count; `training` is forward and backward. natten-mps and natten-mlx 0.3.3 are
measured beside ours; they come from PyPI into `--peers`.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "mslcpu")]

from tests.metal import checking  # noqa: E402
from vicinal import __version__, using  # noqa: E402
from vicinal.catalog import SMALL  # noqa: E402
from vicinal.metal import source  # noqa: E402

PINNED = ("natten-mps==0.3.3", "natten-mlx==0.3.3")
OURS = ("metal", "metal-plain")
# Lengths, window, causality.
TABLE = {
    "1D L=256 K=7": ((256,), 7, False),
    "1D L=1024 K=7": ((1024,), 7, False),
    "2D 32x32 K=7": ((32, 32), 7, False),
    "2D 64x64 K=7": ((64, 64), 7, False),
    "2D 32x32 K=7 causal": ((32, 32), 7, True),
    "3D 16^3 K=3": ((16, 16, 16), 3, False),
}
# Batch, room of an entry, window.
DOCUMENTS = {
    "varlen 1D B=4 L=128 K=7": (4, (128,), 7),
    "varlen 1D B=4 L=256 K=7": (4, (256,), 7),
    "varlen 2D B=2 16x16 K=3": (2, (16, 16), 3),
    "varlen 2D B=2 32x32 K=7": (2, (32, 32), 7),
    "varlen 3D B=2 8^3 K=3": (2, (8, 8, 8), 3),
}
HEADS, DIM = 4, 32
Calls = dict[str, tuple[Callable[[], object], Callable[[], object]]]


def machine() -> dict[str, str]:
    chip = subprocess.run(
        ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True
    )
    versions = {name: import_module(name).__version__ for name in ("torch", "mlx.core")}
    system = {"chip": chip.stdout.strip(), "macos": platform.mac_ver()[0]}
    return {**system, "python": platform.python_version(), "vicinal": __version__, **versions}


def checks() -> dict[str, str]:
    """What each framework and backend says of each small problem: `ok`, or the first error."""
    from tests.mlx import problems

    runs = {f"PyTorch {backend.name}": partial(checking.check, backend) for backend in checking.BACKENDS}
    for backend in OURS:
        runs[f"MLX {backend}"] = partial(problems.check, backend=backend)
    found = {}
    for who, run in runs.items():
        for case in (case for case in SMALL if case.problem.dtype in source.TYPES):
            name = f"{who} {case.name}"
            try:
                run(case.problem)
                found[name] = "ok"
            except (AssertionError, RuntimeError, SyntaxError, ValueError) as error:
                # The report must hold every failure, not end at the first.
                found[name] = f"{type(error).__name__}: {error}"[:2000]
            print(name, found[name], flush=True)
    return found


def pipelines() -> dict[str, dict[str, int]]:
    """Fills while kernels compile: threads that a threadgroup may have, and its memory in bytes."""
    from vicinal.torch import shaders

    found, compiled = {}, shaders._shader

    def recorded(host: str, instantiation: str):
        shader = compiled(host, instantiation)
        names = ("max_threads_per_threadgroup", "static_thread_group_memory_length")
        found[host] = {name: getattr(shader, name) for name in names if hasattr(shader, name)}
        return shader

    shaders._shader = recorded
    return found


def median(run: Callable[[], object], runs: int = 20) -> float:
    """Milliseconds; `run` waits for its own result."""
    times = []
    for number in range(runs + 5):
        start = time.perf_counter()
        run()
        if number >= 5:
            times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[runs // 2]


def torch_calls(attend: Callable, shape: tuple[int, ...], backend: Callable) -> tuple[Callable, Callable]:
    """Forward, and forward and backward."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(checking.DEVICE) for _ in range(4)]
    *inputs, flow = tensors
    wait = torch.mps.synchronize if checking.HAS_METAL else lambda: None

    def forward() -> None:
        with torch.no_grad(), backend():
            attend(*inputs)
        wait()

    def training() -> None:
        leaves = [x.requires_grad_() for x in inputs]
        with backend():
            torch.autograd.grad(attend(*leaves), leaves, flow)
        wait()
        for x in leaves:
            x.requires_grad_(False)

    return forward, training


def mlx_calls(attend: Callable, shape: tuple[int, ...], backend: Callable) -> tuple[Callable, Callable]:
    """The same, of MLX."""
    import mlx.core as mx

    *inputs, flow = (mx.random.normal(shape, key=mx.random.key(place)) for place in range(4))
    mx.eval(inputs, flow)

    def forward() -> None:
        with backend():
            mx.eval(attend(*inputs))

    def training() -> None:
        with backend():
            mx.eval(mx.vjp(attend, inputs, [flow])[1])

    return forward, training


def ours() -> Iterator[tuple[str, object, Callable, Callable]]:
    """Name, module with `na1d` to `na3d` and their `_varlen`, maker of calls, and backend to run with."""
    import vicinal.mlx
    import vicinal.torch

    for backend in OURS:
        yield f"PyTorch {backend}", vicinal.torch, torch_calls, partial(using, backend=backend)
    for backend in OURS:
        yield f"MLX {backend}", vicinal.mlx, mlx_calls, partial(using, backend=backend)


def peers() -> Iterator[tuple[str, object, Callable, Callable]]:
    """The same of others."""
    for backend in ("metal", "pure"):
        peer = import_module("natten_mps")
        yield f"natten-mps {backend}", peer, torch_calls, partial(chosen, peer, backend)
    yield "natten-mlx", import_module("natten_mlx"), mlx_calls, nullcontext


@contextmanager
def chosen(module, backend: str) -> Iterator[None]:
    """A peer's backend; its own choice afterwards."""
    module.set_backend(backend)
    yield
    module.set_backend("auto")


def fixed(module, rank: int, size: int, causal: bool) -> Callable:
    attend = getattr(module, f"na{rank}d")
    return lambda q, k, v: attend(q, k, v, size, is_causal=causal)


def padded(module, make: Callable, batch: int, room: tuple[int, ...], size: int) -> Callable:
    """Entry `i` of a batch is filled from a half to the whole of every axis."""
    rank = len(room)
    shares = [(batch + place) / (2 * batch - 1) for place in range(batch)]
    sizes = [[max(size, round(extent * share)) for extent in room] for share in shares]
    if rank == 1:
        sizes = [extents[0] for extents in sizes]
    if make is torch_calls:
        counts = torch.tensor(sizes)
    else:
        import mlx.core as mx

        counts = mx.array(sizes)
    attend = getattr(module, f"na{rank}d_varlen")
    return lambda q, k, v: attend(q, k, v, counts, size)


def rows(members: list) -> Iterator[tuple[str, Calls]]:
    """Every row of the tables, with the calls of those who can."""
    for name, (lengths, size, causal) in TABLE.items():
        shape, calls = (1, *lengths, HEADS, DIM), {}
        for who, module, make, backend in members:
            calls[who] = make(fixed(module, len(lengths), size, causal), shape, backend)
        yield name, calls
    for name, (batch, room, size) in DOCUMENTS.items():
        shape, calls = (batch, *room, HEADS, DIM), {}
        for who, module, make, backend in members:
            if hasattr(module, f"na{len(room)}d_varlen"):
                calls[who] = make(padded(module, make, batch, room, size), shape, backend)
        yield name, calls


def timings(members: list) -> dict[str, dict[str, float | str]]:
    """Milliseconds of each row and direction, by implementation."""
    found = {}
    for name, calls in rows(members):
        for place, direction in enumerate(("forward", "training")):
            row = found[f"{name} {direction}"] = {}
            for who, pair in calls.items():
                try:
                    row[who] = median(pair[place])
                except (RuntimeError, ValueError, TypeError) as error:
                    row[who] = f"{type(error).__name__}: {error}"[:500]
            print(name, direction, row, flush=True)
    return found


def install(folder: Path) -> None:
    """Makes the peers importable."""
    if not (folder / "natten_mlx").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *PINNED]
        subprocess.run(pip, check=True)
    sys.path.insert(0, str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="?", type=Path, default=Path("mac_selftest.json"))
    parser.add_argument("--peers", type=Path, help="where peers lie, or go (default: a temporary folder)")
    args = parser.parse_args()
    if not checking.HAS_METAL:
        sys.exit("this machine has no Apple GPU that PyTorch can use")
    with tempfile.TemporaryDirectory() as folder:
        install(args.peers or Path(folder))
        compiled = pipelines()
        results = {"machine": machine(), "checks": checks(), "pipelines": compiled}
        results["milliseconds"] = timings([*ours(), *peers()])
    args.results.write_text(json.dumps(results, indent=1) + "\n")
    failed = [name for name, said in results["checks"].items() if said != "ok"]
    print(f"{args.results}: {len(results['checks']) - len(failed)} checks passed, {len(failed)} failed")


if __name__ == "__main__":
    main()
