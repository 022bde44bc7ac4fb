"""The PyTorch front end on the same arrays: same functions, same layers, same training."""

import inspect
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from mlx import nn, optimizers
from mlx.utils import tree_flatten

import vicinal.mlx as na
from tests import budget
from tests.mlx import problems
from vicinal.catalog import SMALL

torch = pytest.importorskip("torch")

import vicinal.torch as other  # noqa: E402
from tests.torch import problems as torch_problems  # noqa: E402

FUNCTIONS = ["neighborhood_attention", "qk", "av", "attention", "merge_attentions"]
LAYERS = {
    1: (na.NeighborhoodAttention1D, other.NeighborhoodAttention1D),
    2: (na.NeighborhoodAttention2D, other.NeighborhoodAttention2D),
    3: (na.NeighborhoodAttention3D, other.NeighborhoodAttention3D),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_the_same(name):
    ours, theirs = (inspect.signature(getattr(front, name)).parameters for front in (na, other))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_layers_take_the_same_arguments():
    ours, theirs = (inspect.signature(layer.__init__).parameters for layer in LAYERS[2])
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def compare(problem):
    ours = problems.operands(problem)
    theirs = {name: torch.tensor(problems.array(x), dtype=torch.float32) for name, x in ours.items()}
    theirs = {name: x.requires_grad_() for name, x in theirs.items()}
    out, lse = torch_problems.call(problem, theirs, return_lse=True)
    generator = np.random.default_rng(3)
    pulls = [problems.random(generator, tuple(x.shape)) for x in (out, lse)]
    wanted = torch.autograd.grad(
        (out, lse), list(theirs.values()), [torch.tensor(np.array(pull)) for pull in pulls]
    )

    def attend(*x):
        return problems.call(problem, dict(zip(ours, x, strict=True)), return_lse=True)

    (mine, my_lse), grads = mx.vjp(attend, list(ours.values()), pulls)
    budget.check("out", problems.array(mine), torch_problems.array(out), "float32")
    budget.check("lse", problems.array(my_lse), torch_problems.array(lse), "float32")
    for name, grad, want in zip(ours, grads, wanted, strict=True):
        budget.check(name, problems.array(grad), torch_problems.array(want), "float32")


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_catalog(case):
    compare(replace(case.problem, dtype="float32"))


@problems.examples(40)
@given(problem=problems.problems(("float32",)))
def test_every_combination(problem):
    compare(problem)


@pytest.mark.parametrize("rank", LAYERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"rel_pos_bias": True}, {"num_kv_heads": 2, "is_causal": True}],
    ids=["plain", "bias", "grouped"],
)
def test_layers_with_the_same_weights(rank, options):
    ours, theirs = (layer(24, 4, 3, **options) for layer in LAYERS[rank])
    assert na.load_torch_state(ours, theirs.state_dict()) is ours
    x = np.random.default_rng(0).standard_normal((2, *(5, 6, 4)[:rank], 24)).astype(np.float32)
    out = problems.array(ours(mx.array(x)))
    budget.check("out", out, torch_problems.array(theirs(torch.tensor(x))), "float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_states_keep_their_dtype(dtype):
    ours, theirs = (layer(24, 4, 3) for layer in LAYERS[1])
    theirs.to(dtype)
    na.load_torch_state(ours, theirs.state_dict())
    for name, x in tree_flatten(ours.parameters()):
        assert str(x.dtype).removeprefix("mlx.core.") == str(dtype).removeprefix("torch.")
        assert np.array_equal(problems.array(x), torch_problems.array(theirs.state_dict()[name]))


def test_states_of_arrays_and_states_that_do_not_fit():
    layer = na.NeighborhoodAttention1D(24, 4, 3)
    state = {name: np.array(x) for name, x in tree_flatten(layer.parameters())}
    na.load_torch_state(layer, state)
    na.load_torch_state(layer, {name: mx.array(x) for name, x in state.items()})
    with pytest.raises(ValueError, match="rpb"):
        na.load_torch_state(layer, {**state, "rpb": np.zeros((4, 5))})
    na.load_torch_state(layer, {**state, "rpb": np.zeros((4, 5))}, strict=False)
    with pytest.raises(TypeError, match=r"state is of type .*; pass names to tensors, such as a module's"):
        na.load_torch_state(layer, LAYERS[1][1](24, 4, 3))


class Ours(nn.Module):
    """A tiny classifier of images."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 16)
        self.first = na.NeighborhoodAttention2D(16, 2, 3, rel_pos_bias=True)
        self.second = na.NeighborhoodAttention2D(16, 4, 3, dilation=2, num_kv_heads=2)
        self.head = nn.Linear(16, 10)

    def __call__(self, x):
        x = self.embed(x[..., None])
        x = x + self.first(x)
        x = x + self.second(mx.maximum(x, 0))
        return self.head(x.mean((1, 2)))


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(1, 16)
        self.first = other.NeighborhoodAttention2D(16, 2, 3, rel_pos_bias=True)
        self.second = other.NeighborhoodAttention2D(16, 4, 3, dilation=2, num_kv_heads=2)
        self.head = torch.nn.Linear(16, 10)

    def forward(self, x):
        x = self.embed(x[..., None])
        x = x + self.first(x)
        x = x + self.second(x.clamp(min=0))
        return self.head(x.mean((1, 2)))


def test_training_on_digits_is_the_same():
    """From the same weights, twelve steps on the same batches give the same losses, and they fall."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images, labels = (digits.images / 16).astype(np.float32), digits.target
    torch.manual_seed(0)
    ours, theirs = Ours(), Theirs()
    na.load_torch_state(ours, theirs.state_dict())
    mine, torchs = optimizers.SGD(0.5, momentum=0.9), torch.optim.SGD(theirs.parameters(), 0.5, momentum=0.9)
    step = nn.value_and_grad(ours, lambda x, y: nn.losses.cross_entropy(ours(x), y, reduction="mean"))
    losses = []
    for start in range(0, 12 * 64, 64):
        x, y = images[start : start + 64], labels[start : start + 64]
        loss, grads = step(mx.array(x), mx.array(y))
        mine.update(ours, grads)
        mx.eval(ours.parameters(), mine.state)
        want = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y))
        torchs.zero_grad()
        want.backward()
        torchs.step()
        losses.append((loss.item(), want.item()))
    for one, another in losses:
        assert abs(one - another) < 1e-3 * another
    assert losses[-1][0] < 0.98 * losses[0][0]
