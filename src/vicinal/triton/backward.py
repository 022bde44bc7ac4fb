"""Gradients of attention. Every sum has one owner and a fixed order: no atomics, the same bits every time.

All kernels take `lse`, the natural logarithm that `forward.attend` stored, and `delta`, the sum over a row of
output times its gradient, less the gradient of `lse`; both are contiguous `[batch, *outputs, heads]`. `scale`
holds log2(e).
"""

# pyright: reportAttributeAccessIssue=false
import triton
import triton.language as tl

from .forward import box_scores
from .padding import fill
from .tile import (
    Point,
    bias_places,
    boxes,
    columns_at,
    first_box,
    hide_box,
    is_empty,
    is_first,
    key_tile,
    lanes,
    load_rows,
    next_box,
    offsets,
    output_extents,
    place_of,
    query_offsets,
    query_tile,
    rows_inside,
    store_rows,
)

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def delta_of(
    out, grad_out, grad_lse, table, delta,
    rows, heads, T, H, W, gb, gt, gh, gw, gn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, M: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr,
    WIDE: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """`delta` of `M` of all `rows` of contiguous `out`, or of a tile of queries in a `table`.

    `T`, `H`, `W` are extents of outputs; with a `table`, those of entries of tokens.
    """
    if table is None:
        row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
        inside = row < rows
        row = tl.minimum(row, rows - 1)
        head, token = row % heads, row // heads
        w, h, t, batch = token % W, token // W % H, token // W // H % T, token // W // H // T
        from_grad = batch * gb + t * gt + h * gh + w * gw + head * gn
    else:
        tile = query_tile(
            tl.program_id(0), heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, True, table, LAYOUT
        )
        if is_empty(tile):
            return
        head, place, inside = tile.head.to(tl.int64), tile.place, rows_inside(tile)
        at = Point(tile.t.index, tile.h.index, tile.w.index)
        row = place.first_row * heads + head + offsets(at, place.outs, 0, 0, heads, WIDE, True)
        grad_out += place.rows * gb + head * gn
        from_grad = offsets(at, place.outs, gt, gh, gw, WIDE, False)
    o = load_rows(out, row * VALUE_DIM, VALUE_DIM, VALUE_PAD).to(tl.float32)
    g = load_rows(grad_out, from_grad, VALUE_DIM, VALUE_PAD)
    found = tl.sum(o * g.to(tl.float32), 1)
    if grad_lse is not None:
        found -= tl.load(grad_lse + row)
    tl.store(delta + row, found, mask=inside)


@triton.jit
def _slope(scores, scale, lse, delta, products):
    """Weights and the gradient of the scores; `lse`, `delta` are broadcast along keys."""
    weights = tl.exp2(scores * scale - lse)
    return weights, weights * (products - delta)


@triton.jit
def query_gradient(
    query, key, value, bias, extra_key, extra_value, grad_out, lse, delta, table, grad_query,
    scale, heads, group, T, H, W, extras,
    qb, qt, qh, qw, qn, kb, kt, kh, kw, kn, vb, vt, vh, vw, vn, ekb, eks, ekn, evb, evs, evn,
    gb, gt, gh, gw, gn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr,
    HEADS_FIRST: tl.constexpr, SCALED: tl.constexpr, WIDE: tl.constexpr, DENSE: tl.constexpr,
    PRECISION: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """One tile of `M` queries of one head against boxes of `N` keys; `grad_query` is contiguous."""
    tile = query_tile(
        tl.program_id(0), heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, HEADS_FIRST, table, LAYOUT
    )
    if is_empty(tile):
        if LAYOUT[2]:
            fill(table, heads, grad_query, None, None, DIM, 0)
        return
    head, kv_head = tile.head.to(tl.int64), (tile.head // group).to(tl.int64)
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    place = tile.place
    frame, outs = place.frame, place.outs
    base = place.first_row * heads + head
    flat = offsets(row, outs, 0, 0, heads, WIDE, True)
    q = load_rows(
        query + place.tokens * qb + head * qn,
        query_offsets(row, place, table, qt, qh, qw, T_RULE, H_RULE, W_RULE, WIDE, DENSE),
        DIM,
        PAD,
    )
    g = load_rows(
        grad_out + place.rows * gb + head * gn,
        offsets(row, outs, gt, gh, gw, WIDE, DENSE),
        VALUE_DIM,
        VALUE_PAD,
    )
    level = (tl.load(lse + base + flat) * LOG2_E)[:, None]
    mean = tl.load(delta + base + flat)[:, None]
    keys = key + place.tokens * kb + kv_head * kn
    values = value + place.tokens * vb + kv_head * vn
    if bias is not None:
        bias += tile.head * (2 * T_RULE.size - 1) * (2 * H_RULE.size - 1) * (2 * W_RULE.size - 1)
    rest = scale
    if SCALED:
        rest = 1.0
    acc = tl.zeros([M, PAD], tl.float32)
    count = boxes(tile, COLUMNS)
    first = first_box(tile)
    for _ in range(0, count):
        at = columns_at(first, lane, tile, T_RULE.dilation, H_RULE.dilation, W_RULE.dilation)
        k = load_rows(keys, offsets(at, frame, kt, kh, kw, WIDE, DENSE), DIM, PAD)
        v = load_rows(values, offsets(at, frame, vt, vh, vw, WIDE, DENSE), VALUE_DIM, VALUE_PAD)
        scores = box_scores(
            q, k, scale, first, lane, tile, bias, T_RULE, H_RULE, W_RULE, COLUMNS, N, SCALED, False, PRECISION
        )
        products = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        slope = _slope(scores, rest, level, mean, products)[1]
        acc = tl.dot(slope.to(k.dtype), k, acc, input_precision=PRECISION)
        first = next_box(first, tile, COLUMNS)
    if extra_key is not None:
        extra_keys = extra_key + tile.batch * ekb + kv_head * ekn
        extra_values = extra_value + tile.batch * evb + kv_head * evn
        for start in tl.range(0, extras, N, num_stages=1):
            token = start + tl.arange(0, N)
            at = tl.minimum(token, extras - 1).to(tl.int64)
            k = load_rows(extra_keys, at * eks, DIM, PAD)
            v = load_rows(extra_values, at * evs, VALUE_DIM, VALUE_PAD)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            products = tl.dot(g, tl.trans(v), input_precision=PRECISION)
            slope = _slope(scores, 1.0, level, mean, products)[1]
            slope = tl.where((token < extras)[None, :], slope, 0.0)
            acc = tl.dot(slope.to(k.dtype), k, acc, input_precision=PRECISION)
    inside = rows_inside(tile)
    begin = place.first_row
    if table is not None:
        begin = place.first_token
    grad_query += (begin * heads + head) * DIM
    flat = query_offsets(row, place, table, 0, 0, heads, T_RULE, H_RULE, W_RULE, WIDE, True)
    store_rows(grad_query, flat * DIM, acc * (scale * LN_2), inside, DIM, PAD)


@triton.jit
def key_gradient(
    query, key, value, bias, grad_out, lse, delta, table, grad_key, grad_value,
    scale, heads, group, T, H, W,
    qb, qt, qh, qw, qn, kb, kt, kh, kw, kn, vb, vt, vh, vw, vn, gb, gt, gh, gw, gn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr,
    HEADS_FIRST: tl.constexpr, SCALED: tl.constexpr, WIDE: tl.constexpr, DENSE: tl.constexpr,
    PRECISION: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """One tile of `M` keys of one key head against boxes of `N` queries, for each query head that shares it.

    `grad_key` and `grad_value` are contiguous.
    """
    kv_heads = heads // group
    tile = key_tile(kv_heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, HEADS_FIRST, table, LAYOUT)
    if is_empty(tile):
        if LAYOUT[2]:
            fill(table, kv_heads, grad_key, grad_value, None, DIM, VALUE_DIM)
        return
    kv_head = tile.head.to(tl.int64)
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    place = tile.place
    frame, outs = place.frame, place.outs
    k = load_rows(
        key + place.tokens * kb + kv_head * kn, offsets(row, frame, kt, kh, kw, WIDE, DENSE), DIM, PAD
    )
    v = load_rows(
        value + place.tokens * vb + kv_head * vn,
        offsets(row, frame, vt, vh, vw, WIDE, DENSE),
        VALUE_DIM,
        VALUE_PAD,
    )
    rest = scale
    if SCALED:
        rest = 1.0
    acc_key = tl.zeros([M, PAD], tl.float32)
    acc_value = tl.zeros([M, VALUE_PAD], tl.float32)
    count = boxes(tile, COLUMNS)
    first = first_box(tile)
    head = kv_head * group
    for _ in range(0, group * count):
        at = columns_at(first, lane, tile, T_RULE.period, H_RULE.period, W_RULE.period)
        q = load_rows(
            query + place.tokens * qb + head * qn,
            query_offsets(at, place, table, qt, qh, qw, T_RULE, H_RULE, W_RULE, WIDE, DENSE),
            DIM,
            PAD,
        )
        g = load_rows(
            grad_out + place.rows * gb + head * gn,
            offsets(at, outs, gt, gh, gw, WIDE, DENSE),
            VALUE_DIM,
            VALUE_PAD,
        )
        base = place.first_row * heads + head
        flat = offsets(at, outs, 0, 0, heads, WIDE, True)
        level = (tl.load(lse + base + flat) * LOG2_E)[None, :]
        mean = tl.load(delta + base + flat)[None, :]
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        if SCALED:
            scores = scores * scale
        if bias is not None:
            seer = Point(
                (tile.t.base + (first.t + lane.t) * T_RULE.step)[None, :],
                (tile.h.base + (first.h + lane.h) * H_RULE.step)[None, :],
                (tile.w.base + (first.w + lane.w) * W_RULE.step)[None, :],
            )
            here = Point(tile.t.place[:, None], tile.h.place[:, None], tile.w.place[:, None])
            mine = bias + head * (2 * T_RULE.size - 1) * (2 * H_RULE.size - 1) * (2 * W_RULE.size - 1)
            scores += tl.load(mine + bias_places(seer, here, T_RULE, H_RULE, W_RULE)).to(tl.float32) * LOG2_E
        scores = hide_box(scores, first, lane, tile, COLUMNS, N, False)
        products = tl.dot(v, tl.trans(g), input_precision=PRECISION)
        weights, slope = _slope(scores, rest, level, mean, products)
        acc_value = tl.dot(weights.to(g.dtype), g, acc_value, input_precision=PRECISION)
        acc_key = tl.dot(slope.to(q.dtype), q, acc_key, input_precision=PRECISION)
        first = next_box(first, tile, COLUMNS)
        head += is_first(first, tile).to(tl.int64)
    inside = rows_inside(tile)
    base = place.first_token * kv_heads + kv_head
    flat = offsets(row, frame, 0, 0, kv_heads, WIDE, True)
    store_rows(grad_key + base * DIM, flat * DIM, acc_key * (scale * LN_2), inside, DIM, PAD)
    store_rows(grad_value + base * VALUE_DIM, flat * VALUE_DIM, acc_value, inside, VALUE_DIM, VALUE_PAD)


@triton.jit
def extra_gradient(
    query, extra_key, extra_value, grad_out, lse, delta, table, grad_key, grad_value,
    scale, heads, group, T, H, W, extras, part, parts,
    qb, qt, qh, qw, qn, ekb, eks, ekn, evb, evs, evn, gb, gt, gh, gw, gn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DIM: tl.constexpr, PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr, WIDE: tl.constexpr, DENSE: tl.constexpr,
    PRECISION: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """`M` additional tokens of one key head against `part` of all rows of the query heads that share it.

    `grad_key` and `grad_value` are contiguous float32 `[parts, batch, extras, kv_heads, dim]`. A `table` has
    one row a document.
    """
    kv_heads = heads // group
    tiles = tl.cdiv(extras, M)
    program = tl.program_id(0)
    kv_head = (program % kv_heads).to(tl.int64)
    token = program // kv_heads % tiles * M + tl.arange(0, M)
    slab = program // kv_heads // tiles
    place = place_of(table, slab // parts, T, H, W, T_RULE, H_RULE, W_RULE, LAYOUT)
    batch, slab = place.entry, slab % parts
    outs = place.outs
    mine = output_extents(place.lengths.t, place.lengths.h, place.lengths.w, T_RULE, H_RULE, W_RULE)
    tokens = mine.t * mine.h * mine.w
    rows = group * tokens
    at = tl.minimum(token, extras - 1).to(tl.int64)
    k = load_rows(extra_key + batch * ekb + kv_head * ekn, at * eks, DIM, PAD)
    v = load_rows(extra_value + batch * evb + kv_head * evn, at * evs, VALUE_DIM, VALUE_PAD)
    acc_key = tl.zeros([M, PAD], tl.float32)
    acc_value = tl.zeros([M, VALUE_PAD], tl.float32)
    for start in range(slab * part, tl.minimum(slab * part + part, rows), N):
        column = start + tl.arange(0, N)
        inside = column < rows
        column = tl.minimum(column, rows - 1)
        head, output = kv_head * group + column // tokens, column % tokens
        row = Point(output // mine.w // mine.h, output // mine.w % mine.h, output % mine.w)
        from_query = query_offsets(row, place, table, qt, qh, qw, T_RULE, H_RULE, W_RULE, WIDE, DENSE)
        from_grad = offsets(row, outs, gt, gh, gw, WIDE, DENSE)
        q = load_rows(query + place.tokens * qb, from_query + head * qn, DIM, PAD)
        g = load_rows(grad_out + place.rows * gb, from_grad + head * gn, VALUE_DIM, VALUE_PAD)
        flat = (place.first_row + offsets(row, outs, 0, 0, 1, WIDE, True)) * heads + head
        level = (tl.load(lse + flat) * LOG2_E)[None, :]
        mean = tl.load(delta + flat)[None, :]
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        scores = tl.where(inside[None, :], scores, -1.0e30)
        products = tl.dot(v, tl.trans(g), input_precision=PRECISION)
        weights, slope = _slope(scores, 1.0, level, mean, products)
        acc_value = tl.dot(weights.to(g.dtype), g, acc_value, input_precision=PRECISION)
        acc_key = tl.dot(slope.to(q.dtype), q, acc_key, input_precision=PRECISION)
    batches = tl.num_programs(0) // (kv_heads * tiles * parts)
    base = (slab * batches + batch) * extras * kv_heads + kv_head
    store_rows(grad_key + base * DIM, at * kv_heads * DIM, acc_key * (scale * LN_2), token < extras, DIM, PAD)
    store_rows(
        grad_value + base * VALUE_DIM,
        at * kv_heads * VALUE_DIM,
        acc_value,
        token < extras,
        VALUE_DIM,
        VALUE_PAD,
    )
