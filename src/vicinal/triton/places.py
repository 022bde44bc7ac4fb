"""Where a program works: a batch entry, or a document whose numbers stand in a table, or padding of one."""

# pyright: reportAttributeAccessIssue=false
from typing import Any, NamedTuple

import triton
import triton.language as tl

# How documents lie: their axes, whether they are packed, and whether they are padded.
ENTRIES = tl.constexpr((3, False, False))


class Point(NamedTuple):
    """One number, or block of numbers, per axis."""

    t: Any
    h: Any
    w: Any


class Place(NamedTuple):
    """Where a batch entry or a document lies.

    Args:
        entry: its number.
        lengths: its extents.
        frame, outs: extents that lay out tensors over tokens, and those over outputs.
        tokens, rows: steps along the first axis of these tensors to its first token, and to its first output.
        first_token, first_row: tokens before it in a contiguous tensor, and outputs.
    """

    entry: Any
    lengths: Any
    frame: Any
    outs: Any
    tokens: Any
    rows: Any
    first_token: Any
    first_row: Any


class Row(NamedTuple):
    """A program's row of a table of documents, and its head."""

    number: Any
    head: Any


class Blank(NamedTuple):
    """A block of rows of a padded tensor: whether a program is there for it, its head, the rows' numbers, and
    which lie outside of the document."""

    here: Any
    head: Any
    row: Any
    outside: Any


@triton.jit
def output_extents(T, H, W, T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr):
    """Outputs per axis."""
    return Point(
        tl.cdiv(T, T_RULE.output_stride), tl.cdiv(H, H_RULE.output_stride), tl.cdiv(W, W_RULE.output_stride)
    )


@triton.jit
def place_of(
    table, number, T, H, W, T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    LAYOUT: tl.constexpr,
):  # fmt: skip
    """The place of batch entry `number`, or of the document in that row of a `table`.

    `T`, `H`, `W` are extents of the entries of a batch. A row is eight integers: the document, a tile of it,
    its extents, and the tokens and outputs before it where documents are packed.
    """
    frame = Point(T, H, W)
    if table is None:
        entry = tl.cast(number, tl.int64)
        lengths = frame
    else:
        table += tl.cast(number, tl.int64) * 8
        entry = tl.load(table).to(tl.int64)
        # Known numbers of missing axes save arithmetic.
        t = 1
        h = 1
        if LAYOUT[0] > 2:
            t = tl.load(table + 2)
        if LAYOUT[0] > 1:
            h = tl.load(table + 3)
        lengths = Point(t, h, tl.load(table + 4))
    if LAYOUT[1]:
        outs = output_extents(lengths.t, lengths.h, lengths.w, T_RULE, H_RULE, W_RULE)
        tokens, rows = tl.load(table + 5).to(tl.int64), tl.load(table + 6).to(tl.int64)
        return Place(entry, lengths, lengths, outs, tokens, rows, tokens, rows)
    else:
        outs = output_extents(T, H, W, T_RULE, H_RULE, W_RULE)
        first_token, first_row = entry * T * H * W, entry * outs.t * outs.h * outs.w
        return Place(entry, lengths, frame, outs, entry, entry, first_token, first_row)


@triton.jit
def table_row(number, heads, HEADS_FIRST: tl.constexpr):
    """Where a program stands: heads change fastest, or else rows."""
    row = number // heads
    head = number % heads
    if not HEADS_FIRST:
        rows = tl.num_programs(0) // heads
        row = number % rows
        head = number // rows
    return Row(row, head)


@triton.jit
def first_row_again(place, table, heads, HEADS_FIRST: tl.constexpr, LAYOUT: tl.constexpr):
    """`place.first_row`, read a second time: kept over a loop it takes registers, and with them programs."""
    if table is None:
        return place.first_row
    else:
        at = table_row(tl.program_id(0), heads, HEADS_FIRST)
        table += at.number.to(tl.int64) * 8
        if LAYOUT[1]:
            return tl.load(table + 6, volatile=True).to(tl.int64)
        else:
            outs = place.outs
            return tl.load(table, volatile=True).to(tl.int64) * outs.t * outs.h * outs.w


@triton.jit
def blank_of(
    table, heads, T, H, W, COUNT: tl.constexpr,
    T_STEP: tl.constexpr, H_STEP: tl.constexpr, W_STEP: tl.constexpr, HEADS_FIRST: tl.constexpr,
):  # fmt: skip
    """The padding that this program fills, in a tensor of every `STEP`th token, if it does no tile."""
    at = table_row(tl.program_id(0), heads, HEADS_FIRST)
    table += at.number.to(tl.int64) * 8
    document, tile = tl.load(table).to(tl.int64), tl.load(table + 1)
    t, h, w = tl.cdiv(T, T_STEP), tl.cdiv(H, H_STEP), tl.cdiv(W, W_STEP)
    row = (-1 - tile) * COUNT + tl.arange(0, COUNT)
    inside = row // w // h < tl.cdiv(tl.load(table + 2), T_STEP)
    inside = inside & (row // w % h < tl.cdiv(tl.load(table + 3), H_STEP))
    inside = inside & (row % w < tl.cdiv(tl.load(table + 4), W_STEP))
    return Blank(tile < 0, at.head, document * t * h * w + row, (row < t * h * w) & (inside == 0))
