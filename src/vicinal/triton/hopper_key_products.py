"""Products of a box in the gradients of keys and values, in Gluon: their starts, and what waits for them."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from . import hopper_kept as hk
from . import hopper_parts as hp


@gluon.jit
def add_weights(weights, grad_outs, stage, sum_value, SPEC: gl.constexpr):
    """Starts adding weights times gradients of outputs."""
    cuts: gl.constexpr = SPEC.value_cuts
    layout: gl.constexpr = hp.weight_layout(cuts)
    weights = gl.convert_layout(weights.to(grad_outs.buffers.dtype), layout)
    return hp.add(weights, hp.matrix(grad_outs.buffers, stage), sum_value, cuts)


@gluon.jit
def _add_slopes(left, queries, stage, sum_key, SPEC: gl.constexpr):
    """Starts adding slopes times queries: what is `left` of a box is its slopes, or both factors of these."""
    cuts: gl.constexpr = SPEC.cuts
    layout: gl.constexpr = hp.weight_layout(cuts)
    slope = left[0]
    if SPEC.lags:
        slope = gl.convert_layout((left[0] * left[1]).to(queries.buffers.dtype), layout)
    return hp.add(slope, hp.matrix(queries.buffers, stage), sum_key, cuts)


@gluon.jit
def start(
    key, value, left, sum_key, sum_value, queries, grad_outs, stage, before, i, opening, empty,
    SPEC: gl.constexpr,
):  # fmt: skip
    """Starts a box: its scores, dP, and what is `left` of the one before to add, done if `SPEC.apart`."""
    cuts: gl.constexpr = SPEC.cuts
    value_cuts: gl.constexpr = SPEC.value_cuts
    pulling, adding, adding_value = (), sum_key, sum_value
    if SPEC.apart:
        # Beside a wide sum registers do not hold the slopes and two products of a box.
        adding = _add_slopes(left, queries, before, sum_key, SPEC)
        flying = hp.multiply(key, hp.matrix(queries.buffers, stage), empty, cuts)
        adding = hp.landed(adding, 1)
        mbarrier.arrive(queries.empty.index(before), count=1, pred=i > opening)
        place = i % SPEC.value_stages
        mbarrier.wait(grad_outs.full.index(place), (i // SPEC.value_stages) & 1)
        pulling = hp.multiply(value, hp.matrix(grad_outs.buffers, place), empty, value_cuts)
    else:
        flying = hp.multiply(key, hp.matrix(queries.buffers, stage), empty, cuts)
        if SPEC.lags:
            adding_value = add_weights(left[0], grad_outs, before, sum_value, SPEC)
        if SPEC.wants_key:
            adding = _add_slopes(left, queries, before, sum_key, SPEC)
            pulling = hp.multiply(value, hp.matrix(grad_outs.buffers, stage), empty, value_cuts)
    return flying, pulling, adding, adding_value


@gluon.jit
def landed(pulling, adding_key, adding_value, sum_value, SPEC: gl.constexpr):
    """dP, the sum of slopes times queries, and where it lags that of weights too, once they are there."""
    keys: gl.constexpr = len(SPEC.cuts)
    values: gl.constexpr = len(SPEC.value_cuts)
    pulled, sum_key = (), adding_key
    if SPEC.apart:
        pulled = hp.landed(pulling, 0)[0]
    elif SPEC.lags:
        found = hp.landed(pulling + adding_key + adding_value, 0)
        pulled, sum_key, sum_value = found[0], found[1 : 1 + keys], found[1 + keys :]
    elif SPEC.wants_key:
        found = hp.landed(pulling + adding_key, values if SPEC.wants_value else 0)
        pulled, sum_key = found[0], found[1:]
    return pulled, sum_key, sum_value


@gluon.jit
def remainder(weights, pulled, delta, dtype: gl.constexpr, slopes, block, SPEC: gl.constexpr):
    """What a box leaves for the next to add."""
    if SPEC.lags:
        # Not their product: ptxas has what products left read before others start.
        left = (weights, pulled - delta[None, :])
    else:
        slope = (weights * (pulled - delta[None, :])).to(dtype)
        if SPEC.keeps:
            hk.leave(slopes, slope, block)
        left = (gl.convert_layout(slope, hp.weight_layout(SPEC.cuts)),)
    return left


@gluon.jit
def finish(left, sum_key, sum_value, queries, grad_outs, stage, SPEC: gl.constexpr):
    """Sums with what is left of the last box."""
    if SPEC.lags:
        sum_value = hp.landed(add_weights(left[0], grad_outs, stage, sum_value, SPEC), 0)
    if SPEC.wants_key:
        sum_key = hp.landed(_add_slopes(left, queries, stage, sum_key, SPEC), 0)
    mbarrier.arrive(queries.empty.index(stage), count=1)
    return sum_key, sum_value
