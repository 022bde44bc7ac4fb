"""Documents of different shapes, packed and padded, against the oracle on each of them."""

import pickle
import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from mlx.utils import tree_flatten, tree_map

import vicinal.mlx as na
from tests.documents import CASES, cases
from tests.mlx.documents import FORMS, Packed, attention, check, check_bits, drawn
from tests.mlx.test_blocked import counts_memory, peak

form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@form
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("backend", [None, "blocked", "reference"])
def test_matches_the_oracle_on_every_document(form, case, backend):
    check(form, replace(case, dtype="bfloat16" if case.dtype == "bfloat16" else "float32"), backend=backend)


@form
@given(cases(("float32",)))
@settings(max_examples=15, deadline=None)
def test_every_option_meets_every_other(form, case):
    check(form, case)


@form
@pytest.mark.parametrize("name", ["line", "everything", "clipped", "volume"])
@pytest.mark.parametrize("backend", [None, "blocked", "reference"])
def test_results_are_those_of_the_fixed_shape_bit_by_bit(form, name, backend):
    check_bits(form, replace(CASES[name], dtype="float32"), backend)


@form
def test_no_documents(form):
    if form is Packed:
        x = mx.zeros((0, 2, 4))
        out, lse = na.neighborhood_attention_packed(
            x, x, x, na.VarlenLayout([], rank=2), 3, output_stride=2, return_lse=True
        )
        assert (out.shape, lse.shape) == ((0, 2, 4), (0, 2))
    else:
        x = mx.zeros((0, 5, 6, 2, 4))
        out, lse = na.na2d_varlen(x, x, x, [], 3, output_stride=2, return_lse=True)
        assert (out.shape, lse.shape) == ((0, 3, 3, 2, 4), (0, 3, 3, 2))


@pytest.mark.parametrize("sizes", [mx.array([7, 12]), mx.array([[7], [12]]), [7, 12], ((7,), (12,))])
def test_sizes_come_in_many_forms(sizes):
    x = mx.random.normal((2, 13, 2, 4))
    out = na.na1d_varlen(x, x, x, sizes, 5)
    for place, extent in enumerate((7, 12)):
        alone = x[place : place + 1, :extent]
        assert mx.allclose(out[place, :extent], na.na1d(alone, alone, alone, 5)[0], atol=1e-6)


def test_a_compiled_function_keeps_its_sizes():
    x = mx.random.normal((2, 13, 2, 4))
    function = lambda x: na.na1d_varlen(x, x, x, [7, 12], 5)  # noqa: E731
    assert mx.allclose(mx.compile(function)(x), function(x), atol=1e-6)


def test_maps_over_more_batches():
    x = mx.random.normal((3, 2, 13, 2, 4))
    # MLX maps no kernels but its own.
    function = lambda x: na.na1d_varlen(x, x, x, [7, 12], 5, backend="blocked")  # noqa: E731
    for mapped in (function, mx.grad(lambda x: function(x).square().sum())):
        for got, one in zip(mx.vmap(mapped)(x), x, strict=True):
            assert mx.allclose(got, mapped(one), atol=1e-5)


@form
def test_derivatives_of_derivatives(form):
    """A gradient of a gradient is the slope of that gradient."""
    case = replace(CASES["everything"], dtype="float32")
    tokens, rest, flow, _ = drawn(case, 0)
    made = form(case)
    names = [*tokens, *rest]
    at = [*map(made.join, tokens.values()), *rest.values()]
    attend = attention(made, case, names, "blocked")
    pull = made.join(flow, outputs=True)
    pull = mx.where(mx.isnan(pull), 0.0, pull)
    loss = lambda *x: (attend(*x)[0].square() * pull).sum()  # noqa: E731
    every = tuple(range(len(at)))
    along = [mx.sin(17 * mx.where(mx.isnan(x), 0.0, x)) for x in at]
    inner = lambda *x: sum((g * a).sum() for g, a in zip(mx.grad(loss, every)(*x), along, strict=True))  # noqa: E731
    found = sum((g * a).sum().item() for g, a in zip(mx.grad(inner, every)(*at), along, strict=True))
    moved = lambda t: inner(*(x + t * a for x, a in zip(at, along, strict=True))).item()  # noqa: E731
    step = 2.0**-7
    slope = (8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12 * step)
    assert abs(found - slope) < 5e-3 * abs(slope)


@counts_memory
@form
def test_memory_of_gradients_is_that_of_tokens(form):
    """Not that times documents of different shapes."""
    shapes = [(200 + document,) for document in range(40)]

    def peak_of(count):
        chosen = na.VarlenLayout(shapes[:count])
        if form is Packed:
            x = mx.random.normal((chosen.total_tokens, 2, 16))
            attend = lambda x: na.neighborhood_attention_packed(x, x, x, chosen, 5, backend="blocked")  # noqa: E731
        else:
            x = mx.random.normal((count, 240, 2, 16))
            attend = lambda x: na.na1d_varlen(x, x, x, chosen.shapes, 5, backend="blocked")  # noqa: E731
        return peak(lambda x: mx.vjp(attend, [x], [x])[1], x)

    assert peak_of(40) < 5 * peak_of(10)


