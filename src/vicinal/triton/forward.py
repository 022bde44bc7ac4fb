"""Attention, forward: softmax over the boxes of keys a tile visits, then over additional tokens."""

# pyright: reportAttributeAccessIssue=false
import triton
import triton.language as tl

from .padding import fill
from .tile import (
    Point,
    bias_places,
    boxes,
    columns_at,
    first_box,
    hide_box,
    is_empty,
    lanes,
    load_rows,
    next_box,
    offsets,
    query_offsets,
    query_tile,
    rows_inside,
    store_rows,
)


@triton.jit
def box_scores(
    q, k, scale, first, lane, tile, bias,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    COLUMNS: tl.constexpr, COUNT: tl.constexpr,
    SCALED: tl.constexpr, ALWAYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`[queries, keys]` scores in powers of two (not yet scaled unless SCALED), invisible ones hidden."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if SCALED:
        scores = scores * scale
    if bias is not None:
        row = Point(tile.t.place[:, None], tile.h.place[:, None], tile.w.place[:, None])
        column = Point((first.t + lane.t)[None, :], (first.h + lane.h)[None, :], (first.w + lane.w)[None, :])
        place = bias_places(row, column, T_RULE, H_RULE, W_RULE)
        scores += tl.load(bias + place).to(tl.float32) * 1.4426950408889634
    return hide_box(scores, first, lane, tile, COLUMNS, COUNT, ALWAYS)


@triton.jit
def _accumulate(scores, v, scale, top, total, out, PRECISION: tl.constexpr):
    """One step of the running softmax: `top` unscaled, `total` and `out` relative to it."""
    new = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet must not subtract one huge number from another: a fused multiply-add
    # rounds only one of them.
    base = tl.where(new > -1.0e30, new * scale, 0.0)
    shrink = tl.exp2(top * scale - base)
    weights = tl.exp2(scores * scale - base[:, None])
    out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
    return new, total * shrink + tl.sum(weights, 1), out


@triton.jit
def attend(
    query, key, value, bias, extra_key, extra_value, table, out, lse,
    scale, heads, group, T, H, W, extras,
    qb, qt, qh, qw, qn, kb, kt, kh, kw, kn, vb, vt, vh, vw, vn, ekb, eks, ekn, evb, evs, evn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr,
    HEADS_FIRST: tl.constexpr, SCALED: tl.constexpr, WIDE: tl.constexpr, DENSE: tl.constexpr,
    PRECISION: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """One tile of `M` queries of one head against boxes of `N` keys.

    `scale` holds log2(e). Strides are those of batch, three axes and heads (`n`). `out` and `lse` are
    contiguous. A `table` says which document each program works on.
    """
    tile = query_tile(
        tl.program_id(0), heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, HEADS_FIRST, table, LAYOUT
    )
    if is_empty(tile):
        if LAYOUT[2]:
            fill(table, heads, out, None, lse, VALUE_DIM, 0)
        return
    kv_head = (tile.head // group).to(tl.int64)
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    place = tile.place
    frame, outs = place.frame, place.outs
    q = load_rows(
        query + place.tokens * qb + tile.head.to(tl.int64) * qn,
        query_offsets(row, place, table, qt, qh, qw, T_RULE, H_RULE, W_RULE, WIDE, DENSE),
        DIM,
        PAD,
    )
    keys = key + place.tokens * kb + kv_head * kn
    values = value + place.tokens * vb + kv_head * vn
    if bias is not None:
        bias += tile.head * (2 * T_RULE.size - 1) * (2 * H_RULE.size - 1) * (2 * W_RULE.size - 1)
    rest = scale
    if SCALED:
        rest = 1.0
    top = tl.full([M], -1.0e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, VALUE_PAD], tl.float32)
    count = boxes(tile, COLUMNS)
    first = first_box(tile)
    for _ in range(0, count):
        at = columns_at(first, lane, tile, T_RULE.dilation, H_RULE.dilation, W_RULE.dilation)
        k = load_rows(keys, offsets(at, frame, kt, kh, kw, WIDE, DENSE), DIM, PAD)
        v = load_rows(values, offsets(at, frame, vt, vh, vw, WIDE, DENSE), VALUE_DIM, VALUE_PAD)
        scores = box_scores(
            q,
            k,
            scale,
            first,
            lane,
            tile,
            bias,
            T_RULE,
            H_RULE,
            W_RULE,
            COLUMNS,
            N,
            SCALED,
            False,
            PRECISION,
        )
        top, total, acc = _accumulate(scores, v, rest, top, total, acc, PRECISION)
        first = next_box(first, tile, COLUMNS)
    if extra_key is not None:
        extra_keys = extra_key + tile.batch * ekb + kv_head * ekn
        extra_values = extra_value + tile.batch * evb + kv_head * evn
        for start in tl.range(0, extras, N, num_stages=1):
            token = start + tl.arange(0, N)
            at = tl.minimum(token, extras - 1).to(tl.int64)
            k = load_rows(extra_keys, at * eks, DIM, PAD)
            v = load_rows(extra_values, at * evs, VALUE_DIM, VALUE_PAD)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if SCALED:
                scores = scores * scale
            scores = tl.where((token < extras)[None, :], scores, -1.0e30)
            top, total, acc = _accumulate(scores, v, rest, top, total, acc, PRECISION)
    inside = rows_inside(tile)
    base = place.first_row * heads + tile.head
    flat = offsets(row, outs, 0, 0, heads, WIDE, True)
    tl.store(lse + base + flat, (top * rest + tl.log2(total)) * 0.6931471805599453, mask=inside)
    store_rows(out + base * VALUE_DIM, flat * VALUE_DIM, acc / total[:, None], inside, VALUE_DIM, VALUE_PAD)
