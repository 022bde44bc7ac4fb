"""Tables of documents, which say what every program does, without a GPU or Triton."""

from itertools import product
from math import ceil, prod

from hypothesis import given
from hypothesis import strategies as st

from tests.documents import cases
from vicinal import Problem, arguments, layout
from vicinal.triton import documents
from vicinal.triton.documents import Tiling


def problem_of(case, frame):
    window = (case.kernel_size, case.stride, case.dilation, case.is_causal, case.output_stride)
    lengths, found = layout.together(case.shapes, frame, window, case.fit == "clip")
    return Problem(arguments.axes(lengths, window), len(case.shapes), documents=found)


def decoded(problem, tiling):
    """Rows of a table, tiles and padding apart."""
    numbers = documents.rows(problem.documents, documents.spacing(problem), tiling)
    rows = [tuple(numbers[at : at + 8]) for at in range(0, len(numbers), 8)]
    assert len(rows) == documents.programs(problem, tiling)
    return [row for row in rows if row[1] >= 0], [row for row in rows if row[1] < 0]


@given(cases(), st.booleans(), st.sampled_from([(1, 2, 8), (4, 4, 4), (2, 8, 1)]), st.booleans())
def test_every_tile_of_every_document_is_there_once(case, is_padded, boxes, inverse):
    frame = tuple(max(extents) + 1 for extents in zip(*case.shapes, strict=True)) if is_padded else None
    problem = problem_of(case, frame)
    tiles, padding = decoded(problem, Tiling(boxes, inverse))
    assert not padding
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


@given(cases(), st.sampled_from([(1, 1, 16), (4, 4, 4)]), st.booleans())
def test_blocks_of_padding_hold_all_of_it(case, boxes, of_outputs):
    frame = tuple(max(extents) + 1 for extents in zip(*case.shapes, strict=True))
    problem = problem_of(case, frame)
    steps = documents.three(case.output_stride) if of_outputs else (1, 1, 1)
    _, padding = decoded(problem, Tiling(boxes, False, steps))
    whole = [ceil(extent / step) for extent, step in zip(documents.three(frame), steps, strict=True)]
    for document, shape in enumerate(map(documents.three, case.shapes)):
        mine = [ceil(extent / step) for extent, step in zip(shape, steps, strict=True)]
        blocks = [-1 - row[1] for row in padding if row[0] == document]
        covered = {row for block in blocks for row in range(block * prod(boxes), (block + 1) * prod(boxes))}
        for row, at in enumerate(product(*map(range, whole))):
            if any(place >= extent for place, extent in zip(at, mine, strict=True)):
                assert row in covered
