"""What `natten`, `natten_mps` and `natten_mlx` hold in each release, and where we have it."""

from collections.abc import Mapping

# A submodule holds names of modules of ours: all public ones for None, `theirs=ours` where names differ.
Tree = Mapping[str, Mapping[str, str | None]]

LATEST = {"natten": "0.21.7", "natten_mps": "0.3.3", "natten_mlx": "0.3.3"}
_STARTS = {"v014": (0, 14), "v015": (0, 15), "v017": (0, 17), "v020": (0, 20)}
_END = (0, 22)


def era_of(version: str) -> str:
    """The era of a NATTEN release: `v014`, `v015`, `v017` or `v020`.

    Raises:
        ValueError: the version is no release of 0.14 to 0.21.
    """
    release = tuple(int(part) for part in str(version).split(".")[:2] if part.isdigit())
    eras = [era for era, start in _STARTS.items() if start <= release]
    if len(release) != 2 or not eras or release >= _END:
        raise ValueError(
            f"NATTEN {version} is not known here; give a release from 0.14 to 0.21, such as 0.17.5"
        )
    return eras[-1]


def tree_of(package: str, version: str) -> Tree:
    """The submodules of a package, `""` for itself.

    Raises:
        ValueError: the release is not known here.
    """
    if package == "natten":
        base, tree = "vicinal.torch.compat", NATTEN[era_of(version)]
    else:
        if version.split(".")[:2] != LATEST[package].split(".")[:2]:
            raise ValueError(f"{package} {version} is not known here; give {LATEST[package]}")
        framework = {"natten_mps": "torch", "natten_mlx": "mlx"}[package]
        base, tree = f"vicinal.{framework}.compat", _apple(package)
    return {
        name: {f"{base}.{source}" if source else base: names for source, names in parts.items()}
        for name, parts in tree.items()
    }


_LAYERS = "NeighborhoodAttention1D NeighborhoodAttention2D NeighborhoodAttention3D"
_PROBES = "has_bfloat has_cuda has_fp32_gemm has_fp64_gemm has_gemm has_half has_tf32_gemm"
_ENABLE = "disable_gemm_na disable_tf32 disable_tiled_na enable_gemm_na enable_tf32 enable_tiled_na"
_MEMORY = """are_deterministic_algorithms_enabled get_memory_usage_preference
    is_kv_parallelism_in_fused_na_enabled is_memory_usage_default is_memory_usage_strict
    is_memory_usage_unrestricted set_memory_usage_preference
    use_deterministic_algorithms use_kv_parallelism_in_fused_na"""
_SWITCHES_015 = f"{_PROBES} {_ENABLE}"
_SWITCHES_017 = f"""{_SWITCHES_015} {_MEMORY} disable_autotuner force_flex_attention has_fna has_fused_na
    is_autotuner_enabled is_autotuner_enabled_for_backward is_autotuner_enabled_for_forward
    is_autotuner_thorough_for_backward is_autotuner_thorough_for_forward is_fna_enabled is_fused_na_enabled
    is_gemm_na_enabled is_tf32_in_gemm_na_enabled is_tiled_na_enabled use_autotuner use_flex_attention use_fna
    use_fused_na use_gemm_na use_tf32_in_gemm_na use_tiled_na"""
_SWITCHES_020 = f"""{_MEMORY} allow_flex_compile allow_flex_compile_backprop disable_flex_compile
    disable_flex_compile_backprop is_flex_compile_allowed is_flex_compile_backprop_allowed"""
_STATE = "MemoryUsagePreference NattenContext"
_ADDITIONAL = "check_additional_keys check_additional_values make_attn_tensor_from_input"
_CHECKS = "check_causal_arg check_dilation_arg check_input_size_arg check_kernel_size_arg"
_FROM_ONE = "create_causal_arg_from_bool create_dim_from_int"
_VARLEN = "configure_varlen neighborhood_attention_varlen"
_KERNELS = "cutlass cutlass_hopper cutlass_blackwell"
_CONFIGS = " ".join(
    f"get_{way}configs_for_{kernel}_{family}"
    for family in ("fmha", "fna")
    for way, kernels in (("", f"flex {_KERNELS}"), ("bwd_", _KERNELS))
    for kernel in kernels.split()
)
_FUSED = "na1d na2d na3d attention merge_attentions"

_SPLIT_014 = "natten1dav natten1dqk natten1dqkrpb natten2dav natten2dqk natten2dqkrpb"
_SPLIT_017 = (
    f"{_SPLIT_014} natten3dav natten3dqk natten3dqkrpb na1d_av na1d_qk na2d_av na2d_qk na3d_av na3d_qk"
)
_BIASED = "na1d_qk_with_bias na2d_qk_with_bias na3d_qk_with_bias"

