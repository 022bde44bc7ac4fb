"""Layouts of documents without a framework, on NumPy arrays."""

import copy
import pickle

import numpy as np
import pytest

from tests.errors import fails
from vicinal import arguments, layout
from vicinal.layout import VarlenLayout


def test_tokens_lie_one_document_after_another():
    found = VarlenLayout([(2, 3), (0, 5), (1, 1), (4, 2)])
    assert (found.rank, len(found), found.total_tokens) == (2, 4, 15)
    assert found.offsets == (0, 6, 6, 7, 15)
    packed = np.arange(15 * 4).reshape(15, 4)
    documents = found.split(packed)
    assert [x.shape for x in documents] == [(2, 3, 4), (0, 5, 4), (1, 1, 4), (4, 2, 4)]
    assert all(np.shares_memory(x, packed) for x in documents if x.size)
    np.testing.assert_array_equal(np.concatenate([x.reshape(-1, 4) for x in documents]), packed)


def test_layouts_of_the_same_shapes_are_equal():
    found = VarlenLayout([3, 5])
    assert (
        found == VarlenLayout(((3,), [5])) == VarlenLayout.from_tensors([np.zeros((n, 2, 4)) for n in (3, 5)])
    )
    assert hash(found) == hash(VarlenLayout([(3,), (5,)]))
    assert found != VarlenLayout([5, 3])
    assert found != ((3,), (5,))
    assert VarlenLayout([], rank=2) != VarlenLayout([], rank=1)
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found), eval(repr(found))):
        assert again == found
        assert again.offsets == found.offsets


def test_outputs_have_a_layout():
    assert VarlenLayout([(5, 4), (0, 3), (1, 1)]).sampled((2, 3)) == VarlenLayout([(3, 2), (0, 1), (1, 1)])
    assert VarlenLayout([np.int64(7), (8,)]).sampled(np.int32(4)).shapes == ((2,), (2,))
    assert VarlenLayout([7, 8]).sampled(4) == VarlenLayout([2, 2])


@pytest.mark.parametrize(
    ("shapes", "rank", "error", "message"),
    [
        (5, None, TypeError, "shapes is of type int; pass a list with one per document"),
        ("ab", None, TypeError, "shapes is of type str"),
        (
            [3, 2.0],
            None,
            TypeError,
            "document 1 has shape 2.0; each extent is an integer, one is of type float",
        ),
        (
            [(3, True)],
            None,
            TypeError,
            "document 0 has shape (3, True); each extent is an integer, one is of type",
        ),
        ([(3, 2), (4,)], None, ValueError, "document 1 has shape [4], of 1 axes instead of 2; all documents"),
        ([3], 2, ValueError, "document 0 has shape [3], of 1 axes instead of 2"),
        ([(3, -1)], None, ValueError, "document 0 has shape [3, -1]; pass extents of 0 or more"),
        ([], None, ValueError, "a layout of no documents cannot tell their axes; pass rank="),
        ([(1, 1, 1, 1)], None, ValueError, "documents have 4 spatial axes; pass 1 to 3"),
        ([3], True, ValueError, "rank is True; pass 1, 2 or 3, or None to read it off the shapes"),
        ([3], "1", ValueError, "rank is '1'; pass 1, 2 or 3"),
        ([()], None, ValueError, "documents have 0 spatial axes; pass 1 to 3"),
    ],
)
def test_bad_shapes(shapes, rank, error, message):
    fails(error, message, VarlenLayout, shapes, rank)


def test_bad_tensors():
    fails(
        ValueError,
        "document 0 is [3, 4]; pass [*shape, heads, dim] with 1 to 3 spatial axes",
        VarlenLayout.from_tensors,
        [np.zeros((3, 4))],
    )
    fails(
        TypeError,
        "document 1 is of type int; pass a tensor",
        VarlenLayout.from_tensors,
        [np.zeros((3, 4, 2)), 5],
    )
    fails(TypeError, "packed tensor is of type list; pass a tensor", VarlenLayout([3, 5]).split, [0] * 8)
    message = "packed tensor [7, 2] has no axis of 8 tokens first; pass one that this layout describes"
    fails(ValueError, message, VarlenLayout([3, 5]).split, np.zeros((7, 2)))


def test_bad_steps():
    places = VarlenLayout([(5, 4), (1, 1)])
    fails(ValueError, "output_stride (2,) has 1 entries for 2 spatial axes", places.sampled, (2,))
    fails(ValueError, "output_stride is 0 on axis 0; pass an integer of 1 or more", places.sampled, 0)


def test_documents_of_one_shape_are_grouped_and_empty_ones_left_out():
    window = arguments.window(None, 3, 2, 1, False, 1, rank=2)
    shapes = ((4, 5), (3, 3), (0, 4), (4, 5), (3, 3), (3, 3))
    found = layout.groups(shapes, window, False)
    assert [(g.shape, g.documents, g.neighbors) for g in found] == [
        ((4, 5), (0, 3), False),
        ((3, 3), (1, 4, 5), False),
    ]
    assert all(g.window == window for g in found)
    assert layout.groups(((4, 5), (4, 5)), window, False)[0].neighbors


def test_windows_are_clipped_per_axis():
    window = arguments.window(None, (7, 2), (4, 1), (1, 2), (True, False), 1, rank=2)
    (group,) = layout.groups(((3, 9),), window, True)
    assert group.window == ((3, 2), (3, 1), (1, 2), (True, False), (1, 1))


@pytest.mark.parametrize(
    ("dilation", "clip", "message"),
    [
        (
            1,
            False,
            "kernel_size 5 is over the extent on axis 0 of documents 0 (3 tokens), 3 (1 tokens); "
            'pass fit="clip" to let them attend to their whole extent',
        ),
        (
            2,
            False,
            "kernel_size 5 times dilation 2 is 10, over the extent on axis 0 of documents 0 (3 tokens), "
            "1 (9 tokens), 3 (1 tokens); lower one of the two or leave them out",
        ),
        (
            2,
            True,
            'documents 0 (3 tokens), 1 (9 tokens), 3 (1 tokens); fit="clip" works '
            "only where dilation is 1, so lower one of the two or leave them out",
        ),
    ],
)
def test_short_documents_are_named(dilation, clip, message):
    window = arguments.window(None, 5, 1, dilation, rank=1)
    fails(ValueError, message, layout.groups, ((3,), (9,), (0,), (1,), (10,)), window, clip)


def test_many_short_documents_are_counted():
    window = arguments.window(None, 5, rank=1)
    fails(ValueError, "7 (2 tokens) and 3 more; pass", layout.groups, ((2,),) * 11, window, False)


@pytest.mark.parametrize(
    ("shapes", "clip", "lengths", "clips"),
    [
        (((5, 9), (0, 3), (6, 30)), False, (8, 32), False),
        (((6, 20),), True, (8, 32), False),
        (((6, 8), (1, 9)), True, (8, 16), True),
        (((1, 2),), True, (3, 10), True),
        ((), False, (3, 10), False),
    ],
)
def test_one_problem_holds_all_documents(shapes, clip, lengths, clips):
    window = arguments.window(None, (3, 5), dilation=(1, 2), rank=2)
    found, documents = layout.together(shapes, None, window, clip)
    assert found == lengths
    assert documents == (shapes, None, clips)
