"""Switches of NATTEN's context, and what it says it has.

Every operation here is fused or split as it is called, deterministic, and plans its own tiles. What a `has_*`
asks for holds on every device.
"""

from .state import state, switch

__all__ = [
    "allow_flex_compile",
    "allow_flex_compile_backprop",
    "are_deterministic_algorithms_enabled",
    "disable_flex_compile",
    "disable_flex_compile_backprop",
    "disable_gemm_na",
    "disable_tf32",
    "disable_tiled_na",
    "enable_gemm_na",
    "enable_tf32",
    "enable_tiled_na",
    "force_flex_attention",
    "has_bfloat",
    "has_fna",
    "has_fp32_gemm",
    "has_fp64_gemm",
    "has_fused_na",
    "has_gemm",
    "has_half",
    "has_tf32_gemm",
    "is_flex_compile_allowed",
    "is_flex_compile_backprop_allowed",
    "is_fna_enabled",
    "is_fused_na_enabled",
    "is_gemm_na_enabled",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_tf32_in_gemm_na_enabled",
    "is_tiled_na_enabled",
    "should_force_flex_attention",
    "should_use_flex_attention",
    "use_deterministic_algorithms",
    "use_flex_attention",
    "use_fna",
    "use_fused_na",
    "use_gemm_na",
    "use_kv_parallelism_in_fused_na",
    "use_tf32_in_gemm_na",
    "use_tiled_na",
]

use_deterministic_algorithms, are_deterministic_algorithms_enabled, _, _ = switch("deterministic")
use_kv_parallelism_in_fused_na, is_kv_parallelism_in_fused_na_enabled, _, _ = switch("kv_parallelism")
use_gemm_na, is_gemm_na_enabled, enable_gemm_na, disable_gemm_na = switch("gemm")
use_tiled_na, is_tiled_na_enabled, enable_tiled_na, disable_tiled_na = switch("tiled")
use_tf32_in_gemm_na, is_tf32_in_gemm_na_enabled, enable_tf32, disable_tf32 = switch("tf32")
_, should_use_flex_attention, _, _ = switch("flex_attention")
_, should_force_flex_attention, _, _ = switch("forced_flex_attention")
_, is_flex_compile_allowed, _, _ = switch("flex_compile")
allow_flex_compile_backprop, is_flex_compile_backprop_allowed, _, disable_flex_compile_backprop = switch(
    "flex_compile_backprop"
)
_, is_fused_na_enabled, _, _ = switch("fused")


def use_fused_na(
    mode: bool = True,
    kv_parallel: bool = True,
    use_flex_attention: bool = False,
    force_flex_attention: bool = False,
) -> None:
    """Ask for fused layers, or turn off all that this asks for; layers are fused anyway."""
    state.fused, state.kv_parallelism = bool(mode), bool(mode and kv_parallel)
    state.flex_attention = bool(mode and use_flex_attention)
    state.forced_flex_attention = bool(mode and force_flex_attention)


def use_flex_attention() -> None:
    """Ask for fused layers by FlexAttention, where others do not run."""
    use_fused_na(use_flex_attention=True)


def force_flex_attention() -> None:
    """Ask for fused layers by FlexAttention."""
    use_fused_na(use_flex_attention=True, force_flex_attention=True)


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    """Allow compiled FlexAttention, also backward if `backprop`."""
    state.flex_compile, state.flex_compile_backprop = bool(mode), bool(mode and backprop)


def disable_flex_compile() -> None:
    """Allow no compiled FlexAttention."""
    allow_flex_compile(False)


def has_half(device_index: int | None = None) -> bool:
    """Whether a kind of operation or dtype is there: always."""
    return True


has_bfloat = has_gemm = has_fna = has_tf32_gemm = has_fp64_gemm = has_half
has_fp32_gemm, has_fused_na = has_tf32_gemm, has_fna
use_fna, is_fna_enabled = use_fused_na, is_fused_na_enabled
