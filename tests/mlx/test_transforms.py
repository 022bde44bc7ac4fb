"""MLX's function transformations: gradients of any order, forward mode, `vmap`, `compile`, and laziness."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given

import vicinal.mlx as na
from tests import budget
from tests.mlx import problems
from vicinal.catalog import named
from vicinal.mlx import blocks, gathers
from vicinal.mlx.backends import blocked

CASES = ["odd_1d", "everything", "bias_dilation", "whole", "causal_3d"]
BACKENDS = [None, "blocked", "reference"]


def flat(problem, operands, backend=None):
    """The function of the operands' arrays in order, its output and log-sum-exp in one array."""

    def attend(*tensors):
        given = dict(zip(operands, tensors, strict=True))
        out, lse = problems.call(problem, given, backend=backend, return_lse=True)
        return mx.concatenate([out, lse[..., None]], -1)

    return attend


def like(arrays, seed):
    generator = np.random.default_rng(seed)
    return [problems.random(generator, x.shape) for x in arrays]


def close(actual, expected, scale=1.0):
    """Within what float32 sums may differ by, of the largest number."""
    actual, expected = np.array(actual, np.float64), np.array(expected, np.float64)
    limit = scale * 2.0**-23 * 2.0**8 * max(np.abs(expected).max(), 1.0)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= limit


def slope(function, at, along, step=2.0**-7):
    """Directional derivative by central differences of fourth order."""
    moved = lambda t: np.array(  # noqa: E731
        function(*(x + t * move for x, move in zip(at, along, strict=True))), np.float64
    )
    return (8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12 * step)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_forward_mode_is_the_slope(name, backend):
    problem = named(name).problem
    operands = problems.operands(problem)
    function, at = flat(problem, operands, backend), list(operands.values())
    along = like(at, 1)
    (moved,) = mx.jvp(function, at, along)[1]
    assert np.abs(np.array(moved) - slope(function, at, along)).max() < 2e-3 * np.abs(moved).max()


@pytest.mark.skipif(mx.default_device().type != mx.cpu, reason="on a GPU dense attention is MLX's own")
@pytest.mark.parametrize("name", ["full", "blocked", "dense"])
def test_modes_nest(name):
    """Forward and reverse mode, in any order, find the same second derivative."""
    at, one, two = (mx.random.normal((1, 6, 2, 4), key=mx.random.key(seed)) for seed in range(3))

    def loss(x):
        if name == "dense":
            found = na.attention(x, x, x, True, return_lse=True)
        else:
            found = na.na1d(x, x, x, 6, backend=name, return_lse=True)
        return sum(mx.sin(part).sum() for part in found)

    move = lambda function, along: lambda x: mx.jvp(function, [x], [along])[1][0]  # noqa: E731
    pull = lambda function, along: lambda x: (mx.grad(function)(x) * along).sum()  # noqa: E731
    wanted = pull(pull(loss, one), two)(at)
    for outer, inner in ((move, move), (move, pull), (pull, move)):
        close(outer(inner(loss, one), two)(at), wanted, scale=10.0)


