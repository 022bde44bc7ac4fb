"""Operations of each era against the oracle: layouts, positions of arguments, scales, gradients."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vicinal.torch as na
from tests import oracle
from vicinal.torch.compat import allin1, for_version, natten_mps, v014, v015, v017, v020

LENGTHS = {1: (11,), 2: (7, 8), 3: (5, 6, 6)}


def close(name, got, want, limit=1e-12):
    got = got.detach().numpy()
    assert got.shape == want.shape, f"{name}: {got.shape}, expected {want.shape}"
    finite = np.isfinite(want)
    assert np.array_equal(got[~finite], want[~finite]), f"{name}: infinities"
    assert np.abs(got[finite] - want[finite]).max(initial=0) <= limit, name


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def heads_first(x):
    return np.moveaxis(x, -2, 1)


def heads_last(x):
    return np.moveaxis(x.detach().numpy(), 1, -2)


class Split:
    """Heads-first operands of a split operation, and what the oracle makes of them."""

    def __init__(self, rank, size, dilation=1, causal=False, bias=False, tokens=0):
        torch.manual_seed(0)
        self.win = oracle.window(rank, size, dilation=dilation, is_causal=causal)
        self.q, self.k, self.v = (draw(2, 3, *LENGTHS[rank], 4) for _ in "qkv")
        self.rpb = draw(3, *(2 * n - 1 for n in self.win.kernel_size)) if bias else None
        self.more_k, self.more_v = (draw(2, 3, tokens, 4) for _ in "kv") if tokens else (None, None)

    def scores(self):
        q, k = heads_last(self.q), heads_last(self.k)
        bias = None if self.rpb is None else self.rpb.detach().numpy()
        found = oracle.dot(q, k, self.win, bias=bias)
        if self.more_k is not None:
            more = np.einsum("b...hd,behd->b...he", q, heads_last(self.more_k))
            found = np.concatenate([found, more], -1)
        return heads_first(found)

    def check(self, qk, av):
        """Scores, output and gradients of the two halves with a softmax between them."""
        scores = qk(self)
        close("scores", scores, self.scores())
        out = av(self, scores.softmax(-1))
        leaves = [x for x in (self.q, self.k, self.v, self.rpb, self.more_k, self.more_v) if x is not None]
        grad = torch.randn_like(out)
        named = {"bias": None if self.rpb is None else self.rpb.detach().numpy()}
        if self.more_k is not None:
            named |= {"extra_key": heads_last(self.more_k), "extra_value": heads_last(self.more_v)}
        exact = oracle.attend(
            *(heads_last(x) for x in (self.q, self.k, self.v)),
            self.win,
            1.0,
            **named,
            grad_out=heads_last(grad),
        )
        close("out", out, heads_first(exact.out))
        wanted = [exact.query, exact.key, exact.value, exact.bias, exact.extra_key, exact.extra_value]
        wanted = [x if x is exact.bias else heads_first(x) for x in wanted if x is not None]
        for got, want in zip(torch.autograd.grad(out, leaves, grad), wanted, strict=True):
            close("gradient", got, want, 1e-11)


@pytest.mark.parametrize("era", [v014, v015, v017], ids=["v014", "v015", "v017"])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("biased", [True, False])
def test_oldest_names(era, rank, biased):
    qkrpb, plain, av = (getattr(era, f"natten{rank}d{kind}") for kind in ("qkrpb", "qk", "av"))
    case = Split(rank, 3, 2, bias=biased)
    case.check(lambda c: qkrpb(c.q, c.k, c.rpb, 3, 2), lambda c, a: av(a, c.v, 3, 2))
    case = Split(rank, 3, 2)
    case.check(
        lambda c: plain(c.q, c.k, kernel_size=3, dilation=2),
        lambda c, a: av(a, c.v, kernel_size=3, dilation=2),
    )


@pytest.mark.parametrize("rank", [1, 2])
def test_releases_before_0_14_6_left_the_size_to_shapes(rank):
    qkrpb, av = (getattr(v014, f"natten{rank}d{kind}") for kind in ("qkrpb", "av"))
    case = Split(rank, 3, 2, bias=True)
    case.check(lambda c: qkrpb(c.q, c.k, c.rpb, 2), lambda c, a: av(a, c.v, 2))
    case.check(lambda c: qkrpb(c.q, c.k, c.rpb, dilation=2), lambda c, a: av(a, c.v, dilation=2))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("tokens", [0, 2])
def test_0_15(rank, biased, tokens):
    qk, av = (getattr(v015, f"na{rank}d_{kind}") for kind in ("qk", "av"))
    with_bias = getattr(v015, f"na{rank}d_qk_with_bias")
    case = Split(rank, 3, 2, bias=biased, tokens=tokens)
    if biased:
        scores = lambda c: with_bias(c.q, c.k, c.rpb, 3, 2, c.more_k)  # noqa: E731
    else:
        scores = lambda c: qk(c.q, c.k, 3, 2, c.more_k)  # noqa: E731
    case.check(scores, lambda c, a: av(a, c.v, 3, 2, c.more_v))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("tokens", [0, 2])
def test_0_15_gives_depth_its_own_window(biased, tokens):
    case = Split(3, (5, 3, 3), (1, 2, 2), bias=biased, tokens=tokens)
    av = lambda c, a: v015.na3d_av(a, c.v, 5, 3, 1, 2, c.more_v)  # noqa: E731
    case.check(lambda c: v015.na3d_qk_with_bias(c.q, c.k, c.rpb, 5, 3, 1, 2, c.more_k), av)
    if not tokens:
        case.check(lambda c: v015.natten3dqkrpb(c.q, c.k, c.rpb, 5, 3, 1, 2), av)
    if not biased:
        case.check(lambda c: v015.na3d_qk(c.q, c.k, 5, 3, 1, 2, c.more_k), av)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("options", ["plain", "biased", "tokens", "causal", "causal tokens"])
def test_0_17_split(rank, options):
    qk, av = (getattr(v017, f"na{rank}d_{kind}") for kind in ("qk", "av"))
    causal = (True, *[False] * (rank - 1)) if "causal" in options else False
    tokens = 2 if "tokens" in options else 0
    size = (3 if rank < 3 else 2, 2, 3)[:rank]
    case = Split(rank, size, 2, causal, bias=options == "biased", tokens=tokens)
    case.check(
        lambda c: qk(c.q, c.k, size, 2, c.more_k, is_causal=causal, rpb=c.rpb),
        lambda c, a: av(a, c.v, size, 2, c.more_v, causal),
    )


def test_unfused_operations_take_none_for_defaults():
    case = Split(2, 3)
    case.check(
        lambda c: v017.na2d_qk(c.q, c.k, [3, 3], None, is_causal=None),
        lambda c, a: v017.na2d_av(a, c.v, [3, 3], None, is_causal=None),
    )


def fused_case(rank, tokens=0, kv_heads=3):
    torch.manual_seed(1)
    q = draw(2, *LENGTHS[rank], 3, 4)
    k, v = (draw(2, *LENGTHS[rank], kv_heads, 4) for _ in "kv")
    more = [draw(2, tokens, kv_heads, 4) for _ in "kv"] if tokens else [None, None]
    return q, k, v, *more


def exact_of(win, q, k, v, more_k, more_v, scale, bias=None):
    arrays = [None if x is None else x.detach().numpy() for x in (q, k, v, bias, more_k, more_v)]
    return oracle.attend(*arrays[:3], win, scale, *arrays[3:])


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("tokens", [0, 2])
def test_0_17_fused(rank, tokens):
    q, k, v, more_k, more_v = fused_case(rank, tokens)
    function, size = getattr(v017, f"na{rank}d"), [3 if rank < 3 else 2, 2, 3][:rank]
    rpb = draw(3, *(2 * n - 1 for n in size))
    out = function(q, k, v, size, 2, False, rpb, 0.7, more_k, more_v, {})
    win = oracle.window(rank, size, dilation=2)
    close("out", out, exact_of(win, q, k, v, more_k, more_v, 0.7, rpb).out)
    out = function(q, k, v, kernel_size=size, is_causal=True)
    win = oracle.window(rank, size, is_causal=True)
    close("causal", out, exact_of(win, q, k, v, None, None, 0.5).out)


def test_0_17_has_no_causal_bias():
    q, k, v, *_ = fused_case(1)
    first = [x.transpose(1, 2) for x in (q, k)]
    with pytest.raises(NotImplementedError, match="relative position bias"):
        v017.na1d(q, k, v, 3, is_causal=True, rpb=draw(3, 5))
    with pytest.raises(NotImplementedError, match="relative position bias"):
        v017.na1d_qk(*first, 3, is_causal=(True,), rpb=draw(3, 5))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("generic", [True, False])
def test_0_21(rank, generic):
    q, k, v, more_k, more_v = fused_case(rank, 2, kv_heads=1)
    function = v020.neighborhood_attention_generic if generic else getattr(v020, f"na{rank}d")
    size, stride, causal = [5, 2, 2][:rank], [2, 1, 2][:rank], (True, False, False)[:rank]
    out, lse = function(q, k, v, size, stride, None, causal, 0.3, more_k, more_v, return_lse=True)
    win = oracle.window(rank, tuple(size), tuple(stride), 1, causal)
    exact = exact_of(win, q, k, v, more_k, more_v, 0.3)
    close("out", out, exact.out)
    close("lse", lse, exact.lse)


def test_0_21_takes_what_clients_pass_through():
    q, k, v, *_ = fused_case(2)
    knobs = {
        "backend": "cutlass-fna",
        "q_tile_shape": (8, 8),
        "kv_tile_shape": (8, 8),
        "backward_q_tile_shape": (8, 8),
        "backward_kv_tile_shape": (8, 8),
        "backward_kv_splits": (1, 1),
        "backward_use_pt_reduction": True,
        "run_persistent_kernel": False,
        "kernel_schedule": "coop",
        "torch_compile": True,
        "attention_kwargs": {"backend": "cutlass-fmha"},
    }
    assert torch.equal(v020.na2d(q, k, v, 3, **knobs), v020.na2d(q, k, v, 3))


@pytest.mark.parametrize(
    ("knob", "error"),
    [
        ({"backend": "reference"}, NotImplementedError),
        ({"kernel_schedule": "fast"}, ValueError),
        ({"q_tile_shape": (8, 8)}, ValueError),
        ({"q_tile_shape": (8,), "kv_tile_shape": (8,)}, ValueError),
        ({"backward_q_tile_shape": 8, "backward_kv_tile_shape": 8}, ValueError),
        ({"backward_kv_splits": (0, 1)}, ValueError),
        ({"run_persistent_kernel": 1}, TypeError),
    ],
    ids=str,
)
def test_0_21_refuses_what_natten_refuses(knob, error):
    q, k, v, *_ = fused_case(2)
    with pytest.raises(error, match=next(iter(knob))):
        v020.na2d(q, k, v, 3, **knob)


def test_merging():
    q, k, v, *_ = fused_case(2)
    parts = [v020.na2d(q, k, v, 3, is_causal=causal, return_lse=True) for causal in (True, False)]
    outputs, lses = zip(*parts, strict=True)
    for merge in (v020.merge_attentions, natten_mps.merge_attentions):
        out, lse = merge(list(outputs), list(lses), use_autograd_fix=False)
        total = np.logaddexp(*(x.detach().numpy() for x in lses))
        close("lse", lse, total)
        weights = [np.exp(x.detach().numpy() - total)[..., None] for x in lses]
        whole = sum(w * x.detach().numpy() for w, x in zip(weights, outputs, strict=True))
        close("out", out, whole)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_natten_mps_stride_is_ours_of_outputs(rank):
    q, k, v, more_k, more_v = fused_case(rank, 2, kv_heads=1)
    function, size, stride = getattr(natten_mps, f"na{rank}d"), [4, 3, 3][:rank], [2, 3, 1][:rank]
    out, lse = function(q, k, v, size, stride, 1, False, 0.3, True, more_k, more_v)
    win = oracle.window(rank, tuple(size), output_stride=tuple(stride))
    exact = exact_of(win, q, k, v, more_k, more_v, 0.3)
    close("out", out, exact.out)
    close("lse", lse, exact.lse)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_natten_mps_split(rank):
    q, k, v, *_ = fused_case(rank)
    qk, av = (getattr(natten_mps, f"na{rank}d_{kind}") for kind in ("qk", "av"))
    win = oracle.window(rank, 3, is_causal=True, output_stride=2)
    sampled = q[(slice(None), *[slice(None, None, 2)] * rank)]
    for scale, factor in ((None, 1.0), (0.3, 0.3)):
        scores = qk(q, k, 3, 1, stride=2, is_causal=True, scale=scale)
        close("scores", scores, oracle.dot(sampled.detach().numpy(), k.detach().numpy(), win, factor))
    weights = scores.softmax(-1)
    exact = oracle.mix(weights.detach().numpy(), v.detach().numpy(), win)
    close("out", av(weights, v, 3, 1, stride=2, is_causal=True), exact)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_natten_mps_padded_batches(rank):
    q, k, v, *_ = fused_case(rank)
    sizes = torch.tensor([LENGTHS[rank], [length - 1 for length in LENGTHS[rank]]])
    given = sizes[:, 0] if rank == 1 else sizes
    poisoned = [x.detach().clone() for x in (q, k, v)]
    for x in poisoned:
        inside = x[1:][(slice(None), *map(slice, sizes[1].tolist()))].clone()
        x[1] = torch.nan
        x[1:][(slice(None), *map(slice, sizes[1].tolist()))] = inside
        x.requires_grad_()
    out = getattr(natten_mps, f"na{rank}d_varlen")(*poisoned, given, 2, 2, 0.3)
    exact = np.zeros(out.shape)
    for sample, lengths in enumerate(sizes.tolist()):
        cut = (slice(sample, sample + 1), *map(slice, lengths))
        arrays = [x.detach().numpy()[cut] for x in (q, k, v)]
        exact[cut] = oracle.attend(*arrays, oracle.window(rank, 2, dilation=2), 0.3).out
    close("out", out, exact)
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in poisoned)


@pytest.mark.parametrize("rank", [1, 2])
def test_allin1(rank):
    q, k, v, *_ = fused_case(rank)
    rpb, win = draw(3, *[5] * rank), oracle.window(rank, 3, dilation=2)
    arrays = [x.detach().numpy() for x in (q, k, v, rpb)]
    qk, av = getattr(allin1, f"na{rank}d_qk_rpb"), getattr(allin1, f"na{rank}d_av_fused")
    close("scores", qk(q, k, rpb, 3, 2, scale=0.3), oracle.dot(*arrays[:2], win, 0.3, arrays[3]))
    old_qk, old_av = getattr(allin1, f"natten{rank}dqkrpb"), getattr(allin1, f"natten{rank}dav")
    for bias, array in ((rpb, arrays[3]), (None, None)):
        want = oracle.dot(*arrays[:2], win, 1.0, array)
        close("scores", qk(q, k, bias, 3, 2), want)
        close("scores", old_qk(q, k, bias, 3, 2), want)
    weights = qk(q, k, rpb, 3, 2).softmax(-1)
    want = oracle.mix(weights.detach().numpy(), arrays[2], win)
    close("out", av(weights, v, 3, 2), want)
    close("out", old_av(weights, v, 3, 2), want)


def test_versions():
    eras = {"0.14.6": v014, "0.15.1": v015, "0.17.5": v017, "0.20.1": v020, "0.21.7": v020, "0.19": v017}
    for version, era in eras.items():
        assert for_version(version) is era
    for version in ("0.13.0", "0.22.0", "1.0", "latest"):
        with pytest.raises(ValueError, match="not known here"):
            for_version(version)


def test_a_mode_of_natten_mps():
    assert natten_mps.get_backend() == "auto"
    natten_mps.set_backend("pure")
    assert natten_mps.get_backend() == "pure"
    natten_mps.set_backend("auto")
    with pytest.raises(ValueError, match="unknown to natten-mps"):
        natten_mps.set_backend("fast")
    matrix = natten_mps.get_support_matrix()
    assert matrix["metal"]["available"] == natten_mps.has_metal() == natten_mps.has_mps()
    assert matrix["pure"]["forward"]["split_qk_av"]


def test_older_names_add_only_views():
    """Below the oldest names run the operations of the direct call, and permutations without copies."""
    q, k, v, *_ = fused_case(2)
    heads = [x.detach().movedim(-2, 1).requires_grad_() for x in (q, k, v)]
    names = []
    for call, operands in (
        (lambda q, k, v: na.na2d_av(na.na2d_qk(q, k, 3, scale=1.0).softmax(-1), v, 3), (q, k, v)),
        (lambda q, k, v: v014.natten2dav(v014.natten2dqk(q, k, 3, 1).softmax(-1), v, 3, 1), heads),
    ):
        with Record() as record:
            call(*operands).sum().backward()
        names.append(record.names)
    assert [name for name in names[0] if name != "aten::permute"] == [
        name for name in names[1] if name != "aten::permute"
    ]


class Record(TorchDispatchMode):
    """Names of the operations that run."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_operations_compile():
    """Each in one graph, arguments checked and layouts changed inside of it."""
    q, k, v, *_ = fused_case(2)
    heads = [x.movedim(-2, 1) for x in (q, k, v)]
    knobs = {"backend": "cutlass-fna", "q_tile_shape": (8, 8), "kv_tile_shape": (8, 8)}
    calls = {
        "v014": lambda q, k, v: v014.natten2dav(v014.natten2dqk(q, k, 3, 1).softmax(-1), v, 3, 1),
        "v017": lambda q, k, v: v017.na2d_av(v017.na2d_qk(q, k, [3, 2], None).softmax(-1), v, [3, 2]),
        "v020": lambda q, k, v: v020.na2d(q, k, v, 3, **knobs),
    }
    for era, call in calls.items():
        operands = [q, k, v] if era == "v020" else heads
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(*operands), call(*operands), atol=1e-10), era
