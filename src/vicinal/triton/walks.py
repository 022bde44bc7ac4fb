"""The walks that the split operations are made of, over weights `[batch, *outputs, heads, slots]`.

Weights are contiguous. A slot that holds no key is never read, and `dot` leaves it as it was.
"""

# pyright: reportAttributeAccessIssue=false
import triton
import triton.language as tl

from .tile import (
    Point,
    bias_places,
    boxes,
    columns_at,
    first_box,
    is_empty,
    is_first,
    key_tile,
    lanes,
    load_rows,
    next_box,
    offsets,
    output_extents,
    query_tile,
    rows_inside,
    slots,
    store_rows,
    viewing_slots,
)


@triton.jit
def dot(
    x, y, bias, weights,
    scale, heads, group, T, H, W, xb, xt, xh, xw, xn, yb, yt, yh, yw, yn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, HEADS_FIRST: tl.constexpr,
    WIDE: tl.constexpr, DENSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`weights[i, s] = scale * x[i] . y[key s of i]`, plus the bias."""
    tile = query_tile(tl.program_id(0), heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, HEADS_FIRST)
    if is_empty(tile):
        return
    head, kv_head = tile.head.to(tl.int64), (tile.head // group).to(tl.int64)
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    lengths, outs = Point(T, H, W), output_extents(T, H, W, T_RULE, H_RULE, W_RULE)
    flat = offsets(row, outs, 0, 0, heads, WIDE, True)
    SLOTS: tl.constexpr = T_RULE.size * H_RULE.size * W_RULE.size
    weights += (tile.batch * outs.t * outs.h * outs.w * heads + head) * SLOTS
    left = load_rows(x + tile.batch * xb + head * xn, offsets(row, outs, xt, xh, xw, WIDE, DENSE), DIM, PAD)
    right = y + tile.batch * yb + kv_head * yn
    if bias is not None:
        bias += tile.head * (2 * T_RULE.size - 1) * (2 * H_RULE.size - 1) * (2 * W_RULE.size - 1)
    inside = rows_inside(tile)[:, None]
    count = boxes(tile, COLUMNS)
    first = first_box(tile)
    for _ in range(0, count):
        at = columns_at(first, lane, tile, T_RULE.dilation, H_RULE.dilation, W_RULE.dilation)
        columns = load_rows(right, offsets(at, lengths, yt, yh, yw, WIDE, DENSE), DIM, PAD)
        found = tl.dot(left, tl.trans(columns), input_precision=PRECISION) * scale
        if bias is not None:
            here = Point(tile.t.place[:, None], tile.h.place[:, None], tile.w.place[:, None])
            there = Point(
                (first.t + lane.t)[None, :], (first.h + lane.h)[None, :], (first.w + lane.w)[None, :]
            )
            found += tl.load(bias + bias_places(here, there, T_RULE, H_RULE, W_RULE)).to(tl.float32)
        slot = slots(first, lane, tile, T_RULE, H_RULE, W_RULE)
        where = weights + flat[:, None] * SLOTS + slot.number
        tl.store(where, found.to(weights.dtype.element_ty), mask=slot.seen & inside)
        first = next_box(first, tile, COLUMNS)


@triton.jit
def mix(
    weights, y, out,
    heads, group, T, H, W, yb, yt, yh, yw, yn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, HEADS_FIRST: tl.constexpr,
    WIDE: tl.constexpr, DENSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`out[i]`, the sum over `s` of `weights[i, s] * y[key s of i]`; `out` is contiguous."""
    tile = query_tile(tl.program_id(0), heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, HEADS_FIRST)
    if is_empty(tile):
        return
    head, kv_head = tile.head.to(tl.int64), (tile.head // group).to(tl.int64)
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    lengths, outs = Point(T, H, W), output_extents(T, H, W, T_RULE, H_RULE, W_RULE)
    flat = offsets(row, outs, 0, 0, heads, WIDE, True)
    base = tile.batch * outs.t * outs.h * outs.w * heads + head
    SLOTS: tl.constexpr = T_RULE.size * H_RULE.size * W_RULE.size
    weights += base * SLOTS
    values = y + tile.batch * yb + kv_head * yn
    acc = tl.zeros([M, PAD], tl.float32)
    count = boxes(tile, COLUMNS)
    first = first_box(tile)
    for _ in range(0, count):
        at = columns_at(first, lane, tile, T_RULE.dilation, H_RULE.dilation, W_RULE.dilation)
        columns = load_rows(values, offsets(at, lengths, yt, yh, yw, WIDE, DENSE), DIM, PAD)
        slot = slots(first, lane, tile, T_RULE, H_RULE, W_RULE)
        some = tl.load(weights + flat[:, None] * SLOTS + slot.number, mask=slot.seen, other=0.0)
        acc = tl.dot(some.to(columns.dtype), columns, acc, input_precision=PRECISION)
        first = next_box(first, tile, COLUMNS)
    store_rows(out + base * DIM, flat * DIM, acc, rows_inside(tile), DIM, PAD)


@triton.jit
def mix_back(
    weights, x, out,
    heads, group, T, H, W, xb, xt, xh, xw, xn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, HEADS_FIRST: tl.constexpr,
    WIDE: tl.constexpr, DENSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`out[j]`, the sum over outputs `i` that see key `j` of `weights[i, s] * x[i]`; `out` is contiguous."""
    kv_heads = heads // group
    tile = key_tile(kv_heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, HEADS_FIRST)
    if is_empty(tile):
        return
    kv_head = tile.head.to(tl.int64)
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    lengths, outs = Point(T, H, W), output_extents(T, H, W, T_RULE, H_RULE, W_RULE)
    SLOTS: tl.constexpr = T_RULE.size * H_RULE.size * W_RULE.size
    acc = tl.zeros([M, PAD], tl.float32)
    count = boxes(tile, COLUMNS)
    first = first_box(tile)
    head = kv_head * group
    for _ in range(0, group * count):
        at = columns_at(first, lane, tile, T_RULE.period, H_RULE.period, W_RULE.period)
        columns = load_rows(
            x + tile.batch * xb + head * xn, offsets(at, outs, xt, xh, xw, WIDE, DENSE), DIM, PAD
        )
        slot = viewing_slots(first, lane, tile, T_RULE, H_RULE, W_RULE)
        flat = offsets(at, outs, 0, 0, heads, WIDE, True)
        found = weights + (tile.batch * outs.t * outs.h * outs.w * heads + head) * SLOTS
        some = tl.load(found + flat[None, :] * SLOTS + slot.number, mask=slot.seen, other=0.0)
        acc = tl.dot(some.to(columns.dtype), columns, acc, input_precision=PRECISION)
        first = next_box(first, tile, COLUMNS)
        head += is_first(first, tile).to(tl.int64)
    base = tile.batch * T * H * W * kv_heads + kv_head
    flat = offsets(row, lengths, 0, 0, kv_heads, WIDE, True)
    store_rows(out + base * DIM, flat * DIM, acc, rows_inside(tile), DIM, PAD)
