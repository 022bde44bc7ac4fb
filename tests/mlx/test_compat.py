"""Older names on MLX beside the same names on PyTorch, which are compared with the oracle."""

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from tests import budget
from vicinal.mlx import compat
from vicinal.mlx.compat import natten_mlx, v014, v017, v020

torch = pytest.importorskip("torch")

from vicinal.torch import compat as other  # noqa: E402

LENGTHS = {1: (11,), 2: (7, 8), 3: (6, 6, 6)}
SIZE, CAUSAL = (3, 3, 2), (True, False, True)
RANKS = pytest.mark.parametrize("rank", [1, 2, 3])
TWO_RANKS = pytest.mark.parametrize("rank", [1, 2])


class Era:
    """The names of an era in one framework."""

    def __init__(self, module, softmax):
        self.module, self.softmax = module, softmax

    def __call__(self, name, *given, **named):
        return getattr(self.module, name)(*given, **named)

    def split(self, qk, av, given, more, **named):
        """Scores, and values summed with their softmax."""
        scores = getattr(self.module, qk)(*given, **named)
        return scores, getattr(self.module, av)(self.softmax(scores, -1), *more)


def agree(era, shapes, call, theirs=None):
    """`call(era, operands)` in MLX and in PyTorch's float64: every result, and gradients of the last."""
    generator = np.random.default_rng(0)
    drawn = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    leaves = {name: torch.tensor(x, dtype=torch.float64, requires_grad=True) for name, x in drawn.items()}
    wanted = call(Era(getattr(other, theirs or era), torch.softmax), SimpleNamespace(**leaves))
    mine = Era(getattr(compat, era), mx.softmax)

    def attend(*arrays):
        found = call(mine, SimpleNamespace(**dict(zip(drawn, arrays, strict=True))))
        return list(found) if isinstance(found, tuple) else [found]

    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    arrays = [mx.array(x) for x in drawn.values()]
    for place, (got, want) in enumerate(zip(attend(*arrays), wanted, strict=True)):
        budget.check(f"result {place}", np.array(got), want.detach().numpy(), "float32")
    pull = generator.standard_normal(wanted[-1].shape).astype(np.float32)
    _, grads = mx.vjp(lambda *x: attend(*x)[-1:], arrays, [mx.array(pull)])
    exact = torch.autograd.grad(wanted[-1], list(leaves.values()), torch.tensor(pull), allow_unused=True)
    for (name, leaf), got, found in zip(leaves.items(), grads, exact, strict=True):
        want = torch.zeros_like(leaf) if found is None else found
        budget.check(f"gradient of {name}", np.array(got), want.numpy(), "float32")


def heads_first(rank, bias=None, tokens=0):
    shapes = dict.fromkeys("qkv", (2, 3, *LENGTHS[rank], 4))
    if tokens:
        shapes |= dict.fromkeys(("more_k", "more_v"), (2, 3, tokens, 4))
    return shapes if bias is None else shapes | {"rpb": (3, *(2 * size - 1 for size in bias))}


def heads_last(rank, kv_heads=3, tokens=0):
    heads = {"q": 3, "k": kv_heads, "v": kv_heads}
    shapes = {name: (2, *LENGTHS[rank], count, 4) for name, count in heads.items()}
    return shapes | {name: (2, tokens, kv_heads, 4) for name in ("more_k", "more_v") if tokens}


@TWO_RANKS
@pytest.mark.parametrize("era", ["v014", "v015", "v017"])
@pytest.mark.parametrize("biased", [True, False])
def test_oldest_names(era, rank, biased):
    names = f"natten{rank}dqk" + "rpb" * biased, f"natten{rank}dav"
    bias = (3,) * rank if biased else None

    def call(e, a):
        return e.split(*names, (a.q, a.k, *([a.rpb] if biased else []), 3, 2), (a.v, 3, 2))

    agree(era, heads_first(rank, bias), call)


@TWO_RANKS
def test_releases_before_0_14_6_left_the_size_to_shapes(rank):
    names = f"natten{rank}dqkrpb", f"natten{rank}dav"
    shapes = heads_first(rank, (3,) * rank)
    agree("v014", shapes, lambda e, a: e.split(*names, (a.q, a.k, a.rpb, 2), (a.v, 2)))


@TWO_RANKS
@pytest.mark.parametrize("kind", ["qk", "qk_with_bias"])
def test_0_15(rank, kind):
    bias = (3,) * rank if kind == "qk_with_bias" else None

    def call(e, a):
        extra = [] if bias is None else [a.rpb]
        given = (a.q, a.k, *extra, 3, 2, a.more_k)
        return e.split(f"na{rank}d_{kind}", f"na{rank}d_av", given, (a.v, 3, 2, a.more_v))

    agree("v015", heads_first(rank, bias, tokens=2), call)


