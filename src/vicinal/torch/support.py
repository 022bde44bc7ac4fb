"""Which backends can run a problem."""

from .. import dispatch
from ..problem import Problem
from .backends import BACKENDS


def refusals(problem: Problem) -> dict[str, str | None]:
    """Every backend, in order of preference, and why it cannot run `problem` on this machine, or None.

    The first with None is the one that runs. Nothing is computed.
    """
    return dispatch.refusals(BACKENDS, problem)