def test_layouts_travel():
    layout = na.VarlenLayout([(3, 4), (0, 2)])
    documents = [mx.random.normal((*shape, 2, 5)) for shape in layout.shapes]
    again = pickle.loads(pickle.dumps(layout))
    assert type(again) is na.VarlenLayout
    assert again == layout == na.VarlenLayout.from_tensors(documents)
    for got, want in zip(again.split(again.pack(documents)), documents, strict=True):
        assert mx.array_equal(got, want)


LAYERS = (na.NeighborhoodAttention1D, na.NeighborhoodAttention2D, na.NeighborhoodAttention3D)


@pytest.mark.parametrize("attn_drop", [0.0, 1e-9])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_layers(rank, attn_drop):
    """Every document as it were alone, zeros elsewhere, and gradients that no padding reaches."""
    layer = LAYERS[rank - 1](
        12, 3, 3, output_stride=2, num_kv_heads=1, rel_pos_bias=True, attn_drop=attn_drop
    )
    shapes = tuple((extent,) * rank for extent in (5, 3, 0, 5))
    x = np.full((4, *(6,) * rank, 12), np.nan, np.float32)
    for entry, shape in zip(x, shapes, strict=True):
        entry[tuple(map(slice, shape))] = np.random.default_rng(0).standard_normal((*shape, 12))
    x = mx.array(x)
    left = np.array(layer(x, shapes))
    for place, shape in enumerate(shapes):
        corner = (place, *(slice(-(-extent // 2)) for extent in shape))
        if 0 not in shape:
            alone = layer(x[(slice(place, place + 1), *map(slice, shape))])[0]
            np.testing.assert_allclose(left[corner], np.array(alone), atol=1e-5)
        left[corner] = 0.0
    assert not left.any()
    weights = layer.trainable_parameters()

    def loss(weights):
        layer.update(weights)
        return layer(x, shapes).square().sum()

    grads = mx.grad(loss)(weights)
    assert all(mx.isfinite(grad).all() for _, grad in tree_flatten(tree_map(mx.stop_gradient, grads)))


X = mx.zeros((2, 8, 4, 16))
P = mx.zeros((12, 4, 16))
LAYOUT = na.VarlenLayout([5, 7])


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        (
            [5, 9],
            ValueError,
            "sizes has 9 for document 1 on axis 0, over the 8 tokens there; lower it or pad",
        ),
        (
            [5, 2],
            ValueError,
            "kernel_size 3 is over the extent on axis 0 of documents 1 (2 tokens); pass fit=",
        ),
        ([5], ValueError, "sizes [1, 1] must be [batch, spatial axes], here [2, 1] or [2]"),
        (mx.array([5.0, 6.0]), ValueError, "dtype of sizes is mlx.core.float32; pass mlx.core.int32 or"),
        (mx.array([5, -1]), ValueError, "document 1 has shape [-1]; pass extents of 0 or more"),
        ([5, 6.0], TypeError, "document 1 has shape 6.0; each extent is an integer, one is of type float"),
        (5, TypeError, "sizes is of type int; pass an array, a list or a tuple"),
    ],
)
def test_bad_sizes(sizes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        na.na1d_varlen(X, X, X, sizes, 3)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X, X, X, LAYOUT), {}, ValueError, "query [2, 8, 4, 16] must be [tokens, heads, dim]"),
        ((P, P[:10], P, LAYOUT), {}, ValueError, "key has 10 tokens, query has 12; they are the same tokens"),
        ((P[:9], P[:9], P[:9], LAYOUT), {}, ValueError, "query has 9 tokens, its layout 12; pass the layout"),
        ((P, P, P, [5, 7]), {}, TypeError, "layout is of type list; pass a vicinal.mlx.VarlenLayout"),
        ((P, P, P, LAYOUT), {"fit": "shrink"}, ValueError, "fit is shrink; pass error or clip"),
        ((P, P, P, LAYOUT), {"kernel_size": 6}, ValueError, "kernel_size 6 is over the extent on axis 0 of"),
    ],
)
def test_bad_arguments(args, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        na.neighborhood_attention_packed(*args, **{"kernel_size": 3, **options})


def test_packing_other_documents():
    with pytest.raises(ValueError, match="there are 1 documents, 2 in their layout"):
        LAYOUT.pack([P[:5]])
    with pytest.raises(TypeError, match=r"document 1 is of type numpy\.ndarray; pass an mlx\.core\.array"):
        LAYOUT.pack([P[:5], np.zeros((7, *P.shape[1:]))])
