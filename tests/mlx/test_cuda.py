"""The `cuda` backend: what it refuses, what it hands to MLX, its kernels interpreted and on a GPU."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import vicinal.mlx as na
from tests import budget
from tests.mlx import problems
from vicinal import Axis, Problem
from vicinal.catalog import named
from vicinal.mlx import ops
from vicinal.mlx.operands import Operands
from vicinal.triton import support

ROOT = Path(__file__).parents[2]
# Shared memory of a program, in bytes.
SHARED = {80: 101376, 90: 232448}
ON_GPU = Problem((Axis(9, 3),), device="cuda")

# The package holds the backend under the same name.
module = import_module("vicinal.mlx.backends.cuda")
has_triton = find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not has_triton, reason="Triton is not installed")
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch, which interprets, is missing")
on_gpu = pytest.mark.skipif(not mx.cuda.is_available(), reason="MLX finds no NVIDIA GPU")


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (replace(ON_GPU, device="cpu"), "runs on cuda, not cpu"),
        (replace(ON_GPU, device="metal"), "runs on cuda, not metal"),
        (replace(ON_GPU, dim=257), "head dim 257 is over 256"),
        (replace(ON_GPU, value_dim=0), "head dim 0 is under 1"),
    ],
)
def test_refusals(problem, reason):
    assert module.CUDA.refusal(problem) == reason


@pytest.mark.parametrize(
    ("found", "reason"), [(None, "Triton is not installed"), ((3, 3), "Triton 3.3 is older than 3.4")]
)
def test_missing_triton_is_a_refusal(found, reason, monkeypatch):
    monkeypatch.setattr(support, "installed", lambda: found)
    assert module.CUDA.refusal(ON_GPU) == reason


@needs_triton
@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        (None, "MLX finds no NVIDIA GPU"),
        (75, "needs an NVIDIA GPU of compute capability 8.0 or newer"),
        (90, None),
    ],
)
def test_the_gpu_decides(capability, reason, monkeypatch):
    fused = import_module("vicinal.mlx.fused")
    monkeypatch.setattr(module.mx.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(fused, "capability", lambda: capability)
    module._machine.cache_clear()
    assert module.CUDA.refusal(ON_GPU) == reason
    huge = replace(ON_GPU, axes=(Axis(1 << 20, 3),), batch=1 << 10)
    assert (module.CUDA.refusal(huge) or "").endswith("over 8388607" if reason is None else reason)
    module._machine.cache_clear()


def blank(problem):
    """Operands without numbers, as a backend gets them."""
    zeros = lambda *shape: mx.zeros(shape, getattr(mx, problem.dtype))  # noqa: E731
    rows, columns = (problem.batch, *problem.outputs), (problem.batch, *problem.lengths, problem.kv_heads)
    extra = (problem.batch, problem.extra, problem.kv_heads)
    return Operands(
        zeros(*rows, problem.heads, problem.dim),
        zeros(*columns, problem.dim),
        zeros(*columns, problem.value_dim),
        zeros(problem.heads, *(2 * size - 1 for size in problem.window)) if problem.bias else None,
        zeros(*extra, problem.dim) if problem.extra else None,
        zeros(*extra, problem.value_dim) if problem.extra else None,
    )


class Handed:
    """What MLX is handed for a GPU that need not be here, with the text of each kernel."""

    def __init__(self, monkeypatch, capability):
        self.fused = import_module("vicinal.mlx.fused")
        ahead = import_module("vicinal.triton.ahead")
        self.calls, self.texts = [], {}
        original = ahead.triton.compile

        def compile_kept(*args, **options):
            made = original(*args, **options)
            self.texts[made.metadata.name] = made.asm["ptx"]
            return made

        def kept(**call):
            self.calls.append(call)
            shapes, dtypes = call["output_shapes"], call["output_dtypes"]
            return [mx.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]

        ahead.compiled.cache_clear()
        monkeypatch.setattr(ahead.triton, "compile", compile_kept)
        monkeypatch.setattr(self.fused, "capability", lambda: capability)
        monkeypatch.setattr(self.fused.mx.fast, "precompiled_cuda_kernel", kept)

    def everything(self, problem):
        """Run attention, its gradients and the walks."""
        problem = replace(problem, device="cuda")
        given = blank(problem)
        out, lse = self.fused.attend(problem, given, 0.1)
        grads = self.fused.attend_back(problem, given, out, lse, out, lse, 0.1)
        for x, grad in zip(given, grads, strict=True):
            assert (x is None) == (grad is None)
            assert x is None or (grad.shape, grad.dtype) == (x.shape, x.dtype)
        walk = replace(problem, extra=0, bias=False)
        weights = self.fused.dot(replace(walk, operation="dot"), given.query, given.key, 0.1, 0.0)
        walk = replace(walk, operation="mix", dim=problem.value_dim)
        assert self.fused.mix(walk, weights, given.value).shape == out.shape
        back = self.fused.mix_back(replace(walk, operation="mix_back"), weights, out)
        assert back.shape == given.value.shape

    def check(self, shared):
        """Names, parameters, threads and memory are those of the compiled kernels."""
        binaries = {}
        for call in self.calls:
            name, text = call["name"], self.texts[call["name"]]
            assert binaries.setdefault(name, call["compiled_source"]) == call["compiled_source"]
            assert name.encode() in call["compiled_source"]
            found = re.search(rf"\.visible \.entry {name}\(([^)]*)\)\s*\.reqntid (\d+)", text)
            types = re.findall(r"\.param \.(\w+)", found[1])
            tensors = len(call["inputs"]) + len(call["output_shapes"])
            numbers = ["f32" if isinstance(x, float) else "u32" for x in call["scalars"][:-2]]
            own = ["u64"] * tensors + numbers
            assert types[: len(own)] == own
            # Triton 3.4 has one scratch address and 3.6 two; launches read as many as there are.
            assert types[len(own) :] in (["u64"], ["u64", "u64"])
            assert all(abs(x) < 2**31 for x in call["scalars"])
            assert call["threadgroup"] == (int(found[2]), 1, 1)
            assert call["grid"][0] % int(found[2]) == 0
            assert call["shared_memory"] <= shared
        return binaries


@needs_triton
def test_parameters_are_those_of_the_kernel(monkeypatch):
    handed = Handed(monkeypatch, 90)
    handed.everything(named("everything").problem)
    assert len(handed.check(SHARED[90])) == 10


@needs_triton
@pytest.mark.offline
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles(capability, monkeypatch):
    handed = Handed(monkeypatch, capability)
    for name in ("odd_1d", "odd_3d", "causal_stride", "multi_query", "everything"):
        for dtype in ("float32", "float16", "bfloat16"):
            handed.everything(replace(named(name).problem, dtype=dtype))
    for dim in (64, 128, 256):
        plane = replace(named("hdit_256_l0").problem, dim=dim, value_dim=dim, dtype="bfloat16")
        handed.everything(plane)
    handed.check(SHARED[capability])


@needs_triton
def test_specializations_differ_in_name(monkeypatch):
    """MLX keeps one kernel a name: strides, dtypes and options that change code change it."""
    handed = Handed(monkeypatch, 90)
    base = replace(named("odd_2d").problem, device="cuda")
    several = [
        base,
        replace(base, dim=16),
        replace(base, dtype="float16"),
        replace(base, heads=1, kv_heads=1),
    ]
    for problem in several:
        handed.fused.attend(problem, blank(problem), 0.1)
    assert len({call["name"] for call in handed.calls}) == len(several)
    handed.check(SHARED[90])


@needs_triton
def test_numbers_of_over_32_bits_are_compiled_in(monkeypatch):
    handed = Handed(monkeypatch, 90)
    launches, ahead = (import_module(f"vicinal.triton.{name}") for name in ("launches", "ahead"))
    problem = replace(named("odd_2d").problem, device="cuda")
    large = (1 << 40) + 16
    step = (large, 140, 20, 10, 1)
    launch = launches.forward_launch(problem, 0.1, (step, step, step, (), (), ()))
    code = ahead.compiled(launch, ("float32",) * 3 + (None,) * 4 + ("float32",) * 2, 90)
    assert large not in code.numbers
    assert re.search(rf"\b(?:{large}|{4 * large})\b", handed.texts[code.name])


def interpret(what, *names):
    """Check problems of the catalog, or batches of documents, in a process that interprets Triton."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.mlx.interpreted", what, *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@needs_triton
