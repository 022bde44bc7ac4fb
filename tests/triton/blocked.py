"""Without Triton its backends refuse, and all else works; Triton cannot be imported in this process."""

import sys

sys.modules["triton"] = None

import torch  # noqa: E402

import vicinal.torch as na  # noqa: E402
from vicinal import Axis, Problem  # noqa: E402
from vicinal.dispatch import choose  # noqa: E402
from vicinal.torch.backends import BACKENDS  # noqa: E402


def main():
    for operation in ("attend", "dot", "mix", "mix_back"):
        for size in (3, 40):
            p = Problem((Axis(64, size),), dim=64, dtype="float16", device="cuda", operation=operation)
            reasons = {backend.name: backend.refusal(p) for backend in BACKENDS}
            assert reasons["triton"] == "Triton is not installed", reasons
            assert operation != "attend" or reasons["hopper"] == "Triton is not installed", reasons
            assert choose(BACKENDS, p, None).name == "blocked"
    query = torch.randn(1, 9, 1, 4)
    assert na.na1d(query, query, query, 3).isfinite().all()


if __name__ == "__main__":
    main()
