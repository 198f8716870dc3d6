"""One byte through a MambaByte in Triton for CUDA, and the draw of the next one.

A byte reads every weight once and computes next to nothing with it, so what counts is that the weights stream
without a pause and that few kernels follow each other. With few rows a layer is four of them:

    matvec    residual stream + last layer's output, norm, in_proj
    conv      the window's shift, convolution, SiLU, and each block's part of x_proj
    scan      sum of the parts, dt_proj, softplus, recurrence, skip and gate
    matvec    out_proj

A program of `matvec` holds whole rows of the matrix, loaded before anything else, and walks the batch with
them. Norms are computed by every program again: that is a few kilobytes from cache, and one kernel less.
`conv` splits the sum of x_proj over blocks of channels, whose parts `scan` adds in a fixed order, as it needs
all of them and a sum within `conv` would need another kernel. With many rows, where tensor cores are better
at products, `norm` and torch.mm stand in for `matvec`, and torch.mm for x_proj.

Sums are fp32, states and windows are fp32 and overwritten. Nothing is added atomically: the same step gives
the same bits.
"""

# Parameters in capitals of several letters are compile-time constants, the only parameters with annotations,
# because Triton reads these.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from mambabyte.ops.selective_scan.triton_kernels import _softplus as softplus
from mambabyte.ops.selective_scan.triton_kernels import sigmoid

# Of the hash in `mambabyte.models.ngram_embedding`.
MULTIPLIER: Any = tl.constexpr(0x2545F4914F6CDD1D)


@triton.jit
def embed_kernel(
    symbols,  # (B, LONGEST) int64: the last bytes plus one, 0 where there are none; the newest at the end
    embedding,  # (V, d)
    tables,  # ((LONGEST - 1) buckets, width), or None
    projection,  # (d, (LONGEST - 1) width), or None
    out,  # (B, d)
    d_model, buckets, width,
    LONGEST: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    k, w = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    inside = k < d_model
    newest = symbols + b * LONGEST + LONGEST - 1
    symbol = tl.load(newest)
    byte = tl.maximum(symbol - 1, 0)  # no byte has been read only in a warm-up
    x = tl.load(embedding + byte * d_model + k, mask=inside, other=0).to(tl.float32)
    if tables is not None:
        hashed = symbol * MULTIPLIER
        for back in range(1, LONGEST):
            hashed = (hashed + tl.load(newest - back)) * MULTIPLIER
            bucket = (hashed >> 33) % buckets
            bucket = tl.where(bucket < 0, bucket + buckets, bucket)
            row = (bucket + (back - 1) * buckets) * width
            features = tl.load(tables + row + w, mask=w < width, other=0).to(tl.float32)
            place = k[:, None] * ((LONGEST - 1) * width) + (back - 1) * width + w[None, :]
            mask = inside[:, None] & (w < width)[None, :]
            x += tl.sum(tl.load(projection + place, mask=mask, other=0) * features[None, :], axis=1)
    tl.store(out + b * d_model + k, x, mask=inside)


@triton.jit
def _normalised(x, gain, shift, inside, columns, epsilon, RMS: tl.constexpr):
    """x (columns, and zeros after them) divided by its root mean square, or normalised about its mean."""
    if not RMS:
        x = tl.where(inside, x - tl.sum(x, axis=0) / columns, 0.0)
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / columns + epsilon) * gain + shift


