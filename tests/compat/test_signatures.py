"""Names, order and defaults of arguments, as each release has them."""

import inspect

import pytest
import torch

from tests.errors import fails
from vicinal.torch.compat import allin1, natten_mps, v014, v015, v017, v020

OLD_LAYER = "dilation=1, bias=True, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0"
DEPTH = "kernel_size_d, kernel_size, dilation_d, dilation"
SHAPES = "kernel_size, dilation, is_causal, is_heads_last, return_macs=False"
TILES = "backward_q_tile_{0}=None, backward_kv_tile_{0}=None, backward_kv_splits=None"
KNOBS = (
    f"backend=None, q_tile_{{0}}=None, kv_tile_{{0}}=None, {TILES}, backward_use_pt_reduction=False, "
    "run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, return_lse=False"
)
ATTEND = (
    "query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, "
    f"additional_keys=None, additional_values=None, attention_kwargs=None, {KNOBS.format('shape')}"
)
ENDS = "{0}_Q=None, {0}_KV=None"
MPS_LAYER = (
    "embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, num_kv_heads=None, "
    "qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0"
)

# `#` stands for each rank.
OLDEST = {
    "natten#dqkrpb": (12, "query, key, rpb, kernel_size, dilation"),
    "NeighborhoodAttention#D": (12, f"dim, num_heads, kernel_size, {OLD_LAYER}"),
    "get_flops": (1, "model, input, disable_warnings=False"),
    "add_natten_handle": (1, "flop_ctr"),
}
EXPECTED = {
    v014: {
        **OLDEST,
        "natten#dqk": (12, "query, key, kernel_size, dilation"),
        "natten#dav": (12, "attn, value, kernel_size, dilation"),
        "qk_rpb_flop": (1, "inputs, outputs"),
    },
    v015: {
        **OLDEST,
        "na#d_qk": (12, "query, key, kernel_size, dilation, additional_keys=None"),
        "na#d_qk_with_bias": (12, "query, key, bias, kernel_size, dilation, additional_keys=None"),
        "na#d_av": (12, "attn, value, kernel_size, dilation, additional_values=None"),
        "natten#dqk": (12, "query, key, kernel_size, dilation, additional_keys=None"),
        "na3d_qk": (3, f"query, key, {DEPTH}, additional_keys=None"),
        "na3d_qk_with_bias": (3, f"query, key, bias, {DEPTH}, additional_keys=None"),
        "na3d_av": (3, f"attn, value, {DEPTH}, additional_values=None"),
        "natten3dqkrpb": (3, f"query, key, rpb, {DEPTH}"),
        "NeighborhoodAttention3D": (
            3,
            "dim, num_heads, kernel_size, kernel_size_d=None, dilation=1, dilation_d=None, bias=True, "
            "qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0",
        ),
        "has_half": (1, "device_index=None"),
        "qk_3d_rpb_flop": (1, "inputs, outputs"),
    },
    v017: {
        "na#d_qk": (
            123,
            "query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None",
        ),
        "na#d_av": (123, "attn, value, kernel_size, dilation=1, additional_values=None, is_causal=False"),
        "na#d": (
            123,
            "query, key, value, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None, "
            "additional_keys=None, additional_values=None, xformers_kwargs=None",
        ),
        "NeighborhoodAttention#D": (
            123,
            "dim, num_heads, kernel_size, dilation=1, is_causal=False, rel_pos_bias=False, qkv_bias=True, "
            "qk_scale=None, attn_drop=0.0, proj_drop=0.0, use_experimental_ops=False",
        ),
        "use_fused_na": (
            1,
            "mode=True, kv_parallel=True, use_flex_attention=False, force_flex_attention=False",
        ),
        "use_autotuner": (
            1,
            "forward_pass=None, backward_pass=None, thorough_mode_forward=None, thorough_mode_backward=None, "
            "warmup_steps_forward=None, warmup_steps_backward=None, steps_forward=None, steps_backward=None",
        ),
        "fna_flop_count": (1, f"q_shape, k_shape, v_shape, {SHAPES}"),
        "na_qk_flop_count": (1, f"q_shape, k_shape, {SHAPES}"),
        "na_av_flop_count": (1, f"a_shape, v_shape, {SHAPES}"),
    },
    v020: {
        "na#d": (123, ATTEND),
        "neighborhood_attention_generic": (1, ATTEND),
        "attention": (
            1,
            f"query, key, value, is_causal=False, scale=None, {ENDS.format('seqlens')}, "
            f"{ENDS.format('cumulative_seqlen')}, {ENDS.format('max_seqlen')}, {KNOBS.format('size')}",
        ),
        "merge_attentions": (1, "outputs, lse_tensors, torch_compile=True, use_autograd_fix=True"),
        "NeighborhoodAttention#D": (
            123,
            "embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, "
            "qk_scale=None, proj_drop=0.0",
        ),
        "allow_flex_compile": (1, "mode=True, backprop=False"),
        "set_memory_usage_preference": (1, "pref='default'"),
        "get_configs_for_flex_fna": (1, "query, key, value, torch_compile=False"),
        "generate_varlen_parameters": (1, "query, key, value, seqlens_Q=None, seqlens_KV=None"),
    },
    natten_mps: {
        "na#d": (
            123,
            "query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, "
            "return_lse=False, additional_keys=None, additional_values=None",
        ),
        "na#d_qk": (123, "query, key, kernel_size, dilation=1, *, stride=1, is_causal=False, scale=None"),
        "na#d_av": (123, "attn, value, kernel_size, dilation=1, *, stride=1, is_causal=False"),
        "na1d_varlen": (1, "query, key, value, seq_lens, kernel_size, dilation=1, scale=None"),
        "na#d_varlen": (23, "query, key, value, spatial_sizes, kernel_size, dilation=1, scale=None"),
        "NeighborhoodAttention#D": (123, MPS_LAYER),
        "merge_attentions": (1, "outputs, lse_tensors, use_autograd_fix=True"),
    },
    allin1: {
        "na#d_qk_rpb": (12, "query, key, rpb, kernel_size, dilation=1, *, scale=None"),
        "na#d_av_fused": (12, "attn, value, kernel_size, dilation=1"),
        "natten#dqkrpb": (12, "query, key, rpb, kernel_size, dilation"),
        "natten#dav": (12, "attention_probs, value, kernel_size, dilation"),
    },
}
CASES = [
    pytest.param(
        getattr(era, name.replace("#", rank)), wanted, id=f"{era.__name__}.{name.replace('#', rank)}"
    )
    for era, names in EXPECTED.items()
    for name, (ranks, wanted) in names.items()
    for rank in str(ranks)
]


@pytest.mark.parametrize(("function", "wanted"), CASES)
def test_signature(function, wanted):
    signature = inspect.signature(function)
    plain = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    given = signature.replace(parameters=plain, return_annotation=signature.empty)
    assert str(given) == f"({wanted})"


@pytest.mark.parametrize("era", EXPECTED, ids=lambda era: era.__name__.rpartition(".")[2])
def test_all_names_are_documented(era):
    names = getattr(era, "__all__", [name for name in vars(era) if name.startswith("na")])
    undocumented = [name for name in names if callable(getattr(era, name)) and not getattr(era, name).__doc__]
    assert not undocumented


@pytest.mark.parametrize("era", [v014, v015, v017], ids=lambda era: era.__name__.rpartition(".")[2])
def test_nothing_for_an_operand_is_named(era):
    x = torch.zeros(1, 2, 8, 8, 4)
    for given, name in (((None, x), "query"), ((x, None), "key")):
        fails(TypeError, f"{name} is of type NoneType; pass a tensor", era.natten2dqk, *given, 3, 1)
