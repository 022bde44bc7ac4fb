"""What the portable kernels run, whichever framework launches them. Importing this needs no Triton."""

from functools import lru_cache
from importlib.util import find_spec
from math import prod

from ..problem import ONE_DTYPE, Documents, Problem

OLDEST = (3, 4)
# Gluon is an experimental interface; sweeps over rings are written for that of this release.
GLUON = (3, 6)
# Tables of documents hold numbers of 32 bits.
TOKENS = 2**31 - 1


def refusal(problem: Problem) -> str | None:
    """Why the kernels cannot run `problem`, or Triton not compile them, if so; says nothing of a GPU."""
    if problem.device != "cuda":
        return f"runs on cuda, not {problem.device}"
    if problem.documents is not None and _tokens(problem.documents) > TOKENS:
        return f"counts at most {TOKENS} tokens of documents and their padding"
    if problem.dtype not in ("float16", "bfloat16", "float32"):
        return f"has no {problem.dtype}"
    if problem.key_dtype is not None:
        return ONE_DTYPE
    for dim in (problem.dim, problem.value_dim):
        if not 1 <= dim <= 256:
            return f"head dim {dim} is {'over 256' if dim else 'under 1'}"
    return _missing()


def _tokens(documents: Documents) -> int:
    """Tokens of documents, and of their padding."""
    shapes, frame = documents.shapes, documents.frame
    return sum(map(prod, shapes)) if frame is None else len(shapes) * prod(frame)


def _missing() -> str | None:
    """Why Triton compiles nothing here, if so."""
    found = installed()
    if found is None:
        return "Triton is not installed"
    return f"Triton {found[0]}.{found[1]} is older than {OLDEST[0]}.{OLDEST[1]}" if found < OLDEST else None


@lru_cache(4096)
def programs_refusal(problem: Problem, most: int) -> str | None:
    """Why a launch of at most `most` programs cannot run `problem`, if so. Needs Triton."""
    from . import plan

    programs = problem.batch * problem.heads * plan.most_tiles(problem)
    return None if programs <= most else f"needs {programs} programs, over {most}"


@lru_cache(1)
def installed() -> tuple[int, int] | None:
    """Major and minor version of the Triton that is installed, if any."""
    if find_spec("triton") is None:
        return None
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)
