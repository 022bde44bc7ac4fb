"""Which backends can run a problem."""

from .. import dispatch
from ..problem import Problem


def refusals(problem: Problem) -> dict[str, str | None]:
    """Every backend, in order of preference, with why it cannot run `problem` here; None if it can.

    The first with None is the one that runs. Nothing is computed.
    """
    # Here, because `import vicinal.mlx` loads no backend.
    from .backends import BACKENDS

    return dispatch.refusals(BACKENDS, problem)