NATTEN: dict[str, Tree] = {
    "v014": {
        "": {
            "v014": "NeighborhoodAttention1D NeighborhoodAttention2D "
            "NeighborhoodAttention=NeighborhoodAttention2D"
        },
        "functional": {"v014": _SPLIT_014},
        "natten1d": {"v014": "NeighborhoodAttention1D natten1dqkrpb natten1dav"},
        "natten2d": {"v014": "NeighborhoodAttention2D natten2dqkrpb natten2dav"},
        "flops": {"v014": "add_natten_handle av_1d_flop av_flop get_flops qk_1d_rpb_flop qk_rpb_flop"},
    },
    "v015": {
        "": {"v015": _LAYERS, "switches": _SWITCHES_015},
        "functional": {"v015": f"{_SPLIT_017} {_BIASED}", "switches": _SWITCHES_015},
        "natten1d": {"v015": "NeighborhoodAttention1D"},
        "natten2d": {"v015": "NeighborhoodAttention2D"},
        "natten3d": {"v015": "NeighborhoodAttention3D"},
        "flops": {
            "flops": "add_natten_handle get_flops av_1d_flop av_2d_flop av_3d_flop "
            "qk_1d_rpb_flop qk_2d_rpb_flop qk_3d_rpb_flop"
        },
        "utils": {"tokens": _ADDITIONAL, "signature_types": "NoneType"},
    },
    "v017": {
        "": {"v017": _LAYERS, "switches": _SWITCHES_017},
        "functional": {"v017": f"{_SPLIT_017} na1d na2d na3d"},
        "experimental": {"v017": "na1d na2d na3d"},
        **{
            f"{stem}{rank}d": {"v017": f"NeighborhoodAttention{rank}D"}
            for stem in ("na", "natten")
            for rank in (1, 2, 3)
        },
        "context": {
            "switches": f"{_SWITCHES_017} {_STATE} should_force_flex_attention should_use_flex_attention"
        },
        "flops": {"flops": "add_natten_handle fna_flop_count get_flops na_av_flop_count na_qk_flop_count"},
        "types": {"signature_types": None, "checks": _FROM_ONE},
        "utils": {
            "tokens": _ADDITIONAL,
            "checks": f"{_CHECKS} check_all_args get_device_cc get_num_na_weights",
        },
        "utils.checks": {"checks": f"{_CHECKS} check_all_args get_num_na_weights"},
        "utils.tensor": {"tokens": _ADDITIONAL},
        "utils.misc": {"checks": "get_device_cc"},
        "utils.log": {"checks": "get_logger"},
    },
    "v020": {
        "": {"v020": f"{_LAYERS} {_FUSED} {_CONFIGS} HAS_LIBNATTEN", "switches": _SWITCHES_020},
        "functional": {"v020": f"{_FUSED} neighborhood_attention_generic"},
        "modules": {"v020": _LAYERS},
        "attn_merge": {"v020": "merge_attentions"},
        "backends": {"v020": _CONFIGS},
        "context": {"switches": f"{_SWITCHES_020} {_STATE}"},
        "token_permute": {"v020": "token_permute_operation token_unpermute_operation"},
        "types": {"signature_types": None},
        "utils": {},
        "utils.checks": {"checks": f"{_CHECKS} check_all_args=check_all_args_with_stride check_stride_arg"},
        "utils.device": {"checks": "get_device_cc"},
        "utils.log": {"checks": "get_logger"},
        "utils.tuples": {"checks": _FROM_ONE},
        "utils.varlen": {"v020": "generate_varlen_parameters"},
        "varlen": {"v020": _VARLEN},
        "version": {},
    },
}


def _apple(package: str) -> Tree:
    """natten-mps and natten-mlx, which are alike but for the probes of their backends."""
    functions = [f"na{rank}d{kind}" for rank in (1, 2, 3) for kind in ("", "_qk", "_av", "_varlen")]
    probes = {"natten_mps": "has_mps has_metal", "natten_mlx": "has_metal has_nanobind"}[package]
    matrix, merge = "get_support_matrix", "merge_attentions"
    allin1 = "na1d_qk_rpb na1d_av_fused na2d_qk_rpb na2d_av_fused"
    return {
        "": {package: f"{' '.join(functions)} {_LAYERS} {probes} {matrix} {merge} get_backend set_backend"},
        "functional": {package: " ".join(functions)},
        "nn": {package: _LAYERS},
        "merge": {package: merge},
        "support_matrix": {package: matrix},
        "compat": {"": "for_version"},
        **{f"compat.{era}": {era: None} for era in _STARTS},
        "extras": {},
        "extras.allin1": {"allin1": allin1},
        "extras.allin1.functional": {"allin1": "natten1dqkrpb natten1dav natten2dqkrpb natten2dav"},
        "version": {},
    }
