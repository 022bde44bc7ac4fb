"""What NATTEN's context keeps for the process: accepted, readable, and without effect."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum


class MemoryUsagePreference(Enum):
    """How much memory a backward pass may take."""

    Default = 0
    Strict = 1
    Unrestricted = 2


@dataclass
class State:
    """The switches, as they are at import."""

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


state = State()


class NattenContext:
    """Where NATTEN keeps its switches."""

    @staticmethod
    def reset() -> None:
        """Every switch as it is at import."""
        for field in fields(State):
            setattr(state, field.name, field.default)


def switch(
    field: str,
) -> tuple[Callable[..., None], Callable[[], bool], Callable[[], bool], Callable[[], bool]]:
    """A setter with a mode, a getter, and setters of True and False, which also return what they set."""

    def use(mode: bool = True) -> None:
        """Keep a switch as `mode` says."""
        setattr(state, field, bool(mode))

    def read() -> bool:
        """Whether a switch is on."""
        return getattr(state, field)

    def enable() -> bool:
        """Keep a switch as on."""
        use(True)
        return read()

    def disable() -> bool:
        """Keep a switch as off."""
        use(False)
        return read()

    return use, read, enable, disable
