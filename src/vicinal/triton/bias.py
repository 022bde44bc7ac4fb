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
    place_of,
    query_offsets,
    query_tile,
    rows_inside,
    slots,
)
from .window import window


@triton.jit
def score_gradient(
    query, key, value, bias, grad_out, lse, delta, table, grad_scores,
    scale, heads, group, T, H, W, batches, part, first_head, some_heads,
    qb, qt, qh, qw, qn, kb, kt, kh, kw, kn, vb, vt, vh, vw, vn, gb, gt, gh, gw, gn,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr,
    WIDE: tl.constexpr, DENSE: tl.constexpr, PRECISION: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """`grad_scores` `[parts, some_heads, *outputs, slots]`, each part summed over `part` batch entries.

    The heads are `some_heads` from `first_head` on. Slots that hold no key stay unwritten. With a `table`,
    every document is a part, of its own extents where documents are packed.
    """
    tile = query_tile(
        tl.program_id(0), some_heads, T, H, W, ROWS, M, T_RULE, H_RULE, W_RULE, True, table, LAYOUT
    )
    if is_empty(tile):
        return
    head = (first_head + tile.head).to(tl.int64)
    kv_head = head // group
    row = Point(tile.t.index, tile.h.index, tile.w.index)
    lane = lanes(N, COLUMNS)
    place = tile.place
    frame, outs = place.frame, place.outs
    rows = outs.t.to(tl.int64) * outs.h * outs.w
    flat = offsets(row, outs, 0, 0, 1, WIDE, True)
    bias += head * (2 * T_RULE.size - 1) * (2 * H_RULE.size - 1) * (2 * W_RULE.size - 1)
    some = tl.minimum(part, batches - place.entry * part)
    SLOTS: tl.constexpr = T_RULE.size * H_RULE.size * W_RULE.size
    found = grad_scores + (place.first_row * some_heads + tile.head * rows + flat)[:, None] * SLOTS
    count = boxes(tile, COLUMNS)
    first = first_box(tile)
    for _ in range(0, count):
        at = columns_at(first, lane, tile, T_RULE.dilation, H_RULE.dilation, W_RULE.dilation)
        acc = tl.zeros([M, N], tl.float32)
        for step in range(0, some):
            tokens = place.tokens * part + step
            q = load_rows(
                query + tokens * qb + head * qn,
                query_offsets(row, place, table, qt, qh, qw, T_RULE, H_RULE, W_RULE, WIDE, DENSE),
                DIM,
                PAD,
            )
            g = load_rows(
                grad_out + (place.rows * part + step) * gb + head * gn,
                offsets(row, outs, gt, gh, gw, WIDE, DENSE),
                VALUE_DIM,
                VALUE_PAD,
            )
            k = load_rows(
                key + tokens * kb + kv_head * kn, offsets(at, frame, kt, kh, kw, WIDE, DENSE), DIM, PAD
            )
            v = load_rows(
                value + tokens * vb + kv_head * vn,
                offsets(at, frame, vt, vh, vw, WIDE, DENSE),
                VALUE_DIM,
                VALUE_PAD,
            )
            at_row = (place.first_row * part + step * rows + flat) * heads + head
            level = tl.load(lse + at_row) * 1.4426950408889634
            mean = tl.load(delta + at_row)
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
    grad_scores, table, grad_bias,
    T, H, W, documents, parts, first_head, some_heads,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr, BLOCK: tl.constexpr,
    LAYOUT: tl.constexpr,
):  # fmt: skip
    """One entry of `grad_bias` `[heads, *(2 * size - 1)]`: the sum of all slots it was added to.

    A `table` has one row for each of `documents`; without it there is one place, of all `parts`.
    """
    entries: tl.constexpr = (2 * T_RULE.size - 1) * (2 * H_RULE.size - 1) * (2 * W_RULE.size - 1)
    SLOTS: tl.constexpr = T_RULE.size * H_RULE.size * W_RULE.size
    entry = tl.program_id(0) % entries
    head = (tl.program_id(0) // entries).to(tl.int64)
    w_entry = entry % (2 * W_RULE.size - 1)
    h_entry = entry // (2 * W_RULE.size - 1) % (2 * H_RULE.size - 1)
    t_entry = entry // ((2 * W_RULE.size - 1) * (2 * H_RULE.size - 1))
    acc = tl.zeros([BLOCK], tl.float32)
    for document in range(0, documents):
        place = place_of(table, document, T, H, W, T_RULE, H_RULE, W_RULE, LAYOUT)
        mine = output_extents(place.lengths.t, place.lengths.h, place.lengths.w, T_RULE, H_RULE, W_RULE)
        outs = place.outs
        rows = outs.t.to(tl.int64) * outs.h * outs.w
        base = grad_scores + (place.first_row * some_heads + head * rows) * SLOTS
        tokens = mine.t * mine.h * mine.w
        for start in range(0, tokens, BLOCK):
            flat = start + tl.arange(0, BLOCK)
            row = Point(flat // mine.w // mine.h, flat // mine.w % mine.h, flat % mine.w)
            w_slot, w_seen = _axis_slot(row.w, w_entry, place.lengths.w, W_RULE)
            h_slot, h_seen = _axis_slot(row.h, h_entry, place.lengths.h, H_RULE)
            t_slot, t_seen = _axis_slot(row.t, t_entry, place.lengths.t, T_RULE)
            slot = (t_slot * H_RULE.size + h_slot) * W_RULE.size + w_slot
            mask = (flat < tokens) & w_seen & h_seen & t_seen
            found = base + offsets(row, outs, 0, 0, 1, True, True) * SLOTS + slot
            for part in range(0, parts):
                acc += tl.load(found + part * some_heads * rows * SLOTS, mask=mask, other=0.0)
    tl.store(grad_bias + (first_head + head) * entries + entry, tl.sum(acc, 0))
