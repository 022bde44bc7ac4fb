"""The autotuner of NATTEN's context, and its preference for memory: kept, and without effect."""

from .state import MemoryUsagePreference, NattenContext, state, switch

__all__ = [
    "MemoryUsagePreference",
    "NattenContext",
    "disable_autotuner",
    "get_memory_usage_preference",
    "is_autotuner_enabled",
    "is_autotuner_enabled_for_backward",
    "is_autotuner_enabled_for_forward",
    "is_autotuner_thorough_for_backward",
    "is_autotuner_thorough_for_forward",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "set_memory_usage_preference",
    "use_autotuner",
]

_, is_autotuner_enabled_for_forward, _, _ = switch("tuned_forward")
_, is_autotuner_enabled_for_backward, _, _ = switch("tuned_backward")
_, is_autotuner_thorough_for_forward, _, _ = switch("thorough_forward")
_, is_autotuner_thorough_for_backward, _, _ = switch("thorough_backward")


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
            setattr(state, field, bool(mode))


_TUNER = ("tuned_forward", "tuned_backward", "thorough_forward", "thorough_backward")


def disable_autotuner() -> None:
    """No tuning."""
    use_autotuner(False, False, False, False)


def is_autotuner_enabled() -> bool:
    """Whether tuning was asked for, in either direction."""
    return state.tuned_forward or state.tuned_backward


def set_memory_usage_preference(pref: str = "default") -> None:
    """Keep a preference: `default`, `strict` or `unrestricted`."""
    choices = {choice.name.lower(): choice for choice in MemoryUsagePreference}
    if pref not in choices:
        raise ValueError(f"memory usage preference is {pref!r}; pass {', '.join(choices)}")
    state.memory = choices[pref]


def get_memory_usage_preference() -> MemoryUsagePreference:
    """The preference in force."""
    return state.memory


def is_memory_usage_default() -> bool:
    """Whether the preference is `default`."""
    return state.memory is MemoryUsagePreference.Default


def is_memory_usage_strict() -> bool:
    """Whether the preference is `strict`."""
    return state.memory is MemoryUsagePreference.Strict


def is_memory_usage_unrestricted() -> bool:
    """Whether the preference is `unrestricted`."""
    return state.memory is MemoryUsagePreference.Unrestricted
