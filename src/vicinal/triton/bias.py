"""Gradient of a relative position bias: score gradients summed over the batch, then over equal positions.

The first kernel recomputes the gradient of every score and owns it; the second gathers, so that no two
programs add to one number and the order of all sums is fixed.
"""

# pyright: reportAttributeAccessIssue=false
import triton
import triton.language as tl

from .forward import box_scores
from .tile import (
    Point,
    boxes,
    columns_at,
    first_box,
    is_empty,
    lanes,
    load_rows,
    next_box,
    offsets,
    output_extents,
    query_tile,
    rows_inside,
    slots,
)
from .window import window


@triton.jit
def score_gradient(
    query, key, value, bias, grad_out, lse, delta, grad_scores,
    scale, heads, group, T, H, W, batches, part, first_head, some_heads,
    qb, qt, qh, qw, qn, kb, kt, kh, kw, kn, vb, vt, vh, vw, vn, gb, gt, gh, gw, gn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr,
    WIDE: tl.constexpr, DENSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`grad_scores` `[parts, some_heads, *outputs, slots]`, each part summed over `part` batch entries.

    The heads are `some_heads` from `first_head` on. Slots that hold no key stay unwritten.
    """
    tile = query_tile(tl.program_id(0), some_heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, True)
    if is_empty(tile):
        return
    head = (first_head + tile.head).to(tl.int64)
    kv_head = head // group
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    lengths, outs = Point(T, H, W), output_extents(T, H, W, T_RULE, H_RULE, W_RULE)
    tokens = outs.t.to(tl.int64) * outs.h * outs.w
    flat = offsets(row, outs, 0, 0, 1, WIDE, True)
    bias += head * (2 * T_RULE.size - 1) * (2 * H_RULE.size - 1) * (2 * W_RULE.size - 1)
    stop = tl.minimum(tile.batch * part + part, batches)
    SLOTS: tl.constexpr = T_RULE.size * H_RULE.size * W_RULE.size
    found = grad_scores + ((tile.batch * some_heads + tile.head) * tokens + flat)[:, None] * SLOTS
    count = boxes(tile, COLUMNS)
    first = first_box(tile)
    for _ in range(0, count):
        at = columns_at(first, lane, tile, T_RULE.dilation, H_RULE.dilation, W_RULE.dilation)
        acc = tl.zeros([M, N], tl.float32)
        for batch in range(tile.batch * part, stop):
            q = load_rows(
                query + batch * qb + head * qn, offsets(row, outs, qt, qh, qw, WIDE, DENSE), DIM, PAD
            )
            g = load_rows(
                grad_out + batch * gb + head * gn,
                offsets(row, outs, gt, gh, gw, WIDE, DENSE),
                VALUE_DIM,
                VALUE_PAD,
            )
            k = load_rows(
                key + batch * kb + kv_head * kn, offsets(at, lengths, kt, kh, kw, WIDE, DENSE), DIM, PAD
            )
            v = load_rows(
                value + batch * vb + kv_head * vn,
                offsets(at, lengths, vt, vh, vw, WIDE, DENSE),
                VALUE_DIM,
                VALUE_PAD,
            )
            level = tl.load(lse + (batch * tokens + flat) * heads + head) * 1.4426950408889634
            mean = tl.load(delta + (batch * tokens + flat) * heads + head)
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
                True,
                False,
                PRECISION,
            )
            products = tl.dot(g, tl.trans(v), input_precision=PRECISION)
            acc += tl.exp2(scores - level[:, None]) * (products - mean[:, None])
        slot = slots(first, lane, tile, T_RULE, H_RULE, W_RULE)
        tl.store(found + slot.number, acc, mask=slot.seen & rows_inside(tile)[:, None])
        first = next_box(first, tile, COLUMNS)


@triton.jit
def _axis_slot(output, relative, length, RULE: tl.constexpr):
    """Slot of the key at a relative position, and whether the window of `output` holds it."""
    token = output * RULE.output_stride
    tokens = tl.cdiv(length - token % RULE.dilation, RULE.dilation)
    position = token // RULE.dilation
    seen = window(position, tokens, RULE)
    key = position + relative - (RULE.size - 1)
    return key - seen.start, (key >= seen.start) & (key < seen.stop)


@triton.jit
def tally(
    grad_scores, grad_bias,
    T, H, W, parts, first_head, some_heads,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One entry of `grad_bias` `[heads, *(2 * size - 1)]`: the sum of all slots it was added to."""
    entries: tl.constexpr = (2 * T_RULE.size - 1) * (2 * H_RULE.size - 1) * (2 * W_RULE.size - 1)
    SLOTS: tl.constexpr = T_RULE.size * H_RULE.size * W_RULE.size
    entry = tl.program_id(0) % entries
    head = (tl.program_id(0) // entries).to(tl.int64)
    w_entry = entry % (2 * W_RULE.size - 1)
    h_entry = entry // (2 * W_RULE.size - 1) % (2 * H_RULE.size - 1)
    t_entry = entry // ((2 * W_RULE.size - 1) * (2 * H_RULE.size - 1))
    outs = output_extents(T, H, W, T_RULE, H_RULE, W_RULE)
    tokens = outs.t * outs.h * outs.w
    acc = tl.zeros([BLOCK], tl.float32)
    for start in range(0, tokens, BLOCK):
        flat = start + tl.arange(0, BLOCK)
        w_slot, w_seen = _axis_slot(flat % outs.w, w_entry, W, W_RULE)
        h_slot, h_seen = _axis_slot(flat // outs.w % outs.h, h_entry, H, H_RULE)
        t_slot, t_seen = _axis_slot(flat // outs.w // outs.h, t_entry, T, T_RULE)
        slot = (t_slot * H_RULE.size + h_slot) * W_RULE.size + w_slot
        mask = (flat < tokens) & w_seen & h_seen & t_seen
        for part in range(0, parts):
            found = grad_scores + ((part * some_heads + head) * tokens + flat) * SLOTS + slot
            acc += tl.load(found, mask=mask, other=0.0)
    tl.store(grad_bias + (first_head + head) * entries + entry, tl.sum(acc, 0))
