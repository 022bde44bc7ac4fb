"""all-in-one-mlx, the port of allin1 to MLX: natten-mlx as it calls it, on any machine."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx import nn
from mlx.utils import tree_flatten

import vicinal.compat

from . import beats
from .packages import bare

bare("allin1_mlx")
bare("allin1_mlx.models")
with vicinal.compat.install("natten_mlx==0.3.3"):
    from allin1_mlx.models import dinat_mlx
    from allin1_mlx.models.allinone_mlx import AllInOneMLX


def port(state, **options):
    """The port with PyTorch's weights, whose convolutions have channels first."""
    model = AllInOneMLX(beats.config(**options)).eval()
    channels_last = {name: x.permute(0, 2, 3, 1) if x.dim() == 4 else x for name, x in state.items()}
    model.load_weights([(name, mx.array(x.detach().numpy())) for name, x in channels_last.items()])
    return model


def test_natten_mlx_is_found():
    assert dinat_mlx.na1d_qk_rpb.__module__ == "vicinal.mlx.compat.allin1"


def test_random_weights():
    """Outputs, and gradients with respect to position biases and projections of queries."""
    exact, features = beats.by_definition(beats.build(depth=4)), torch.rand(1, 4, 60, 81)
    model = port(exact.state_dict(), depth=4)

    def loss(model, x):
        found = model(x)
        return sum(getattr(found, name).square().mean() for name in beats.OUTPUTS)

    beats.close(model(mx.array(features.numpy())), detached(exact(features)))
    _, grads = nn.value_and_grad(model, loss)(model, mx.array(features.numpy()))
    loss(exact, features).backward()
    wanted = {name: p.grad for name, p in exact.named_parameters() if "rpb" in name or "query" in name}
    found = dict(tree_flatten(grads))
    assert len(wanted) > 20
    for name, want in wanted.items():
        assert np.abs(np.array(found[name]) - want.numpy()).max() < 1e-4, name


def detached(found):
    for name in beats.OUTPUTS:
        setattr(found, name, getattr(found, name).detach())
    return found


@pytest.mark.skipif(not beats.DATA.exists(), reason="the weights are not beside this checkout")
def test_pretrained_weights_find_the_beats():
    features, truth = beats.track()
    found = port(beats.weights())(mx.array(features.numpy()))
    beats.close(found, beats.heard_exactly())
    beats.hear(found, features.shape[2] / 100, truth)
