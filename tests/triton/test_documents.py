"""Tables of documents, which say what every program does, without a GPU."""

from math import ceil, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents import cases
from vicinal import Problem, arguments, layout

pytest.importorskip("triton")

from vicinal.triton import documents


def problem_of(case, frame):
    window = (case.kernel_size, case.stride, case.dilation, case.is_causal, case.output_stride)
    lengths, found = layout.together(case.shapes, frame, window, case.fit == "clip")
    return Problem(arguments.axes(lengths, window), len(case.shapes), documents=found)


@given(cases(), st.booleans(), st.sampled_from([(1, 2, 8), (4, 4, 4), (2, 8, 1)]), st.booleans())
def test_every_tile_of_every_document_is_there_once(case, is_padded, boxes, inverse):
    frame = tuple(max(extents) + 1 for extents in zip(*case.shapes, strict=True)) if is_padded else None
    problem = problem_of(case, frame)
    numbers = documents.rows(case.shapes, documents.spacing(problem), boxes, inverse)
    tiles = [tuple(numbers[at : at + 8]) for at in range(0, len(numbers), 8)]
    assert len(tiles) == documents.programs(problem, boxes, inverse)
    tokens = rows = 0
    for document, shape in enumerate(map(documents.three, case.shapes)):
        mine = [row for row in tiles if row[0] == document]
        wanted = 1
        for extent, (dilation, period, step), box in zip(
            shape, documents.spacing(problem), boxes, strict=True
        ):
            count, groups = (extent, dilation) if inverse else (ceil(extent / step), period)
            wanted *= groups * max(ceil(len(range(group, count, groups)) / box) for group in range(groups))
        assert [row[1] for row in mine] == list(range(wanted))
        assert all(row[2:7] == (*shape, tokens, rows) for row in mine)
        tokens += prod(shape)
        rows += prod(case.outputs(case.shapes[document]))
