"""What the tiled kernels cost on named problems, by counters of the checker."""

from collections import Counter
from pathlib import Path

from tests.metal import checking
from tests.metal.checking import opened
from tests.torch import problems
from vicinal import Axis, Problem
from vicinal.torch.backends.metal import METAL

FILE = Path(__file__).parent / "counters.json"


def _problem(lengths, size, dtype):
    axes = tuple(Axis(length, size) for length in lengths)
    return Problem(axes, heads=4, kv_heads=4, dim=32, value_dim=32, dtype=dtype)


# The problems of natten-mps' README, with the heads of its examples.
PROBLEMS = {
    f"{name}_{dtype}": _problem(lengths, size, dtype)
    for name, lengths, size in (
        ("1d_1024_k7", (1024,), 7),
        ("2d_32_k7", (32, 32), 7),
        ("2d_64_k7", (64, 64), 7),
        ("3d_16_k3", (16, 16, 16), 3),
    )
    for dtype in ("float16", "float32")
}
SHOWN = ("device_bytes", "integer", "exp")


def total(session) -> dict[str, int]:
    """Sums over the launches since the last call."""
    assert not session.findings
    counted = Counter()
    for _, result in session.launches:
        counters, operations = result.counters, result.operations
        counted["device_bytes"] += counters["device_read_bytes"] + counters["device_write_bytes"]
        counted["integer"] += sum(operations[name] for name in ("integer", "integer_mul", "integer_divide"))
        for name in ("exp", "integer_divide", "private_reads"):
            counted[name] += operations[name]
        counted["barriers"] += counters["barriers"]
    session.launches.clear()
    return dict(counted)


def given(problem):
    return checking.arrange(problem, problems.operands(problem))


def count(problem) -> dict[str, dict[str, int]]:
    """Counters of the tiled kernels, forward and backward."""
    backend, scale = METAL, problem.dim**-0.5
    with opened() as session:
        operands = given(problem)
        out, lse = backend.attend(problem, operands, scale)
        found = {"forward": total(session)}
        needs = (True, True, True, False, False, False)
        backend.attend_back(problem, operands, out, lse, out, None, scale, needs)
        return found | {"backward": total(session)}
