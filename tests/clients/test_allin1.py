"""allin1 and all-in-one-infer, which follow beats with 1-D and 2-D attention; without their audio tools."""

import pytest
import torch

import vicinal.compat

from . import beats
from .packages import bare

bare("allin1_infer")
bare("allin1_infer.models")
with vicinal.compat.install("natten==0.17.5"):
    from allin1_infer.models import allinone, dinat

MODELS = {"allin1": beats.AllInOne, "all-in-one-infer": allinone.AllInOne}


def test_infer_finds_natten():
    assert dinat.NA_BACKEND == "natten"
    assert dinat.na1d_qk.__module__ == "vicinal.torch.compat.v017"


@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
def test_random_weights(kind):
    """Outputs and gradients; the dilations of a short track go up to 8."""
    features, answers = torch.rand(1, 4, 60, 81), []
    for model in (beats.build(kind, depth=4), beats.by_definition(beats.build(depth=4))):
        found = model(features)
        logits = [getattr(found, name) for name in beats.OUTPUTS]
        sum(x.square().mean() for x in logits).backward()
        answers.append([*logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    for ours, theirs in zip(*answers, strict=True):
        assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.skipif(not beats.DATA.exists(), reason="the weights are not beside this checkout")
@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
def test_pretrained_weights_find_the_beats(kind):
    features, truth = beats.track()
    model = beats.build(kind)
    model.load_state_dict(beats.weights())
    with torch.no_grad():
        found = model(features)
    beats.close(found, beats.heard_exactly())
    beats.hear(found, features.shape[2] / 100, truth)