@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["float16", "causal_stride", "multi_query"], ["everything", "bias"]], ids=" ".join
)
def test_kernels_match_the_oracle(names):
    interpret("problems", *names)


@needs_triton
def test_nothing_needs_torch():
    program = "import sys\nsys.modules['torch'] = None\nfrom vicinal.mlx import fused"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("dtype", "tf32"), [("float32", True), ("float32", False), ("float16", True)])
def test_tf32_is_asked_for(dtype, tf32, monkeypatch):
    """By the settings of the call, which rule its backward too."""
    seen = []
    choose = ops.choose
    monkeypatch.setattr(ops, "device", lambda: "cuda")
    monkeypatch.setattr(ops, "choose", lambda *given: seen.append(given[1].tf32) or choose(*given))
    ops._found.cache_clear()
    problem = replace(named("odd_1d").problem, dtype=dtype)
    operands = problems.operands(problem)

    def attend(query):
        with na.using(tf32=tf32, backend="blocked"):
            return problems.call(problem, {**operands, "query": query})

    mx.eval(mx.vjp(attend, [operands["query"]], [operands["query"]]))
    assert seen == [tf32 and dtype == "float32"] * 2
    ops._found.cache_clear()


@pytest.mark.skipif(mx.cuda.is_available(), reason="MLX would launch it")
@needs_triton
def test_mlx_accepts_what_it_is_handed(monkeypatch):
    """Where MLX has no GPU it says so after it has looked at the arguments."""
    accepts = mx.fast.precompiled_cuda_kernel
    handed = Handed(monkeypatch, 90)
    problem = replace(named("causal").problem, device="cuda")
    handed.fused.attend(problem, blank(problem), 0.1)
    walk = replace(problem, operation="dot")
    handed.fused.dot(walk, blank(problem).query, blank(problem).key, 0.1, -float("inf"))
    for call in handed.calls:
        with pytest.raises(RuntimeError, match="No CUDA back-end"):
            accepts(**call)


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dim", [32, 64, 80, 128, 256])
def test_head_dims(dim, dtype):
    axes = (Axis(24, 7), Axis(19, 5, dilation=2))
    problem = Problem(axes, batch=2, heads=4, kv_heads=2, dim=dim, value_dim=dim, dtype=dtype)
    problems.check(problem, "cuda")


