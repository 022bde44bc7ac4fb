"""The `cuda` backend with its kernels in Triton's interpreter, against the oracle: needs TRITON_INTERPRET=1.

What MLX would launch runs here on PyTorch's tensors instead; all else is what runs on a GPU.
"""

import sys
from dataclasses import replace
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import torch

from tests import budget, oracle
from tests.documents import CASES, EXTRA
from tests.mlx import documents, problems
from tests.triton import interpreting
from vicinal import catalog
from vicinal.mlx import fused, ops
from vicinal.mlx.backends.cuda import CUDA, Cuda


def launched(launch, inputs, results, fill=None):
    """`fused.run` by interpretation; what a kernel leaves unwritten is NaN."""
    tensors = [None if x is None else torch.from_numpy(np.array(x)) for x in inputs]
    start = float("nan") if fill is None else fill
    made = [torch.full(shape, start, dtype=getattr(torch, str(dtype)[9:])) for shape, dtype in results]
    launch(*tensors, *made)
    return [mx.array(x.numpy()) for x in made]


def check_walks(problem):
    problem = replace(problem, extra=0, bias=False)
    win = oracle.window(problem.rank, **problems.window(problem))
    generator = np.random.default_rng(3)
    rows = lambda width: problems.random(  # noqa: E731
        generator, (problem.batch, *problem.outputs, problem.heads, width), problem.dtype
    )
    columns = lambda width: problems.random(  # noqa: E731
        generator, (problem.batch, *problem.lengths, problem.kv_heads, width), problem.dtype
    )
    rounded = problem.dtype != "float32"
    check = lambda name, x, y: budget.check(name, problems.array(x), y, problem.dtype, rounded)  # noqa: E731
    query, key = rows(problem.dim), columns(problem.dim)
    weights = CUDA.dot(replace(problem, operation="dot"), query, key, 0.3, -3.0)
    check("dot", weights, oracle.dot(problems.array(query), problems.array(key), win, 0.3, fill=-3.0))
    holes = problems.array(weights) == -3.0
    poisoned = mx.where(mx.array(holes), float("nan"), weights).astype(weights.dtype)
    clean = np.where(holes, 0.0, problems.array(weights))
    value, x = columns(problem.value_dim), rows(problem.value_dim)
    walk = replace(problem, operation="mix", dim=problem.value_dim)
    check("mix", CUDA.mix(walk, poisoned, value), oracle.mix(clean, problems.array(value), win))
    back = CUDA.mix_back(replace(walk, operation="mix_back"), poisoned, x)
    exact = oracle.mix_back(clean, problems.array(x), problem.lengths, problem.kv_heads, win)
    check("mix_back", back, exact)


def check_problem(name):
    found = replace(catalog.named(name).problem, device="cuda")
    problems.check(found, "cuda")
    check_walks(found)


def check_documents(name):
    """Against the oracle, and that all documents are in one problem, forward and backward."""
    case = {**CASES, **EXTRA}[name]
    case = replace(case, dtype="float32")
    shapes = {shape for shape in case.shapes if 0 not in shape}
    for form in documents.FORMS.values():
        seen = []
        with (
            patch.object(Cuda, "attend", _recorded(Cuda.attend, seen)),
            patch.object(Cuda, "attend_back", _recorded(Cuda.attend_back, seen)),
        ):
            documents.check(form, case, backend="cuda")
        assert len(seen) == 2 * (len(shapes) > 0)
        assert all((problem.documents is not None) == (len(shapes) > 1) for problem in seen)


def _recorded(method, seen):
    def run(self, problem, *rest):
        seen.append(problem)
        return method(self, problem, *rest)

    return run


if __name__ == "__main__":
    interpreting.start()
    fused.run = launched
    Cuda.refusal = lambda self, problem: None
    ops.device = lambda: "cuda"
    for name in sys.argv[2:]:
        {"problems": check_problem, "documents": check_documents}[sys.argv[1]](name)
