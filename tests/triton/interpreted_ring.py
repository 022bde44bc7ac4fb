"""Sweeps over rings against the oracle, in Triton's interpreter: needs TRITON_INTERPRET=1."""

import sys
from dataclasses import replace

import hypothesis
from hypothesis import strategies as st

from tests.triton import emulated, interpreting

with emulated.stand_ins():
    from vicinal.triton import ring_backward, ring_forward, ring_walks  # noqa: F401

from tests.triton.interpreted import any_axis, check_attend, check_walks
from vicinal import Axis, Problem
from vicinal.triton import launches, ring_launches, ring_plan

ring_launches.runs_here = lambda: True

SWEEPS = (ring_plan.forward, ring_plan.query_gradient, ring_plan.key_gradient)


def problem(*axes, heads=2, dim=16, value_dim=16, **options):
    options = {"kv_heads": heads, "dtype": "float16", "device": "cuda", "gradients": True, **options}
    return Problem(axes, heads=heads, dim=dim, value_dim=value_dim, **options)


# What every sweep takes: each option alone, then together.
CASES = {
    "line": problem(Axis(40, 7)),
    "plane": problem(Axis(11, 7), Axis(13, 7), batch=2),
    "cube": problem(Axis(5, 3), Axis(6, 3), Axis(7, 3), heads=1),
    "dims": problem(Axis(9, 3), Axis(8, 5), dim=32, value_dim=16),
    "wide": problem(Axis(9, 5), Axis(8, 3), heads=1, dim=16, value_dim=64),
    "stride": problem(Axis(14, 5, 3), Axis(12, 4, 2)),
    "dilation": problem(Axis(17, 3, 1, 3), Axis(13, 3, 1, 2)),
    "causal": problem(Axis(9, 4, 1, 1, True), Axis(10, 3)),
    "output_stride": problem(Axis(13, 5, 1, 1, False, 2), Axis(12, 3, 1, 1, False, 3)),
    # Every other dilation group holds no output.
    "unseen": problem(*[Axis(9, 3, 1, 2, False, 2)] * 2, heads=1),
    # Every other key of a sweep is seen by no output.
    "unseen_between": problem(Axis(17, 8, 6), Axis(20, 1, 1, 3, True, 2), heads=1),
    "one_token": problem(Axis(1, 1)),
    "one_key": problem(Axis(6, 1), Axis(5, 3)),
    "even": problem(Axis(9, 4), Axis(10, 2)),
    "folds": problem(Axis(6, 3), Axis(24, 8, 2)),
    "folds_all": problem(Axis(16, 7), Axis(24, 8, 1, 1, True), heads=1),
    "grouped": problem(Axis(9, 3), Axis(8, 3), heads=4, kv_heads=2),
    "everything": problem(Axis(14, 4, 2, 2, True), Axis(15, 3, 1, 3, False, 2)),
}


def forbidden(*_):
    raise AssertionError("no sweep was taken")


def check(name):
    """One case, every kernel of which sweeps; what sums over keys of grouped heads has no sweep."""
    case = CASES[name]
    found = [sweep(case) for sweep in SWEEPS]
    assert all(found[:2])
    goes_on = any(sweep.spec.steps > 1 for sweep in found if sweep is not None)
    assert goes_on == (name not in ("unseen", "one_token", "one_key", "grouped"))
    assert (ring_plan.key_gradient(case) is None) == (name == "grouped")
    check_attend(case)
    walks = {name: ring_plan.walk(replace(case, operation=name)) for name in ("dot", "mix", "mix_back")}
    assert [name for name, sweep in walks.items() if sweep is None] == ["mix_back"] * (name == "grouped")
    spec = walks["dot"].spec
    assert spec.lanes < spec.width or not name.startswith("folds")
    check_walks(case)
    check_walks(replace(case, bias=True), 1)


@st.composite
def any_sweep(draw):
    rank = draw(st.integers(1, 3))
    axes = tuple(draw(any_axis((18, 6, 3)[rank - 1])) for _ in range(rank))
    kv_heads = draw(st.integers(1, 2))
    dims = st.sampled_from(ring_plan.DIMS[:2])
    heads = kv_heads * draw(st.integers(1, 2))
    return problem(*axes, heads=heads, kv_heads=kv_heads, dim=draw(dims), value_dim=draw(dims))


def check_any(count):
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(any_sweep(), st.integers(0, 99))
    def test(drawn, seed):
        hypothesis.note(str(drawn))
        hypothesis.assume(all(sweep(drawn) for sweep in SWEEPS[:2]))
        check_attend(replace(drawn, batch=1), seed)
        check_walks(replace(drawn, batch=1), seed, -0.7)

    test()


if __name__ == "__main__":
    interpreting.start()
    for name in ("small_forward_launch", "forward_launch", "delta_launch", "query_gradient_launch"):
        setattr(launches, name, lambda *_: forbidden)
    other_walk = launches.walk_launch
    launches.walk_launch = lambda problem, *given: (
        other_walk(problem, *given) if problem.operation == "mix_back" else forbidden
    )
    if sys.argv[1] == "any":
        check_any(int(sys.argv[2]))
    else:
        # As where there are many more tiles than programs, which go on from one to the next.
        ring_plan.MULTIPROCESSORS = ring_plan.PLACES = 1
        shard, shards = map(int, sys.argv[1:])
        for name in list(CASES)[shard::shards]:
            check(name)
