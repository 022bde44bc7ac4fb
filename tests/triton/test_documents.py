"""Tables of documents, which say what every program does, without a GPU."""

from itertools import product
from math import ceil, prod
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from tests.documents import cases
from vicinal import Problem, arguments, layout
from vicinal.triton import documents
from vicinal.triton.documents import Tiling

boxes_of = st.sampled_from([(1, 2, 8), (4, 4, 4), (2, 8, 1)])


def problem_of(case, frame):
    window = (case.kernel_size, case.stride, case.dilation, case.is_causal, case.output_stride)
    lengths, found = layout.together(case.shapes, frame, window, case.fit == "clip")
    return Problem(arguments.axes(lengths, window), len(case.shapes), documents=found)


def framed(case):
    return tuple(max(extents) + 1 for extents in zip(*case.shapes, strict=True))


def decoded(problem, tiling):
    numbers = documents.rows(problem.documents, documents.spacing(problem), tiling)
    rows = [tuple(numbers[at : at + documents.WIDTH]) for at in range(0, len(numbers), documents.WIDTH)]
    assert len(rows) == documents.programs(problem, tiling)
    return rows


@given(cases(), st.booleans(), boxes_of, st.booleans())
def test_every_tile_of_every_document_is_there_once(case, is_padded, boxes, inverse):
    problem = problem_of(case, framed(case) if is_padded else None)
    tiles, each = decoded(problem, Tiling(boxes, inverse)), decoded(problem, Tiling())
    assert len(each) == len(case.shapes)
    tokens = rows = 0
    for document, shape in enumerate(map(documents.three, case.shapes)):
        mine = [row for row in tiles if row[0] == document]
        wanted = [range(1)] * 3
        for axis, (extent, (dilation, period, step), box) in enumerate(
            zip(shape, documents.spacing(problem), boxes, strict=True)
        ):
            count, groups = (extent, dilation) if inverse else (ceil(extent / step), period)
            most = max(ceil(len(range(group, count, groups)) / box) for group in range(groups))
            wanted[axis] = range(groups * most)
        assert sorted(row[1:4] for row in mine) == list(product(*wanted))
        assert each[document][:4] == (document, 0, 0, 0)
        assert all(row[4:9] == (*shape, tokens, rows) for row in (*mine, each[document]))
        tokens += prod(shape)
        rows += prod(case.outputs(case.shapes[document]))
    assert len(tiles) == len([row for row in tiles if row[0] >= 0])


@given(cases(), boxes_of, st.booleans(), st.sampled_from((1, 7, documents.MOST)))
def test_every_token_of_padding_is_filled_once(case, boxes, is_sampled, most):
    frame = framed(case)
    problem = problem_of(case, frame)
    steps = documents.three(case.output_stride) if is_sampled else (1, 1, 1)
    documents.rows.cache_clear()
    with patch.object(documents, "MOST", most):
        rows = decoded(problem, Tiling(boxes, steps=steps))
    padding = [row[documents.AREA : documents.AREA + 4] for row in rows]
    assert all(count * runs <= most for _, count, runs, _ in padding)
    starts = [(first + run * pitch, count) for first, count, runs, pitch in padding for run in range(runs)]
    filled = [token for first, count in starts for token in range(first, first + count)]
    whole = [range(0, extent, step) for extent, step in zip(documents.three(frame), steps, strict=True)]
    places = product(enumerate(map(documents.three, case.shapes)), product(*whole))
    wanted = [
        token
        for token, ((_, shape), place) in enumerate(places)
        if any(at >= extent for at, extent in zip(place, shape, strict=True))
    ]
    assert sorted(filled) == wanted
    assert [row for row in rows if row[0] >= 0] == decoded(problem, Tiling(boxes))