def test_0_15_gives_depth_its_own_window():
    window, shapes = (5, 3, 1, 2), heads_first(3, (5, 3, 3), tokens=2)

    def with_tokens(e, a):
        given = (a.q, a.k, a.rpb, *window, a.more_k)
        return e.split("na3d_qk_with_bias", "na3d_av", given, (a.v, *window, a.more_v))

    agree("v015", shapes, with_tokens)
    plain = lambda e, a: e.split("na3d_qk", "na3d_av", (a.q, a.k, *window), (a.v, *window))  # noqa: E731
    agree("v015", heads_first(3), plain)
    older = lambda e, a: e.split("natten3dqkrpb", "natten3dav", (a.q, a.k, a.rpb, *window), (a.v, *window))  # noqa: E731
    agree("v015", heads_first(3, (5, 3, 3)), older)


@RANKS
def test_0_17_split(rank):
    names, size, causal = (f"na{rank}d_qk", f"na{rank}d_av"), list(SIZE[:rank]), CAUSAL[:rank]

    def call(e, a):
        given, more = (a.q, a.k, size, None, a.more_k, causal), (a.v, size, None, a.more_v, causal)
        return e.split(*names, given, more)

    agree("v017", heads_first(rank, tokens=2), call)
    biased = lambda e, a: e.split(*names, (a.q, a.k, size, 2), (a.v, size, 2), rpb=a.rpb)  # noqa: E731
    agree("v017", heads_first(rank, size), biased)


@RANKS
def test_0_17_fused(rank):
    size, shapes = SIZE[:rank], heads_last(rank, tokens=2)

    def call(e, a):
        return e(f"na{rank}d", a.q, a.k, a.v, size, 2, False, a.rpb, 0.7, a.more_k, a.more_v, {})

    agree("v017", shapes | {"rpb": (3, *(2 * n - 1 for n in size))}, call)
    causal = lambda e, a: e(f"na{rank}d", a.q, a.k, a.v, size, is_causal=CAUSAL[:rank])  # noqa: E731
    agree("v017", heads_last(rank), causal)


def test_0_17_has_no_causal_bias():
    x = mx.zeros((1, 8, 2, 4))
    with pytest.raises(NotImplementedError, match="relative position bias"):
        v017.na1d(x, x, x, 3, is_causal=True, rpb=mx.zeros((2, 5)))
    with pytest.raises(NotImplementedError, match="relative position bias"):
        v017.NeighborhoodAttention1D(8, 2, 3, is_causal=True, rel_pos_bias=True)


@RANKS
@pytest.mark.parametrize("generic", [True, False])
def test_0_21(rank, generic):
    name = "neighborhood_attention_generic" if generic else f"na{rank}d"
    window = (SIZE[:rank], (2, 1, 2)[:rank], None, CAUSAL[:rank])

    def call(e, a):
        return e(name, a.q, a.k, a.v, *window, 0.3, a.more_k, a.more_v, return_lse=True)

    agree("v020", heads_last(rank, kv_heads=1, tokens=2), call)


def test_0_21_checks_what_clients_pass_through():
    x = mx.random.normal((1, 6, 6, 2, 4))
    tiles = {"q_tile_shape": (8, 8), "kv_tile_shape": (8, 8)}
    knobs = {"backend": "hopper-fna", "kernel_schedule": "coop", **tiles}
    assert mx.array_equal(v020.na2d(x, x, x, 3, **knobs), v020.na2d(x, x, x, 3))
    assert v020.get_configs_for_cutlass_fna(x, x, x) == []
    assert v020.HAS_LIBNATTEN is True
    with pytest.raises(NotImplementedError, match="unknown to NATTEN"):
        v020.na2d(x, x, x, 3, backend="metal")
    with pytest.raises(ValueError, match="q_tile_shape and kv_tile_shape"):
        v020.na2d(x, x, x, 3, q_tile_shape=(8, 8))


@pytest.mark.parametrize("causal", [True, False])
def test_packed_attention(causal):
    lengths, keys = [4, 1, 6], [3, 5, 6]
    shapes = {"q": (1, sum(lengths), 2, 4), "k": (1, sum(keys), 2, 4), "v": (1, sum(keys), 2, 3)}

    def call(e, a):
        integers = {torch.softmax: lambda x: torch.tensor(x, dtype=torch.int32)}.get(
            e.softmax, lambda x: mx.array(x, mx.int32)
        )
        found = e("generate_varlen_parameters", a.q, a.k, a.v, integers(lengths), integers(keys))
        assert found[0].tolist() == [0, 4, 5, 11]
        assert found[2:] == (6, 6)
        named = dict(zip(("cumulative_seqlen_Q", "cumulative_seqlen_KV"), found, strict=False))
        return e("attention", a.q, a.k, a.v, causal, 0.3, **named, return_lse=True)

    agree("v020", shapes, call)
    agree("v020", shapes, lambda e, a: e("attention", a.q, a.k, a.v, causal))


def test_packs_that_do_not_fit():
    x, lengths = mx.zeros((1, 6, 2, 4)), mx.array([2, 3], mx.int32)
    with pytest.raises(ValueError, match="spans tokens 0 to 5"):
        v020.attention(x, x, x, seqlens_Q=lengths, seqlens_KV=lengths)
    with pytest.raises(ValueError, match="1-D int32"):
        v020.generate_varlen_parameters(x, x, x, lengths.astype(mx.uint32), lengths)


