"""cosmos-predict2's call of NATTEN 0.21, with its knobs for each GPU; its check for a GPU is not run."""

import pytest
import torch

import vicinal.compat

from . import plain

with vicinal.compat.install("natten==0.21.7"):
    import natten
    from cosmos_predict2.module import neighborhood_attn


def test_switches_are_set_at_import():
    assert neighborhood_attn.HAS_NATTEN
    assert natten.is_kv_parallelism_in_fused_na_enabled()
    assert natten.is_memory_usage_unrestricted()


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("base", [None, (4, 16, 16)], ids=["as given", "scaled"])
def test_call(capability, base):
    options = {"window_size": (4, 6, 8), "stride": (1, 2, 4), "base_size": base}
    layer = neighborhood_attn.NeighborhoodAttention(options, None)
    shape = (4, 8, 8)
    size, stride, dilation, causal = layer.get_adaptive_parameters(
        layer.window_size, layer.stride, layer.dilation, layer.is_causal, shape, layer.base_size
    )
    q, k, v = (torch.randn(1, *shape, 2, 16) for _ in "qkv")
    knobs = layer.performance_configs[capability]
    found = neighborhood_attn.neighborhood_attention_generic(
        query=q, key=k, value=v, kernel_size=size, stride=stride, dilation=dilation, is_causal=causal, **knobs
    )
    assert not any(causal)
    assert (found - plain.attention(q, k, v, size, stride, dilation)).abs().max() < 1e-5
