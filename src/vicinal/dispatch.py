"""Which backend runs a problem: the first of a table that does not refuse it."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from . import arguments
from .problem import Problem
from .window import Axis


class UnsupportedProblem(NotImplementedError):
    """No backend can run the problem here; the message holds every backend's reason."""


class Refusing(Protocol):
    """What dispatch needs of a backend."""

    name: str

    def refusal(self, problem: Problem) -> str | None:
        """Why this backend cannot run `problem` on this machine, or None where it can."""
        ...


B = TypeVar("B", bound=Refusing)


def choose(backends: Sequence[B], problem: Problem, wanted: str | None = None) -> B:
    """The backend named `wanted`, or the first that does not refuse `problem`.

    Raises:
        ValueError: no backend is named `wanted`.
        UnsupportedProblem: `wanted`, or every backend, refuses.
    """
    candidates = backends
    if wanted is not None:
        candidates = [backend for backend in backends if backend.name == wanted]
        if not candidates:
            names = ", ".join(backend.name for backend in backends)
            raise ValueError(f"backend {wanted!r} is unknown; pass None or one of {names}")
    reasons: dict[str, str] = {}
    for backend in candidates:
        reason = backend.refusal(problem)
        if reason is None:
            return backend
        reasons[backend.name] = reason
    raise UnsupportedProblem(_explain(problem, reasons, wanted))


def first(backends: Sequence[B], problem: Problem, wanted: str | None = None) -> B | None:
    """What `choose` finds, or None where it would raise."""
    named = (backend for backend in backends if wanted in (None, backend.name))
    return next((backend for backend in named if backend.refusal(problem) is None), None)


def refusals(backends: Sequence[B], problem: Problem) -> dict[str, str | None]:
    """Every backend, in order, with why it refuses `problem`; None if it does not.

    Raises:
        TypeError: `problem` is no `Problem`, or does not hold what one holds.
    """
    arguments.instance("problem", problem, Problem, "a vicinal.Problem")
    arguments.instance("axes", problem.axes, tuple, "a tuple of vicinal.Axis")
    for place, axis in enumerate(problem.axes):
        arguments.instance(f"axis {place}", axis, Axis, "a vicinal.Axis")
    for name in ("dtype", "device"):
        arguments.instance(name, getattr(problem, name), str, "its name, such as float16 or cuda")
    return {backend.name: backend.refusal(problem) for backend in backends}


def _explain(problem: Problem, reasons: dict[str, str], wanted: str | None) -> str:
    who = "no backend can run" if wanted is None else f"backend {wanted} was asked for and cannot run"
    width = max(map(len, reasons), default=0)
    lines = [f"  {name:<{width}}  {reason}" for name, reason in reasons.items()]
    return "\n".join([f"{who} {problem}", *lines])
