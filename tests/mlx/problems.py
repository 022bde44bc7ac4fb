"""Operands of a problem as MLX arrays, and its exact answer."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
from hypothesis import settings

from tests import budget, oracle
from tests.strategies import problems, window  # noqa: F401  (for the tests)
from vicinal import using
from vicinal.mlx import av, neighborhood_attention, ops, qk
from vicinal.mlx.backends import BACKENDS

_RENAMED = {"extra_key": "additional_keys", "extra_value": "additional_values"}


def takes(backend, problem):
    """Whether a backend runs the problem where MLX runs now."""
    return backend.refusal(replace(problem, device=ops.device())) is None


def examples(count):
    """Settings of a test over random problems; on a GPU the kernels of each take seconds to compile."""
    return settings(max_examples=count if ops.device() == "cpu" else max(4, count // 10), deadline=None)


def maps(problem, backend):
    """Whether `mx.vmap` works here: MLX maps no kernel that is not its own."""
    runs = next(b for b in BACKENDS if b.name == backend or (backend is None and takes(b, problem)))
    return runs.name not in ("cuda", "metal", "metal-plain")


def operands(problem, seed=0):
    """Random arrays for the public function, by name; options the problem does not have are absent."""
    generator = np.random.default_rng(seed)
    keys, values = (problem.kv_heads, problem.dim), (problem.kv_heads, problem.value_dim)
    shapes = {
        "query": (problem.batch, *problem.lengths, problem.heads, problem.dim),
        "key": (problem.batch, *problem.lengths, *keys),
        "value": (problem.batch, *problem.lengths, *values),
    }
    if problem.bias:
        shapes["bias"] = (problem.heads, *(2 * size - 1 for size in problem.window))
    if problem.extra:
        shapes["extra_key"] = (problem.batch, problem.extra, *keys)
        shapes["extra_value"] = (problem.batch, problem.extra, *values)
    return {name: random(generator, shape, problem.dtype) for name, shape in shapes.items()}


def random(generator, shape, dtype="float32"):
    return mx.array(generator.standard_normal(shape).astype(np.float32)).astype(getattr(mx, dtype))


def array(x):
    """A float64 array for the oracle."""
    return x if isinstance(x, np.ndarray) else np.array(x.astype(mx.float32)).astype(np.float64)


def arrays(operands):
    return {name: array(x) for name, x in operands.items()}


def call(problem, operands, function=neighborhood_attention, **options):
    """The public function on `operands`, with the problem's window."""
    named = {_RENAMED.get(name, name): x for name, x in operands.items()}
    return function(**named, **window(problem), **options)


def exact(problem, operands, scale=None, grad_out=None, grad_lse=None):
    """The oracle's answer, with gradients if cotangents are given."""
    return oracle.attend(
        **arrays(operands),
        win=oracle.window(problem.rank, **window(problem)),
        scale=problem.dim**-0.5 if scale is None else scale,
        grad_out=grad_out,
        grad_lse=grad_lse,
    )


def check(problem, backend=None, seed=0, scale=None):
    """Forward, log-sum-exp and every gradient of `backend` against the oracle."""
    given = operands(problem, seed)

    def attend(*tensors):
        named = dict(zip(given, tensors, strict=True))
        return call(problem, named, backend=backend, scale=scale, return_lse=True)

    shape = (problem.batch, *problem.outputs, problem.heads)
    generator = np.random.default_rng(seed + 1)
    grad_out = random(generator, (*shape, problem.value_dim), problem.dtype)
    grad_lse = random(generator, shape)
    (out, lse), grads = mx.vjp(attend, list(given.values()), [grad_out, grad_lse])
    answer = exact(problem, given, scale, array(grad_out), array(grad_lse))
    assert out.dtype == getattr(mx, problem.dtype)
    assert lse.dtype == mx.float32
    # A GPU's matrix units take weights of the dtype; on a CPU they stay float32.
    rounded = ops.device() != "cpu" and problem.dtype != "float32"
    budget.check("out", array(out), answer.out, problem.dtype, rounded)
    budget.check("lse", array(lse), answer.lse, "float32")
    for (name, x), grad in zip(given.items(), grads, strict=True):
        assert grad.dtype == x.dtype, name
        budget.check(f"gradient of {name}", array(grad), getattr(answer, name), problem.dtype, rounded)


def split(problem, operands):
    """The scores of the split operations."""
    return qk(
        operands["query"],
        operands["key"],
        **window(problem),
        bias=operands.get("bias"),
        additional_keys=operands.get("extra_key"),
    )


def check_walks(problem, backend):
    """`qk`, `av` and their gradients are the oracle's walks; slots that hold no key are never read."""
    given = operands(problem)
    win = oracle.window(problem.rank, **window(problem))
    generator = np.random.default_rng(1)
    exact = arrays(given)
    steps = (slice(None), *(slice(None, None, step) for step in win.output_stride))
    sampled, scale = exact["query"][steps], problem.dim**-0.5
    check = lambda name, x, y: budget.check(name, array(x), y, "float32")  # noqa: E731
    back = lambda w, x: oracle.mix_back(array(w), x, problem.lengths, problem.kv_heads, win)  # noqa: E731
    with using(backend=backend):
        score = lambda query, key: split(problem, {**given, "query": query, "key": key})  # noqa: E731
        grad = random(generator, split(problem, given).shape)
        (scores,), grads = mx.vjp(score, [given["query"], given["key"]], [grad])
        weights = random(generator, scores.shape)
        poisoned = mx.where(scores == -float("inf"), float("nan"), weights)
        mix = lambda weights, value: av(weights, value, **window(problem))  # noqa: E731
        grad_mixed = random(generator, (*scores.shape[:-1], problem.value_dim))
        (mixed,), mixed_grads = mx.vjp(mix, [poisoned, given["value"]], [grad_mixed])
    check("qk", scores, oracle.dot(sampled, exact["key"], win, scale, exact.get("bias")))
    check("av", mixed, oracle.mix(array(weights), exact["value"], win))
    check("qk to query", array(grads[0])[steps], scale * oracle.mix(array(grad), exact["key"], win))
    check("qk to key", grads[1], scale * back(grad, sampled))
    check("av to weights", mixed_grads[0], oracle.dot(array(grad_mixed), exact["value"], win, fill=0.0))
    check("av to value", mixed_grads[1], back(weights, array(grad_mixed)))


def same(actual, expected):
    """Bitwise equality of arrays, NaN included."""
    return all(
        np.array_equal(array(a), array(b), equal_nan=True) for a, b in zip(actual, expected, strict=True)
    )
