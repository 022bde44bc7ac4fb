"""Switches of NATTEN's context: accepted, kept for the process, readable, and without effect.

Every operation here is fused or split as it is called, deterministic, and plans its own tiles. What a `has_*`
asks for holds on every device.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum

import torch

__all__ = [
    "MemoryUsagePreference",
    "NattenContext",
    "allow_flex_compile",
    "allow_flex_compile_backprop",
    "are_deterministic_algorithms_enabled",
    "disable_autotuner",
    "disable_flex_compile",
    "disable_flex_compile_backprop",
    "disable_gemm_na",
    "disable_tf32",
    "disable_tiled_na",
    "enable_gemm_na",
    "enable_tf32",
    "enable_tiled_na",
    "force_flex_attention",
    "get_memory_usage_preference",
    "has_bfloat",
    "has_cuda",
    "has_fna",
    "has_fp32_gemm",
    "has_fp64_gemm",
    "has_fused_na",
    "has_gemm",
    "has_half",
    "has_tf32_gemm",
    "is_autotuner_enabled",
    "is_autotuner_enabled_for_backward",
    "is_autotuner_enabled_for_forward",
    "is_autotuner_thorough_for_backward",
    "is_autotuner_thorough_for_forward",
    "is_flex_compile_allowed",
    "is_flex_compile_backprop_allowed",
    "is_fna_enabled",
    "is_fused_na_enabled",
    "is_gemm_na_enabled",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "is_tf32_in_gemm_na_enabled",
    "is_tiled_na_enabled",
    "set_memory_usage_preference",
    "should_force_flex_attention",
    "should_use_flex_attention",
    "use_autotuner",
    "use_deterministic_algorithms",
    "use_flex_attention",
    "use_fna",
    "use_fused_na",
    "use_gemm_na",
    "use_kv_parallelism_in_fused_na",
    "use_tf32_in_gemm_na",
    "use_tiled_na",
]


class MemoryUsagePreference(Enum):
    """How much memory a backward pass may take."""

    Default = 0
    Strict = 1
    Unrestricted = 2


@dataclass
class _State:
    deterministic: bool = False
    kv_parallelism: bool = True
    fused: bool = False
    flex_attention: bool = False
    forced_flex_attention: bool = False
    flex_compile: bool = False
    flex_compile_backprop: bool = False
    gemm: bool = True
    tiled: bool = True
    tf32: bool = False
    memory: MemoryUsagePreference = MemoryUsagePreference.Default
    tuned_forward: bool = False
    tuned_backward: bool = False
    thorough_forward: bool = False
    thorough_backward: bool = False


_state = _State()


class NattenContext:
    """Where NATTEN keeps its switches."""

    @staticmethod
    def reset() -> None:
        """Every switch as it is at import."""
        for field in fields(_State):
            setattr(_state, field.name, field.default)


def _switch(
    field: str,
) -> tuple[Callable[..., None], Callable[[], bool], Callable[[], None], Callable[[], None]]:
    """A setter with a mode, a getter, and setters of True and False."""

    def use(mode: bool = True) -> None:
        """Keep a switch as `mode` says."""
        setattr(_state, field, bool(mode))

    def read() -> bool:
        """Whether a switch is on."""
        return getattr(_state, field)

    def enable() -> None:
        """Keep a switch as on."""
        use(True)

    def disable() -> None:
        """Keep a switch as off."""
        use(False)

    return use, read, enable, disable


use_deterministic_algorithms, are_deterministic_algorithms_enabled, _, _ = _switch("deterministic")
use_kv_parallelism_in_fused_na, is_kv_parallelism_in_fused_na_enabled, _, _ = _switch("kv_parallelism")
use_gemm_na, is_gemm_na_enabled, enable_gemm_na, disable_gemm_na = _switch("gemm")
use_tiled_na, is_tiled_na_enabled, enable_tiled_na, disable_tiled_na = _switch("tiled")
use_tf32_in_gemm_na, is_tf32_in_gemm_na_enabled, enable_tf32, disable_tf32 = _switch("tf32")
_, should_use_flex_attention, use_flex_attention, _ = _switch("flex_attention")
_, should_force_flex_attention, force_flex_attention, _ = _switch("forced_flex_attention")
_, is_flex_compile_allowed, _, disable_flex_compile = _switch("flex_compile")
allow_flex_compile_backprop, is_flex_compile_backprop_allowed, _, disable_flex_compile_backprop = _switch(
    "flex_compile_backprop"
)
_, is_fused_na_enabled, _, _ = _switch("fused")
_, is_autotuner_enabled_for_forward, _, _ = _switch("tuned_forward")
_, is_autotuner_enabled_for_backward, _, _ = _switch("tuned_backward")
_, is_autotuner_thorough_for_forward, _, _ = _switch("thorough_forward")
_, is_autotuner_thorough_for_backward, _, _ = _switch("thorough_backward")


def use_fused_na(
    mode: bool = True,
    kv_parallel: bool = True,
    use_flex_attention: bool = False,
    force_flex_attention: bool = False,
) -> None:
    """Ask for fused layers; layers are fused anyway."""
    _state.fused, _state.kv_parallelism = bool(mode), bool(kv_parallel)
    _state.flex_attention, _state.forced_flex_attention = bool(use_flex_attention), bool(force_flex_attention)


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    """Allow compiled FlexAttention, also backward if `backprop`."""
    _state.flex_compile, _state.flex_compile_backprop = bool(mode), bool(backprop)


def use_autotuner(
    forward_pass: bool | None = None,
    backward_pass: bool | None = None,
    thorough_mode_forward: bool | None = None,
    thorough_mode_backward: bool | None = None,
    warmup_steps_forward: int | None = None,
    warmup_steps_backward: int | None = None,
    steps_forward: int | None = None,
    steps_backward: int | None = None,
) -> None:
    """Ask for tuning; what is None stays as it is, and numbers of steps are of no use here."""
    modes = (forward_pass, backward_pass, thorough_mode_forward, thorough_mode_backward)
    for field, mode in zip(_TUNER, modes, strict=True):
        if mode is not None:
            setattr(_state, field, bool(mode))


_TUNER = ("tuned_forward", "tuned_backward", "thorough_forward", "thorough_backward")


def disable_autotuner() -> None:
    """No tuning."""
    use_autotuner(False, False, False, False)


def is_autotuner_enabled() -> bool:
    """Whether tuning was asked for, in either direction."""
    return _state.tuned_forward or _state.tuned_backward


def set_memory_usage_preference(pref: str = "default") -> None:
    """Keep a preference: `default`, `strict` or `unrestricted`."""
    choices = {choice.name.lower(): choice for choice in MemoryUsagePreference}
    if pref not in choices:
        raise ValueError(f"memory usage preference is {pref!r}; pass {', '.join(choices)}")
    _state.memory = choices[pref]


def get_memory_usage_preference() -> MemoryUsagePreference:
    """The preference in force."""
    return _state.memory


def is_memory_usage_default() -> bool:
    """Whether the preference is `default`."""
    return _state.memory is MemoryUsagePreference.Default


def is_memory_usage_strict() -> bool:
    """Whether the preference is `strict`."""
    return _state.memory is MemoryUsagePreference.Strict


def is_memory_usage_unrestricted() -> bool:
    """Whether the preference is `unrestricted`."""
    return _state.memory is MemoryUsagePreference.Unrestricted


def has_cuda() -> bool:
    """Whether there is an NVIDIA or AMD GPU."""
    return torch.cuda.is_available()


def has_half(device_index: int | None = None) -> bool:
    """Whether a kind of operation or dtype is there: always."""
    return True


has_bfloat = has_gemm = has_fna = has_tf32_gemm = has_fp64_gemm = has_half
has_fp32_gemm, has_fused_na = has_tf32_gemm, has_fna
use_fna, is_fna_enabled = use_fused_na, is_fused_na_enabled
