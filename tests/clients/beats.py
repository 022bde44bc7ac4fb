"""allin1's model on plain operations, which its ports answer to, and what is heard in a track."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from madmom_infer.features.downbeats import DBNDownBeatTrackingProcessor

import vicinal.compat

from . import plain
from .packages import bare

DATA = Path(__file__).parents[3] / "shared" / "data"
OUTPUTS = ("logits_beat", "logits_downbeat", "logits_section", "logits_function")

bare("allin1")
bare("allin1.models")
with vicinal.compat.install("natten==0.14.6"):
    from allin1.config import Config, HarmonixConfig
    from allin1.models import dinat
    from allin1.models.allinone import AllInOne


def config(**options):
    return Config(data=HarmonixConfig(), **options)


def build(kind=AllInOne, **options):
    """A model in PyTorch, with position bias that counts."""
    torch.manual_seed(0)
    model = kind(config(**options)).eval()
    for name, parameter in model.named_parameters():
        if "rpb" in name:
            torch.nn.init.normal_(parameter)
    return model


def by_definition(model):
    """allin1's model on plain operations."""
    for module in model.modules():
        if isinstance(module, dinat._NeighborhoodAttentionNd):
            module.nattendqkrpb, module.nattendav = plain.qkrpb, plain.av
    return model


def weights():
    """The pretrained weights for PyTorch; the file has channels last in convolutions."""
    with np.load(DATA / "harmonix-fold0_mlx.npz") as file:
        found = {name: torch.from_numpy(file[name]) for name in file.files}
    return {name: x.permute(0, 3, 1, 2) if x.dim() == 4 else x for name, x in found.items()}


def track():
    """Features `[1, instruments, frames, bands]` of a track, and the times of its beats and downbeats."""
    with np.load(DATA / "allin1_demo_features.npz") as file:
        return torch.from_numpy(file["features"]).float()[None], (file["beats"], file["downbeats"])


@cache
def heard_exactly():
    """What allin1's model says of the track, with the pretrained weights on plain operations."""
    model = by_definition(build())
    model.load_state_dict(weights())
    with torch.no_grad():
        return model(track()[0])


def close(found, exact):
    """Logits of a port, in any framework, are those of the model on plain operations."""
    for name in OUTPUTS:
        assert np.abs(np.asarray(getattr(found, name)) - getattr(exact, name).numpy()).max() < 1e-4


def hear(found, seconds, truth):
    """Logits give 43 of 43 beats and 11 of 11 downbeats within 70 ms, by way of allin1's tracker."""
    logits = (np.asarray(x[0]) for x in (found.logits_beat, found.logits_downbeat))
    beat, downbeat = (1 / (1 + np.exp(-x)) for x in logits)
    follow = DBNDownBeatTrackingProcessor(beats_per_bar=[3, 4], threshold=0.19, fps=100)
    times = follow(np.stack([np.maximum(beat - downbeat, 1e-8), downbeat], -1))
    pairs = ((times[:, 0], truth[0]), (times[times[:, 1] == 1, 0], truth[1]))
    for pair, count in zip(pairs, (43, 11), strict=True):
        # The first and the last second do not count.
        heard, true = (x[(x > 1) & (x < seconds - 1)] for x in pair)
        assert len(heard) == len(true) == count
        assert np.abs(heard - true).max() <= 0.07
