"""Attention with small windows, forward: one box of keys holds all that a tile sees."""

# pyright: reportAttributeAccessIssue=false
import triton
import triton.language as tl

from .forward import box_scores
from .tile import (
    Point,
    columns_at,
    first_box,
    is_empty,
    lanes,
    load_rows,
    offsets,
    output_extents,
    query_tile,
    rows_inside,
    store_rows,
)


@triton.jit
def attend(
    query, key, value, bias, out, lse,
    scale, heads, group, T, H, W,
    qb, qt, qh, qw, qn, kb, kt, kh, kw, kn, vb, vt, vh, vw, vn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr,
    HEADS: tl.constexpr, STAGES: tl.constexpr, SCALED: tl.constexpr, WIDE: tl.constexpr, DENSE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of `M` queries against `N` keys, for `HEADS` heads in turn: only their addresses differ.

    `scale` holds log2(e). Strides are those of batch, three axes and heads (`n`). `out` and `lse` are
    contiguous.
    """
    number = tl.program_id(0)
    tile = query_tile(number, heads // HEADS, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, True)
    if is_empty(tile):
        return
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    lengths, outs = Point(T, H, W), output_extents(T, H, W, T_RULE, H_RULE, W_RULE)
    first = first_box(tile)
    at = columns_at(first, lane, tile, T_RULE.dilation, H_RULE.dilation, W_RULE.dilation)
    rows = offsets(row, outs, qt, qh, qw, WIDE, DENSE)
    keys = offsets(at, lengths, kt, kh, kw, WIDE, DENSE)
    values = offsets(at, lengths, vt, vh, vw, WIDE, DENSE)
    flat = offsets(row, outs, 0, 0, heads, WIDE, True)
    inside = rows_inside(tile)
    for turn in tl.range(0, HEADS, num_stages=STAGES):
        head = (tile.head * HEADS + turn).to(tl.int64)
        kv_head = head // group
        q = load_rows(query + tile.batch * qb + head * qn, rows, DIM, PAD)
        k = load_rows(key + tile.batch * kb + kv_head * kn, keys, DIM, PAD)
        v = load_rows(value + tile.batch * vb + kv_head * vn, values, VALUE_DIM, VALUE_PAD)
        table = bias
        if bias is not None:
            table += head * (2 * T_RULE.size - 1) * (2 * H_RULE.size - 1) * (2 * W_RULE.size - 1)
        scores = box_scores(
            q, k, scale, first, lane, tile, table, T_RULE, H_RULE, W_RULE, COLUMNS, N, SCALED, True, PRECISION
        )
        rest = scale
        if SCALED:
            rest = 1.0
        top = tl.max(scores, 1) * rest
        weights = tl.exp2(scores * rest - top[:, None])
        total = tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION) / total[:, None]
        base = tile.batch * outs.t * outs.h * outs.w * heads + head
        tl.store(lse + base + flat, (top + tl.log2(total)) * 0.6931471805599453, mask=inside)
        store_rows(out + base * VALUE_DIM, flat * VALUE_DIM, acc, inside, VALUE_DIM, VALUE_PAD)
