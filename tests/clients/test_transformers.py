"""DiNAT and NAT of transformers, which find NATTEN 0.14 through `install`."""

import pytest
import torch

import vicinal.compat

from . import plain

with vicinal.compat.install("natten==0.14.6"):
    from transformers import (
        DinatBackbone,
        DinatConfig,
        DinatForImageClassification,
        DinatModel,
        NatConfig,
        NatForImageClassification,
    )
    from transformers.models.deprecated.nat import modeling_nat
    from transformers.models.dinat import modeling_dinat
    from transformers.utils import is_natten_available

SMALL = {
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "kernel_size": 3,
    "image_size": 32,
    "patch_size": 4,
}
DILATIONS = {"dilations": [[1, 2], [1, 1]]}
SIZES = [(32, 32), (40, 28), (12, 20)]


@pytest.fixture
def by_definition(monkeypatch):
    """A switch from our operations to plain ones in the modules that call them."""

    def switch(module):
        monkeypatch.setattr(module, "natten2dqkrpb", plain.qkrpb)
        monkeypatch.setattr(module, "natten2dav", plain.av)

    return switch


def build(kind, config, **options):
    torch.manual_seed(0)
    model = kind(config(**SMALL, **options)).eval()
    for name, parameter in model.named_parameters():
        if "rpb" in name:
            torch.nn.init.normal_(parameter)
    return model


def close(ours, theirs):
    assert len(ours) == len(theirs)
    for got, want in zip(ours, theirs, strict=True):
        assert (got - want).abs().max() < 1e-4


def test_transformers_finds_natten():
    assert is_natten_available()
    assert modeling_dinat.natten2dqkrpb.__module__ == "vicinal.torch.compat.v014"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_model(size, by_definition):
    """Hidden states and attention weights; the last size has maps smaller than the window."""
    model, pixels = build(DinatModel, DinatConfig, **DILATIONS), torch.randn(2, 3, *size)
    answers = []
    for switch in (lambda: None, lambda: by_definition(modeling_dinat)):
        switch()
        with torch.no_grad():
            found = model(pixels, output_hidden_states=True, output_attentions=True)
        assert found.attentions[0].shape[-1] == 9
        answers.append(
            [found.last_hidden_state, found.pooler_output, *found.hidden_states, *found.attentions]
        )
    close(*answers)


@pytest.mark.parametrize("kind", ["dinat", "nat"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_training(kind, size, by_definition):
    """Losses of three steps, and gradients of all parameters at the first."""
    classifier, config, module, options = {
        "dinat": (DinatForImageClassification, DinatConfig, modeling_dinat, DILATIONS),
        "nat": (NatForImageClassification, NatConfig, modeling_nat, {}),
    }[kind]
    pixels, labels = torch.randn(2, 3, *size), torch.tensor([0, 1])
    answers = []
    for switch in (lambda: None, lambda: by_definition(module)):
        switch()
        model, losses, first = build(classifier, config, **options).train(), [], []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            torch.manual_seed(1)
            loss = model(pixels, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            first = first or [p.grad.clone() for p in model.parameters() if p.grad is not None]
            optimizer.step()
            losses.append(loss.detach())
        assert losses[2] < losses[0]
        answers.append([*losses, *first])
    close(*answers)


def test_backbone(by_definition):
    model = build(DinatBackbone, DinatConfig, **DILATIONS, out_features=["stage1", "stage2"])
    pixels = torch.randn(1, 3, 32, 32)
    answers = []
    for switch in (lambda: None, lambda: by_definition(modeling_dinat)):
        switch()
        with torch.no_grad():
            answers.append(model(pixels).feature_maps)
    close(*answers)
    assert answers[0][0].shape == (1, 16, 8, 8)