@pytest.mark.cuda
@on_gpu
def test_slices_begin_where_they_may():
    """Entries of a batch, and views into a long array at an odd place, are what their copies are."""
    problem = replace(named("odd_2d").problem, dim=16, value_dim=16, dtype="float16", batch=1)
    several = problems.operands(replace(problem, batch=3))
    for entry in range(3):
        view = {name: x[entry : entry + 1] for name, x in several.items()}
        flat = {
            name: mx.concatenate([mx.zeros(3, x.dtype), x.flatten(), mx.zeros(1 << 14, x.dtype)])
            for name, x in view.items()
        }
        odd = {name: flat[name][3 : 3 + x.size].reshape(x.shape) for name, x in view.items()}
        copy = {name: mx.array(np.array(x)) for name, x in view.items()}
        expected = problems.call(problem, copy, backend="cuda")
        for given in (view, odd):
            assert problems.same([problems.call(problem, given, backend="cuda")], [expected])


@pytest.mark.cuda
@on_gpu
def test_trains_in_half_precision():
    """A layer's gradients are those of `reference` within the budget."""
    layer = na.NeighborhoodAttention2D(64, 4, 5, rel_pos_bias=True)
    layer.set_dtype(mx.float16)
    x = problems.random(np.random.default_rng(0), (2, 12, 13, 64), "float16")
    found = []
    for backend in ("cuda", "reference"):
        with na.using(backend=backend):
            loss = lambda x: layer(x).astype(mx.float32).square().sum()  # noqa: E731
            found.append(mx.grad(loss)(x))
    budget.check("gradient", *map(problems.array, found), "float16", rounded_weights=True)
