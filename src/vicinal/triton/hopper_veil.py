"""Scores that rows do not see, in Gluon: what the Hopper forward takes from them before the softmax.

A score is hidden by minus infinity. Between scores and their powers warpgroups wait for nothing else, so that
each instruction there counts: rows see a box along one axis in few ways, whose sums with scores, or with what
the powers take from these anyway, cost less than a choice for each score.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from . import hopper_window as hw


@gluon.jit
def by_thread(x):
    """`[64, columns]` with what a thread holds apart: the third axis counts the threads of a row."""
    return x.reshape([64, x.shape[1] // 8, 4, 2])


@gluon.jit
def along_last(scores, columns: gl.constexpr):
    """Scores with the last axis of their box apart: `[64, others, columns]`."""
    return scores.reshape([64, scores.shape[1] // columns, columns])


@gluon.jit
def _veil(layout: gl.constexpr, axis: gl.constexpr, at, first, stop, SPEC: gl.constexpr):
    """`[64, columns[axis]]`: 0 where rows see columns of the box at `at`, infinity elsewhere."""
    columns: gl.constexpr = SPEC.columns
    sizes: gl.constexpr = SPEC.sizes
    column = gl.arange(0, columns[axis], layout=gl.SliceLayout(0, layout)) + at[axis]
    begin = gl.convert_layout(first[axis], gl.SliceLayout(1, layout))
    end = gl.convert_layout(stop[axis], gl.SliceLayout(1, layout))
    seen = hw.sees(column[None, :], begin[:, None], end[:, None], sizes[axis])
    return gl.where(seen, 0.0, float("inf"))


@gluon.jit
def veil(scores, at, first, stop, shared, SPEC: gl.constexpr):
    """What to take from scores along the last axis, if that is veiled: `[64, columns[2]]`."""
    if SPEC.veiled:
        columns: gl.constexpr = SPEC.columns
        layout: gl.constexpr = gl.SliceLayout(1, along_last(scores, columns[2]).type.layout)
        hidden = gl.full([64, columns[2]], 0.0, gl.float32, layout=layout)
        if hw.crosses(at, shared, SPEC, 2):
            hidden = _veil(layout, 2, at, first, stop, SPEC)
        found = (hidden,)
    else:
        found = ()
    return found


@gluon.jit
def hide(scores, at, first, stop, shared, SPEC: gl.constexpr):
    """Scores over the box of columns at `at`, minus infinity where a row sees none of [first, stop) there.

    Each axis pays only in boxes that cross the border of what all rows see, and a veiled one not here.
    """
    columns: gl.constexpr = SPEC.columns
    for axis in gl.static_range(3):
        if SPEC.masked[axis] and columns[axis] == SPEC.width:
            scores = _hide_ends(axis, scores, at, first, stop, shared)
        elif SPEC.masked[axis] and not (axis == 2 and SPEC.veiled):  # noqa: SIM102 taken at compile time
            if hw.crosses(at, shared, SPEC, axis):
                scores = _hide_along(axis, scores, at, first, stop, SPEC)
    return scores


@gluon.jit
def _hide_along(axis: gl.constexpr, scores, at, first, stop, SPEC: gl.constexpr):
    columns: gl.constexpr = SPEC.columns
    held = scores.reshape([64, columns[0], columns[1], columns[2]])
    others: gl.constexpr = (3, 2) if axis == 0 else (3, 1) if axis == 1 else (2, 1)
    layout: gl.constexpr = gl.SliceLayout(others[1], gl.SliceLayout(others[0], held.type.layout))
    hidden = _veil(layout, axis, at, first, stop, SPEC)
    hidden = gl.expand_dims(gl.expand_dims(hidden, others[1]), others[0])
    return gl.convert_layout((held - hidden).reshape(scores.shape), scores.type.layout)


@gluon.jit
def _hide_ends(axis: gl.constexpr, scores, at, first, stop, shared):
    """The same where all columns follow one another along one axis.

    What a thread compares its rows' first and stop columns with are numbers in the code.
    """
    held = by_thread(scores)
    count: gl.constexpr = held.shape[1]
    whole: gl.constexpr = held.type.layout
    threads: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(3, whole))
    rows: gl.constexpr = gl.SliceLayout(1, threads)
    eight = gl.arange(0, count, layout=gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, whole))))
    pair = gl.arange(0, 2, layout=gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, whole))))
    column = 8 * eight[None, :, None, None] + pair[None, None, None, :]
    own = 2 * gl.arange(0, 4, layout=gl.SliceLayout(0, threads)) + at[axis]
    if at[axis] < shared[0][axis]:
        begin = gl.convert_layout(first[axis], rows)[:, None] - own[None, :]
        held = gl.where(column >= begin[:, None, :, None], held, float("-inf"))
    if at[axis] + 8 * count > shared[1][axis]:
        end = gl.convert_layout(stop[axis], rows)[:, None] - own[None, :]
        held = gl.where(column < end[:, None, :, None], held, float("-inf"))
    return gl.convert_layout(held.reshape(scores.shape), scores.type.layout)
