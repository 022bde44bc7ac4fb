"""allin1 follows beats with 1-D and 2-D attention of NATTEN 0.14; its model, without its audio tools."""

from pathlib import Path

import numpy as np
import pytest
import torch
from madmom_infer.features.downbeats import DBNDownBeatTrackingProcessor

import vicinal.compat

from . import plain
from .packages import bare

DATA = Path(__file__).parents[3] / "shared" / "data"


bare("allin1")
bare("allin1.models")
with vicinal.compat.install("natten==0.14.6"):
    from allin1.config import Config, HarmonixConfig
    from allin1.models import dinat
    from allin1.models.allinone import AllInOne

OUTPUTS = ("logits_beat", "logits_downbeat", "logits_section", "logits_function")


def build(**options):
    torch.manual_seed(0)
    return AllInOne(Config(data=HarmonixConfig(), **options)).eval()


def by_definition(model):
    """The same model on plain operations."""
    for module in model.modules():
        if isinstance(module, dinat._NeighborhoodAttentionNd):
            module.nattendqkrpb, module.nattendav = plain.qkrpb, plain.av
    return model


def test_random_weights():
    """Outputs and gradients; the dilations of a short track go up to 8."""
    features, answers = torch.rand(1, 4, 60, 81), []
    for change in (lambda model: model, by_definition):
        model = build(depth=4)
        for name, parameter in model.named_parameters():
            if "rpb" in name:
                torch.nn.init.normal_(parameter)
        found = change(model)(features)
        logits = [getattr(found, name) for name in OUTPUTS]
        sum(x.square().mean() for x in logits).backward()
        answers.append([*logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    for ours, theirs in zip(*answers, strict=True):
        assert (ours - theirs).abs().max() < 1e-4


def pretrained():
    model = build()
    with np.load(DATA / "harmonix-fold0_mlx.npz") as file:
        weights = {name: torch.from_numpy(file[name]) for name in file.files}
    # Convolutions are stored with channels last.
    weights = {name: x.permute(0, 3, 1, 2) if x.dim() == 4 else x for name, x in weights.items()}
    model.load_state_dict(weights)
    return model


def tracked(found):
    """Times of beats and downbeats, as allin1 makes them from logits."""
    beat, downbeat = (torch.sigmoid(x[0]) for x in (found.logits_beat, found.logits_downbeat))
    rest = (2 - beat - downbeat) / 2
    activations = torch.stack([(beat - downbeat).clamp(min=1e-8), downbeat, rest], -1)
    activations = activations / activations.sum(-1, keepdim=True)
    track = DBNDownBeatTrackingProcessor(beats_per_bar=[3, 4], threshold=0.19, fps=100)
    times = track(activations[:, :2].numpy())
    return times[:, 0], times[times[:, 1] == 1, 0]


@pytest.mark.skipif(not DATA.exists(), reason="the weights are not beside this checkout")
def test_pretrained_weights_find_the_beats():
    with np.load(DATA / "allin1_demo_features.npz") as file:
        features = torch.from_numpy(file["features"]).float()[None]
        truth = file["beats"], file["downbeats"]
    with torch.no_grad():
        found = pretrained()(features)
        exact = by_definition(pretrained())(features)
    for name in OUTPUTS:
        assert (getattr(found, name) - getattr(exact, name)).abs().max() < 1e-4
    seconds = features.shape[2] / 100
    for both, count in zip(zip(tracked(found), truth, strict=True), (43, 11), strict=True):
        # The first and the last second do not count.
        times, true = (x[(x > 1) & (x < seconds - 1)] for x in both)
        assert len(times) == len(true) == count
        assert np.abs(times - true).max() <= 0.07