def test_forward_mode_asks_nothing_of_what_runs(monkeypatch):
    """A kernel has no derivative that MLX knows; nor has a QR decomposition."""
    run = blocked.Blocked.attend

    def attend(self, problem, operands, scale):
        out, lse = run(self, problem, operands, scale)
        rows = operands.query.reshape(-1, problem.dim)
        return out + 0 * mx.linalg.qr(rows, stream=mx.cpu)[1].sum(), lse

    problem = named("odd_2d").problem
    operands = problems.operands(problem)
    function, at = flat(problem, operands, "blocked"), list(operands.values())
    wanted = mx.jvp(function, at, like(at, 1))[1][0]
    monkeypatch.setattr(blocked.Blocked, "attend", attend)
    close(mx.jvp(function, at, like(at, 1))[1][0], wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_forward_and_reverse_mode_are_adjoint(name, backend):
    problem = named(name).problem
    operands = problems.operands(problem)
    function, at = flat(problem, operands, backend), list(operands.values())
    along = like(at, 1)
    (out,), (moved,) = mx.jvp(function, at, along)
    (pull,) = like([out], 2)
    grads = mx.vjp(function, at, [pull])[1]
    inner = sum((g * move).sum() for g, move in zip(grads, along, strict=True))
    close(inner, (moved * pull).sum(), scale=10.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name, backend):
    """The gradient of a gradient is the slope of that gradient, for operands and cotangents."""
    problem = named(name).problem
    operands = problems.operands(problem)
    function, at = flat(problem, operands, backend), list(operands.values())
    inputs = [*at, *like([function(*at)], 3)]
    weights = like(at, 4)

    def projected(*given):
        grads = mx.vjp(function, list(given[:-1]), [given[-1]])[1]
        return sum((g * w).sum() for g, w in zip(grads, weights, strict=True))

    along = like(inputs, 5)
    second = mx.grad(projected, argnums=tuple(range(len(inputs))))(*inputs)
    found = sum((g * move).sum().item() for g, move in zip(second, along, strict=True))
    want = slope(projected, inputs, along)
    assert abs(found - want) < 5e-3 * max(abs(want), 1.0)


@problems.examples(25)
@given(problem=problems.problems(("float32",)))
def test_gradients_of_gradients_exist_for_every_combination(problem):
    """And the walks of `blocked` and `reference` agree on them."""
    operands = problems.operands(problem)
    at = list(operands.values())
    found = []
    for backend in ("blocked", "reference"):
        function = flat(problem, operands, backend)
        inner = mx.grad(lambda *x, function=function: function(*x).square().sum(), argnums=0)
        outer = mx.grad(lambda *x, inner=inner: inner(*x).square().sum(), argnums=tuple(range(len(at))))
        found.append(outer(*at))
    for one, other in zip(*found, strict=True):
        close(one, other, scale=10.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_vmap(name, backend):
    """Mapped over any axis of any operands, forward, backward and through a gradient."""
    problem = named(name).problem
    operands = problems.operands(problem)
    function, at = flat(problem, operands, backend), list(operands.values())
    several = [mx.stack([x, *like([x, x], place)], min(place, 1)) for place, x in enumerate(at)]
    if not problems.maps(problem, backend):
        with pytest.raises(ValueError, match="Not implemented for CustomKernel"):
            mx.vmap(function)(*(x[None] for x in at))
        return
    one = lambda place, index: mx.take(several[place], index, axis=min(place, 1))  # noqa: E731
    axes = [min(place, 1) for place in range(len(at))]
    wanted = mx.stack([function(*(one(p, i) for p in range(len(at)))) for i in range(3)])
    close(mx.vmap(function, in_axes=tuple(axes))(*several), wanted)
    # Only the last operand is mapped.
    last = len(at) - 1
    part = mx.vmap(function, in_axes=(*[None] * last, axes[last]))(*at[:-1], several[last])
    close(part, mx.stack([function(*at[:-1], one(last, i)) for i in range(3)]))
    loss = mx.grad(lambda *x: function(*x).square().sum(), argnums=tuple(range(len(at))))
    grads = mx.vmap(loss, in_axes=tuple(axes))(*several)
    for i in range(3):
        each = loss(*(one(p, i) for p in range(len(at))))
        for mapped, single in zip(grads, each, strict=True):
            close(mapped[i], single)


def test_vmap_of_work_in_pieces(monkeypatch):
    """What is too much to be there at once is mapped too, walks included."""
    monkeypatch.setattr(blocks, "BUDGET", 1 << 12)
    for walk in (gathers.dot, gathers.mix, gathers.mix_back):
        monkeypatch.setattr(walk, "__defaults__", (1 << 12,))
    problem = named("bias_dilation").problem
    operands = problems.operands(problem)
    window, at = problems.window(problem), list(operands.values())
    several = [mx.stack([x, 2 * x]) for x in at]

    def split(query, key, value, bias):
        return na.av(mx.softmax(na.qk(query, key, **window, bias=bias), -1), value, **window)

    with na.using(backend="blocked"):
        for function in (flat(problem, operands, "blocked"), split):
            loss = mx.grad(lambda *x, f=function: f(*x).square().sum(), argnums=(0, 1, 2, 3))
            wanted = [(function(*x), *loss(*x)) for x in zip(*several, strict=True)]
            found = (mx.vmap(function)(*several), *mx.vmap(loss)(*several))
            for mapped, *singles in zip(found, *wanted, strict=True):
                close(mapped, mx.stack(singles))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_compile(name, backend):
    problem = named(name).problem
    operands = problems.operands(problem)
    function, at = flat(problem, operands, backend), list(operands.values())
    loss = mx.value_and_grad(lambda *x: function(*x).square().sum(), argnums=tuple(range(len(at))))
    compiled = mx.compile(loss)
    for seed in (1, 2):
        given = like(at, seed)
        (value, grads), (want, wanted) = compiled(*given), loss(*given)
        close(value, want)
        for one, other in zip(grads, wanted, strict=True):
            close(one, other)
    if problems.maps(problem, backend):
        mapped = mx.compile(mx.vmap(function, in_axes=0))
        close(mapped(*(x[None] for x in at))[0], function(*at))


def test_split_operations_transform():
    problem = replace(named("everything").problem, extra=0)
    operands = problems.operands(problem)
    window = problems.window(problem)

    def split(query, key, value, bias):
        weights = mx.softmax(na.qk(query, key, **window, bias=bias), -1)
        return na.av(weights, value, **window)

    at = list(operands.values())
    fused = lambda *x: problems.call(problem, dict(zip(operands, x, strict=True)))  # noqa: E731
    along = like(at, 1)
    close(mx.jvp(split, at, along)[1][0], mx.jvp(fused, at, along)[1][0])
    several = [mx.stack([x, 2 * x]) for x in at]
    with na.using(backend="blocked"):
        close(mx.vmap(split)(*several), mx.vmap(fused)(*several))
    grad = lambda function: mx.grad(lambda *x: function(*x).square().sum(), argnums=(0, 1, 2, 3))  # noqa: E731
    for one, other in zip(mx.compile(grad(split))(*at), grad(fused)(*at), strict=True):
        close(one, other)


def lazy(kind, backend):
    """A function to one array, and its arrays."""
    problem = named("whole" if kind == "whole" else "everything").problem
    problem = replace(problem, batch=4, extra=0 if kind == "split" else problem.extra)
    operands, window = problems.operands(problem), problems.window(problem)
    if kind == "split":
        with_softmax = lambda *x: mx.softmax(na.qk(*x[:2], **window, bias=x[3], backend=backend), -1)  # noqa: E731
        return lambda *x: na.av(with_softmax(*x), x[2], **window, backend=backend), operands
    if kind in ("packed", "padded"):
        x = mx.random.normal((4, 20, 4, 16))
        layout = na.VarlenLayout([20, 9, 31, 20])
        if kind == "padded":
            return lambda *x: na.na1d_varlen(*x, [20, 9, 11, 20], 5, backend=backend), dict.fromkeys("qkv", x)
        attend = lambda *x: na.neighborhood_attention_packed(*x, layout, 5, backend=backend)  # noqa: E731
        return attend, dict.fromkeys("qkv", x.flatten(0, 1))
    return flat(problem, operands, backend), operands


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["everything", "whole", "split", "packed", "padded"])
def test_nothing_is_evaluated(kind, backend, monkeypatch):
    """Building the graphs, forward and backward, evaluates no input and no result."""
    function, operands = lazy(kind, backend)
    # Tables of windows are values; the first call makes them.
    mx.eval(mx.grad(lambda *x: function(*x).sum())(*operands.values()))
    evaluated = []
    original = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *x: evaluated.append(x) or original(*x))
    loss = mx.value_and_grad(lambda *x: function(*x).sum(), argnums=(0, 1, 2))
    before = mx.get_active_memory()
    kept = loss(*(x + 1 for x in operands.values()))
    # One input of these that were there would be more.
    assert min(x.nbytes for x in list(operands.values())[:3]) > 4096
    assert mx.get_active_memory() <= before + 4096
    assert not evaluated
    assert np.isfinite(np.array(kept[0]))


def test_gradient_of_a_gradient_of_half_precision():
    problem = replace(named("odd_2d").problem, dtype="float16")
    operands = problems.operands(problem)
    at = list(operands.values())
    inner = lambda *x: problems.call(problem, dict(zip(operands, x, strict=True))).astype(mx.float32)  # noqa: E731
    grad = mx.grad(lambda *x: inner(*x).sum())
    second = mx.grad(lambda *x: grad(*x).astype(mx.float32).square().sum(), argnums=(0, 1, 2))(*at)
    wide = replace(problem, dtype="float32")
    inner_wide = lambda *x: problems.call(wide, dict(zip(operands, x, strict=True)))  # noqa: E731
    grad_wide = mx.grad(lambda *x: inner_wide(*x).sum())
    wanted = mx.grad(lambda *x: grad_wide(*x).square().sum(), argnums=(0, 1, 2))(
        *(x.astype(mx.float32) for x in at)
    )
    for one, other in zip(second, wanted, strict=True):
        assert one.dtype == mx.float16
        budget.check("second", problems.array(one), problems.array(other), "float16", rounded_weights=True)
