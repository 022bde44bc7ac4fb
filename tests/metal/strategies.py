"""Random problems for Metal kernels."""

from hypothesis import strategies as st

from tests import strategies
from vicinal import Problem


@st.composite
def geometries(draw):
    """Every option of the window; what kernels are compiled for stays the same."""
    rank = draw(st.integers(1, 3))
    kv_heads = draw(st.integers(1, 2))
    return Problem(
        tuple(draw(strategies.axes((70, 12, 6)[rank - 1])) for _ in range(rank)),
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        dim=8,
        value_dim=8,
        bias=True,
        extra=draw(st.sampled_from((1, 2, 40))),
    )