def test_neighborhoods_of_packed_inputs():
    layouts = [(5, 6), (3, 4), (7, 2), (7, 2)]
    tokens = sum(a * b for a, b in layouts)
    shapes = {"q": (1, tokens, 4, 4), "k": (1, tokens, 2, 4), "v": (1, tokens, 2, 3)}
    window = {
        "kernel_size_list": [(3, 3), (3, 2), (2, 1), (2, 1)],
        "dilation_list": [(1, 2), (1, 1), (3, 2), (3, 2)],
        "is_causal": (False, True),
    }

    def call(e, a):
        return e(
            "neighborhood_attention_varlen",
            a.q,
            a.k,
            a.v,
            token_layout_list=layouts,
            **window,
            scale=0.3,
            return_lse=True,
        )

    agree("v020", shapes, call)


@pytest.mark.parametrize("flip", [True, False])
def test_permuted_tokens(flip):
    def call(e, a):
        out, layout, padded = e("token_permute_operation", a.q, (3, 2), (2, 1), flip)
        assert (layout, padded) == ((7, 8), (6, 8))
        return out, e("token_unpermute_operation", out, layout, (3, 2), (2, 1), flip)

    agree("v020", {"q": (2, 7, 8, 3, 4)}, call)


@pytest.mark.parametrize("era", ["v020", "natten_mlx"])
def test_merging(era):
    shapes = dict.fromkeys(("a", "b", "c"), (2, 5, 3, 4)) | {f"l{name}": (2, 5, 3) for name in "abc"}

    def call(e, a):
        return e("merge_attentions", [a.a, a.b, a.c], [a.la, a.lb, a.lc])[::-1]

    agree(era, shapes, call, "natten_mps" if era == "natten_mlx" else None)


@RANKS
def test_natten_mlx_stride_is_ours_of_outputs(rank):
    window = ((4, 3, 3)[:rank], (2, 3, 1)[:rank], 1, CAUSAL[:rank])

    def call(e, a):
        return e(f"na{rank}d", a.q, a.k, a.v, *window, 0.3, True, a.more_k, a.more_v)

    agree("natten_mlx", heads_last(rank, kv_heads=1, tokens=2), call, "natten_mps")


@RANKS
def test_natten_mlx_split(rank):
    """Even windows, grouped heads, stride and causality; unlike natten-mps the default scores are scaled."""

    def call(e, a):
        scores = e(f"na{rank}d_qk", a.q, a.k, 2, 2, stride=2, is_causal=True, scale=0.5)
        weights = e.softmax(scores, -1)
        return scores, e(f"na{rank}d_av", weights, a.v, 2, 2, stride=2, is_causal=True)

    agree("natten_mlx", heads_last(rank, kv_heads=1), call, "natten_mps")
    x = mx.random.normal((1, *LENGTHS[rank], 2, 16))
    qk = getattr(natten_mlx, f"na{rank}d_qk")
    assert mx.array_equal(qk(x, x, 3), qk(x, x, 3, scale=0.25))


@RANKS
def test_natten_mlx_padded_batches(rank):
    sizes = [list(LENGTHS[rank]), [length - 1 for length in LENGTHS[rank]]]
    sizes = [size[0] for size in sizes] if rank == 1 else sizes

    def call(e, a):
        given = torch.tensor(sizes) if e.softmax is torch.softmax else mx.array(sizes)
        return e(f"na{rank}d_varlen", a.q, a.k, a.v, given, 2, 2, 0.3)

    agree("natten_mlx", heads_last(rank), call, "natten_mps")


@TWO_RANKS
def test_allin1(rank):
    def call(e, a):
        scores = e(f"na{rank}d_qk_rpb", a.q, a.k, a.rpb, 3, 2, scale=0.3)
        return scores, e(f"na{rank}d_av_fused", e.softmax(scores, -1), a.v, 3, 2)

    agree("allin1", heads_last(rank) | {"rpb": (3, *[5] * rank)}, call)
    agree("allin1", heads_last(rank), lambda e, a: e(f"na{rank}d_qk_rpb", a.q, a.k, None, 3, 2))


@TWO_RANKS
def test_allin1_has_the_oldest_names_heads_first(rank):
    """In natten-mlx, that is; in natten-mps they are heads last."""
    q, rpb = mx.random.normal((2, 3, *LENGTHS[rank], 4)), mx.random.normal((3, *[5] * rank))
    allin1, oldest = (SimpleNamespace(**vars(module)) for module in (compat.allin1, v014))
    names = f"natten{rank}dqkrpb", f"natten{rank}dav"
    scores = [getattr(module, names[0])(q, q, rpb, 3, 2) for module in (allin1, oldest)]
    assert mx.array_equal(*scores)
    assert mx.array_equal(*(getattr(module, names[1])(scores[0], q, 3, 2) for module in (allin1, oldest)))
