"""What the Hopper gradient kernels read per query: log-sum-exp in base 2, and delta = dO . O - dLSE."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens", "heads", "dim"])
def prepare(
    out,
    grad_out,
    lse,
    grad_lse,
    statistics,
    plane: tl.int64,
    tokens,
    heads,
    dim,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_GRAD_OUT: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
):
    """`[2, batch * heads, tokens]` from `[batch, tokens, heads, dim]` and `[batch, tokens, heads]`.

    All are contiguous, so that a program reads one stretch of memory; the transposed writes are few.
    """
    rows = tokens * heads
    blocks = tl.cdiv(rows, ROWS)
    batch = (tl.program_id(0) // blocks).to(tl.int64) * rows
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    delta = tl.zeros([ROWS], tl.float32)
    if HAS_GRAD_OUT:
        column = tl.arange(0, WIDTH)
        at = (batch + row)[:, None] * dim + column[None, :]
        mask = inside[:, None] & (column < dim)[None, :]
        left = tl.load(out + at, mask=mask, other=0.0).to(tl.float32)
        right = tl.load(grad_out + at, mask=mask, other=0.0).to(tl.float32)
        delta = tl.sum(left * right, 1)
    if HAS_GRAD_LSE:
        delta -= tl.load(grad_lse + batch + row, mask=inside, other=0.0)
    lse2 = tl.load(lse + batch + row, mask=inside, other=0.0) * 1.4426950408889634
    entry = batch + row % heads * tokens + row // heads
    tl.store(statistics + entry, lse2, mask=inside)
    tl.store(statistics + plane + entry, delta, mask=inside)