@triton.jit
def norm_kernel(
    residual,  # (B, d) fp32: in, without the update; out, with it
    update,  # (B, d), or None
    gain, shift,  # (d); the shift may be None
    out,  # (B, d)
    columns, epsilon, RMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, BLOCK)
    inside, place = k < columns, tl.program_id(0).to(tl.int64) * columns + k
    x = tl.load(residual + place, mask=inside, other=0)
    if update is not None:
        x += tl.load(update + place, mask=inside, other=0).to(tl.float32)
        tl.store(residual + place, x, mask=inside)
    weight = tl.load(gain + k, mask=inside, other=0)
    bias = 0.0 if shift is None else tl.load(shift + k, mask=inside, other=0)
    x = _normalised(x, weight, bias, inside, columns, epsilon, RMS)
    tl.store(out + place, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def matvec_kernel(
    x,  # (B, columns) fp32
    update,  # (B, columns) fp32, to be added to x, or None
    summed,  # (B, columns) fp32, another tensor than x: x + update is written there; or None
    gain, shift,  # (columns): the norm before the product, if `gain` is not None; the shift may be None
    matrix,  # (rows, columns)
    out,  # (B, rows) fp32
    batch, rows, columns, epsilon, RMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = k < columns
    place = row.to(tl.int64)[:, None] * columns + k[None, :]
    tile = tl.load(matrix + place, mask=(row < rows)[:, None] & inside[None, :], other=0)
    if gain is not None:
        weight = tl.load(gain + k, mask=inside, other=0)
        bias = 0.0 if shift is None else tl.load(shift + k, mask=inside, other=0)
    for b in range(batch):
        values = tl.load(x + b * columns + k, mask=inside, other=0)
        if update is not None:
            values += tl.load(update + b * columns + k, mask=inside, other=0)
            if summed is not None and tl.program_id(0) == 0:
                tl.store(summed + b * columns + k, values, mask=inside)
        if gain is not None:
            values = _normalised(values, weight, bias, inside, columns, epsilon, RMS)
        tl.store(out + b * rows + row, tl.sum(tile.to(tl.float32) * values[None, :], axis=1), mask=row < rows)


@triton.jit
def conv_kernel(
    xz,  # (B, 2D): the convolution's input and the gate
    window,  # (B, W - 1, D) fp32, the last inputs, the oldest first: in, before this step; out, after it
    taps,  # (W, D)
    bias,  # (D)
    u,  # (B, D), the result
    matrix,  # x_proj (projected, D), or None
    parts,  # (B, blocks, projected) fp32: x_proj of a block's channels alone; None without the matrix
    batch, channels, projected,
    BEFORE: tl.constexpr, BEFORE_BLOCK: tl.constexpr, BATCH_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
    PROJECTED_BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    if matrix is not None:
        p = tl.arange(0, PROJECTED_BLOCK)
        place, mask = p[:, None] * channels + channel[None, :], (p < projected)[:, None] & inside[None, :]
        tile = tl.load(matrix + place, mask=mask, other=0)
    j = tl.arange(0, BEFORE_BLOCK)
    place, mask = j[:, None] * channels + channel[None, :], (j < BEFORE)[:, None] & inside[None, :]
    earlier_taps = tl.load(taps + place, mask=mask, other=0)
    tap = tl.load(taps + BEFORE * channels + channel, mask=inside, other=0)
    constant = tl.load(bias + channel, mask=inside, other=0)
    first = tl.program_id(1).to(tl.int64) * BATCH_BLOCK
    for b in range(first, tl.minimum(first + BATCH_BLOCK, batch)):
        now = tl.load(xz + b * 2 * channels + channel, mask=inside, other=0).to(tl.float32)
        start = window + b * BEFORE * channels
        before = tl.load(start + place, mask=mask, other=0)
        total = constant + tap * now + tl.sum(earlier_taps * before, axis=0)
        tl.debug_barrier()  # every thread has its part of the window
        tl.store(start - channels + place, before, mask=mask & (j > 0)[:, None])
        if BEFORE > 0:
            tl.store(start + (BEFORE - 1) * channels + channel, now, mask=inside)
        value = total * sigmoid(total)
        tl.store(u + b * channels + channel, value.to(u.dtype.element_ty), mask=inside)
        if matrix is not None:
            part = tl.sum(tile.to(tl.float32) * value[None, :], axis=1)
            row = parts + (b * tl.num_programs(0) + tl.program_id(0)) * projected
            tl.store(row + p, part, mask=p < projected)


@triton.jit
def _sum_of_parts(start, part, parts, place, mask, stride, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """The sum over the parts, (BLOCK), of what lies at `place` in each."""
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, parts, PARTS):
        rows = first + part
        values = tl.load(
            start + rows[:, None] * stride + place[None, :],
            mask=(rows < parts)[:, None] & mask[None, :], other=0,
        )  # fmt: skip
        total += tl.sum(values.to(tl.float32), axis=0)
    return total


@triton.jit
def scan_kernel(
    parts,  # (B, parts, R + 2N): the step size's projection, B and C, of which `count` parts are summed
    u,  # (B, D)
    xz,  # (B, 2D)
    state,  # (B, D, N) fp32: in, before this step; out, after it
    dt_proj,  # (D, R)
    dt_bias, skip,  # (D)
    rate,  # (D, N): A log2(e)
    y,  # (B, D)
    batch, count, channels, rank, states,
    BATCH_BLOCK: tl.constexpr, BLOCK: tl.constexpr, RANK: tl.constexpr, STATES: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    r, n, part = tl.arange(0, RANK), tl.arange(0, STATES), tl.arange(0, PARTS)
    inside = channel < channels
    r_mask, n_mask = r < rank, n < states
    weight_mask, state_mask = inside[:, None] & r_mask[None, :], inside[:, None] & n_mask[None, :]
    weight = tl.load(dt_proj + channel[:, None] * rank + r[None, :], mask=weight_mask, other=0)
    place = channel.to(tl.int64)[:, None] * states + n[None, :]
    rates = tl.load(rate + place, mask=state_mask, other=0)
    bias = tl.load(dt_bias + channel, mask=inside, other=0)
    D = tl.load(skip + channel, mask=inside, other=0)
    projected = rank + 2 * states
    first = tl.program_id(1).to(tl.int64) * BATCH_BLOCK
    last = tl.minimum(first + BATCH_BLOCK, batch)
    next_h = tl.load(state + first * channels * states + place, mask=state_mask, other=0)
    for b in range(first, last):
        # The states, which are most of what a large batch reads, are loaded one row ahead.
        h, h_place = next_h, state + b * channels * states + place
        next_h = tl.load(h_place + channels * states, mask=state_mask & (b + 1 < last), other=0)
        x = tl.load(u + b * channels + channel, mask=inside, other=0).to(tl.float32)
        z = tl.load(xz + (2 * b + 1) * channels + channel, mask=inside, other=0).to(tl.float32)
        start = parts + b * count * projected
        low = _sum_of_parts(start, part, count, r, r_mask, projected, PARTS, RANK)
        B = _sum_of_parts(start, part, count, rank + n, n_mask, projected, PARTS, STATES)
        C = _sum_of_parts(start, part, count, rank + states + n, n_mask, projected, PARTS, STATES)
        dt = softplus(tl.sum(weight * low[None, :], axis=1) + bias)
        h = tl.exp2(rates * dt[:, None]) * h + (dt * x)[:, None] * B[None, :]
        tl.store(h_place, h, mask=state_mask)
        out = (tl.sum(h * C[None, :], axis=1) + D * x) * z * sigmoid(z)
        tl.store(y + b * channels + channel, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def sample_kernel(
    logits,  # (B, SYMBOLS) fp32
    symbols,  # (B, LONGEST), as `embed_kernel` reads them: in, before the byte that is drawn; out, after it
    position,  # (B) int64, how many bytes were drawn; out, one more
    drawn,  # (capacity, B) int16: the byte is written to row position % capacity, or -1 if there is none
    temperature, top_p, top_k, seed,  # one number each: fp64, fp64, int64, int64
    capacity,
    LONGEST: tl.constexpr, SYMBOLS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Temperature, top-k, top-p and a draw, as `mambabyte.generation.Sampler` has them, in fp64; the noise is
    Philox's 32 bits (Salmon et al., Parallel random numbers: as easy as 1, 2, 3) of the seed, the position
    and the row, whatever the batch is."""
    b = tl.program_id(0)
    heat, i = tl.load(temperature), tl.arange(0, SYMBOLS)
    divisor = tl.where(heat == 0, 1.0, heat)
    row = logits + b * SYMBOLS
    raw = tl.load(row + i)
    highest = tl.max(raw, axis=0)
    broken = tl.sum((raw != raw).to(tl.int32), axis=0) > 0
    broken = broken | (tl.abs(highest) == float("inf"))
    top = highest.to(tl.float64)
    scaled = (raw.to(tl.float64) - top) / divisor
    mass = tl.exp(scaled)
    # How many bytes, and how much of the mass, come before each: likelier ones, and equal ones before it.
    rank, before = tl.zeros((SYMBOLS,), tl.int32), tl.zeros((SYMBOLS,), tl.float64)
    for first in range(0, SYMBOLS, CHUNK):
        j = first + tl.arange(0, CHUNK)
        other = (tl.load(row + j).to(tl.float64) - top) / divisor
        tie = (other[None, :] == scaled[:, None]) & (j[None, :] < i[:, None])
        earlier = (other[None, :] > scaled[:, None]) | tie
        rank += tl.sum(earlier.to(tl.int32), axis=1)
        before += tl.sum(tl.where(earlier, tl.exp(other)[None, :], 0.0), axis=1)
    likeliest = tl.sum(tl.where(rank == 0, i, 0), axis=0)
    kept = rank < tl.load(top_k)
    kept = kept & (before < tl.load(top_p) * tl.sum(tl.where(kept, mass, 0.0), axis=0))
    until = tl.cumsum(tl.where(kept, mass, 0.0), axis=0)
    now = tl.load(position + b)
    noise, _, _, _ = tl.philox(tl.load(seed), now.to(tl.uint32), (now >> 32).to(tl.uint32), b, 0)
    share = noise.to(tl.uint32, bitcast=True).to(tl.float64) * (1.0 / 4294967296.0)
    candidates = tl.where(kept & (until > share * tl.max(until, axis=0)), i, SYMBOLS)
    chosen = tl.min(candidates, axis=0)
    chosen = tl.where((heat == 0) | (chosen == SYMBOLS), likeliest, chosen)
    place = now % capacity * tl.num_programs(0) + b
    tl.store(drawn + place, tl.where(broken, -1, chosen).to(tl.int16))
    tl.store(position + b, now + 1)
    newest = symbols + b * LONGEST + LONGEST - 1
    for back in tl.static_range(LONGEST - 1):
        place = symbols + b * LONGEST + back
        tl.store(place, tl.load(place + 1))
    tl.store(newest, tl.where(broken, 0, chosen).to(tl.int64) + 1)
