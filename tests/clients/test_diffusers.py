"""diffusers' LTX-2 decoder, whose processor fetches `na3d` from a hub, against its own on FlexAttention."""

import sys

import pytest
import torch

import vicinal.compat

# The release of transformers with a working DiNAT wants another huggingface-hub than diffusers does.
sys.modules["transformers"] = None
with vicinal.compat.install("natten==0.21.7"):
    from diffusers.models.autoencoders import ltx2_diffusion_decoder as decoder
    from natten import na3d


def processor():
    """The NATTEN processor, given the function instead of the hub."""
    made = object.__new__(decoder.LTX2VideoVaeNeighborhoodNattenProcessor)
    made._na3d, made.backend = na3d, None
    return made


@pytest.mark.parametrize("size", [(3, 5, 5), (3, 7, 7)], ids=str)
def test_processors_agree(size):
    torch.manual_seed(0)
    layer = decoder.LTX2VideoVaeNeighborhoodAttention(32, size, head_dim=16)
    x = torch.randn(1, 4, 8, 9, 32)
    with torch.no_grad():
        theirs = layer(x)
        layer.set_processor(processor())
        assert layer.build_block_mask(x) is None
        ours = layer(x)
    assert (ours - theirs).abs().max() < 1e-5
