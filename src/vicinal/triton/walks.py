"""The walks that the split operations are made of, over weights `[batch, *outputs, heads, slots]`.

Weights are contiguous. A slot that holds no key is never read, and `dot` leaves it as it was.
"""

# pyright: reportAttributeAccessIssue=false
import triton
import triton.language as tl

from .tile import (
    Point,
    bias_places,
    box_start,
    boxes,
    columns_at,
    is_empty,
    key_tile,
    lanes,
    load_rows,
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
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`weights[i, s] = scale * x[i] . y[key s of i]`, plus the bias."""
    tile = query_tile(heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, HEADS_FIRST)
    if is_empty(tile):
        return
    head, kv_head = tile.head.to(tl.int64), (tile.head // group).to(tl.int64)
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    outs = output_extents(T, H, W, T_RULE, H_RULE, W_RULE)
    flat = offsets(row, outs.h * outs.w * heads, outs.w * heads, heads, WIDE)
    SLOTS: tl.constexpr = T_RULE.size * H_RULE.size * W_RULE.size
    weights += (tile.batch * outs.t * outs.h * outs.w * heads + head) * SLOTS
    left = load_rows(x + tile.batch * xb + head * xn, offsets(row, xt, xh, xw, WIDE), DIM, PAD)
    right = y + tile.batch * yb + kv_head * yn
    if bias is not None:
        bias += tile.head * (2 * T_RULE.size - 1) * (2 * H_RULE.size - 1) * (2 * W_RULE.size - 1)
    inside = rows_inside(tile)[:, None]
    count = boxes(tile, COLUMNS)
    for number in range(0, count.t * count.h * count.w):
        first = box_start(number, count, tile, COLUMNS)
        at = columns_at(first, lane, tile, T_RULE.dilation, H_RULE.dilation, W_RULE.dilation)
        columns = load_rows(right, offsets(at, yt, yh, yw, WIDE), DIM, PAD)
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


@triton.jit
def mix(
    weights, y, out,
    heads, group, T, H, W, yb, yt, yh, yw, yn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, HEADS_FIRST: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`out[i]`, the sum over `s` of `weights[i, s] * y[key s of i]`; `out` is contiguous."""
    tile = query_tile(heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, HEADS_FIRST)
    if is_empty(tile):
        return
    head, kv_head = tile.head.to(tl.int64), (tile.head // group).to(tl.int64)
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    outs = output_extents(T, H, W, T_RULE, H_RULE, W_RULE)
    flat = offsets(row, outs.h * outs.w * heads, outs.w * heads, heads, WIDE)
    base = tile.batch * outs.t * outs.h * outs.w * heads + head
    SLOTS: tl.constexpr = T_RULE.size * H_RULE.size * W_RULE.size
    weights += base * SLOTS
    values = y + tile.batch * yb + kv_head * yn
    acc = tl.zeros([M, PAD], tl.float32)
    count = boxes(tile, COLUMNS)
    for number in range(0, count.t * count.h * count.w):
        first = box_start(number, count, tile, COLUMNS)
        at = columns_at(first, lane, tile, T_RULE.dilation, H_RULE.dilation, W_RULE.dilation)
        columns = load_rows(values, offsets(at, yt, yh, yw, WIDE), DIM, PAD)
        slot = slots(first, lane, tile, T_RULE, H_RULE, W_RULE)
        some = tl.load(weights + flat[:, None] * SLOTS + slot.number, mask=slot.seen, other=0.0)
        acc = tl.dot(some.to(columns.dtype), columns, acc, input_precision=PRECISION)
    store_rows(out + base * DIM, flat * DIM, acc, rows_inside(tile), DIM, PAD)


@triton.jit
def mix_back(
    weights, x, out,
    heads, group, T, H, W, xb, xt, xh, xw, xn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, HEADS_FIRST: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`out[j]`, the sum over outputs `i` that see key `j` of `weights[i, s] * x[i]`; `out` is contiguous."""
    kv_heads = heads // group
    tile = key_tile(kv_heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, HEADS_FIRST)
    if is_empty(tile):
        return
    kv_head = tile.head.to(tl.int64)
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    outs = output_extents(T, H, W, T_RULE, H_RULE, W_RULE)
    SLOTS: tl.constexpr = T_RULE.size * H_RULE.size * W_RULE.size
    acc = tl.zeros([M, PAD], tl.float32)
    count = boxes(tile, COLUMNS)
    visits = count.t * count.h * count.w
    for number in range(0, group * visits):
        head = kv_head * group + number // visits
        first = box_start(number % visits, count, tile, COLUMNS)
        at = columns_at(first, lane, tile, T_RULE.period, H_RULE.period, W_RULE.period)
        columns = load_rows(x + tile.batch * xb + head * xn, offsets(at, xt, xh, xw, WIDE), DIM, PAD)
        slot = viewing_slots(first, lane, tile, T_RULE, H_RULE, W_RULE)
        flat = offsets(at, outs.h * outs.w * heads, outs.w * heads, heads, WIDE)
        found = weights + (tile.batch * outs.t * outs.h * outs.w * heads + head) * SLOTS
        some = tl.load(found + flat[None, :] * SLOTS + slot.number, mask=slot.seen, other=0.0)
        acc = tl.dot(some.to(columns.dtype), columns, acc, input_precision=PRECISION)
    base = tile.batch * T * H * W * kv_heads + kv_head
    flat = offsets(row, H * W * kv_heads, W * kv_heads, kv_heads, WIDE)
    store_rows(out + base * DIM, flat * DIM, acc, rows_inside(tile), DIM, PAD)
