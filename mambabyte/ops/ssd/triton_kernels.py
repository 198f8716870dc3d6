"""The state space dual form in Triton for CUDA, forward and backward (arXiv 2405.21060, section 6).

The output and three of the gradients are the same product, of other tensors, and two of them backwards in
time. With D[t, s] the decays after s up to t, for steps of one chunk, H the state before the chunk, dH the
gradient of the state after it, g the gradient of y, d[t] the decays up to t and e[s] those after s:

    y  = ((C B^T) * D) x    + d (C H^T)          dx = ((B C^T) * D^T) g + e (B dH^T)
    dC = ((g x^T) * D) B    + d (g H)            dB = ((x g^T) * D^T) C + e (x dH)

`product_kernel` computes all four: out = ((u v^T) * D) w + d (u state). Likewise `chunk_kernel` computes
what a chunk adds to the state after it, sum_s e[s] x[s] B[s]^T, and to the gradient of the state before it,
sum_t d[t] g[t] C[t]^T, and `combine_kernel` goes through the chunks in either direction.

The decay of a step is in D[t, s] for every s before it and t not before it. With

    q[t] = C[t] dC[t] and r[s] = B[s] dB[s], both without the terms of t = s,
    k = sum(dH * the state after the chunk)

the gradient of its logarithm is the sum of q[t] - r[t] over t from the step on, plus k. Pairs that are both
after it are in q and in r. So are those of t = s, which are left out of both, because they are the largest
where decays are strong, and their roundings would remain.

Precision: sums, decays and states are fp32. The products of fp32 tensors are tl.dot's "tf32x3", three
products on tensor cores, with errors near fp32's own (2^-21 of a term): "ieee" uses no tensor cores, and
"tf32" has 10 bits. If x, B and C are bf16, products of two of them are exact, and what is fp32 beside one of
them (states, or scores times decays) is split into two bf16 numbers, which keep 16 bits.

There are no atomic additions, so results are the same from run to run on the same device.
"""

# The kernels' tensors are contiguous where no strides are given. Parameters in capitals of several letters
# are compile-time constants, the only parameters with annotations, because Triton reads these.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from mambabyte.ops.triton.kernels import LOG2_E, jit, jit_for_any, triton

if triton is not None:
    import triton.language as tl


@jit
def _load(base, row, time_stride, steps, column, columns):
    """A tile of rows, steps from `base` on, and columns; zero outside of the tensor."""
    mask = (row < steps)[:, None] & (column < columns)[None, :]
    return tl.load(base + row[:, None] * time_stride + column[None, :], mask=mask, other=0)


@jit
def _dot(a, b, total):
    """total + a b, where one of them may be bf16 and the other fp32: see the top of this file."""
    if a.dtype == b.dtype:
        total = tl.dot(a, b, total, input_precision="tf32x3")
    elif b.dtype == tl.bfloat16:
        high = a.to(tl.bfloat16)
        low = (a - high.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(high, b, tl.dot(low, b, total))
    else:
        high = b.to(tl.bfloat16)
        low = (b - high.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(a, high, tl.dot(a, low, total))
    return total


@jit
def _reach(logs, documents, place, TO_END: tl.constexpr, CHUNK: tl.constexpr):
    """The decays from the chunk's beginning up to these steps, or TO_END: after them; 0 across a document's
    start."""
    exponent = tl.zeros(place.shape, tl.float32)
    if logs is not None:
        exponent = tl.load(logs + place)
        if TO_END:
            exponent = tl.load(logs + CHUNK - 1) - exponent
    if documents is not None:
        number = tl.load(documents + place)
        bound = 0
        if TO_END:
            bound = tl.load(documents + CHUNK - 1)
        exponent = tl.where(number == bound, exponent, float("-inf"))
    return tl.exp2(exponent * LOG2_E)


@jit
def _add_unless_restarted(total, restarted, more, more_restarted):
    return tl.where(more_restarted != 0, more, total + more), restarted | more_restarted


@jit_for_any("length", "chunks")
def cumulate_kernel(
    log_decay,  # (B, L, H)
    document_start,  # (B, L) bytes, or None
    logs,  # (B, chunks, H, CHUNK) fp32: their sums from the beginning of the chunk, or of a document in it
    log_batch, log_time, log_head, length, heads, chunks,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index, head = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    step, first = tl.arange(0, CHUNK), (index % chunks).to(tl.int64) * CHUNK
    b, there = (index // chunks).to(tl.int64), step < length - first
    base = log_decay + b * log_batch + first * log_time
    mask = there[:, None] & (head < heads)[None, :]
    values = tl.load(base + step[:, None] * log_time + head[None, :] * log_head, mask=mask, other=0)
    values = values.to(tl.float32)
    if document_start is None:
        sums = tl.cumsum(values, axis=0)
    else:
        start = tl.load(document_start + b * length + first + step, mask=there, other=0).to(tl.int32)
        starts = tl.broadcast_to(start[:, None], (CHUNK, BLOCK))
        sums, _ = tl.associative_scan((values, starts), 0, _add_unless_restarted)
    place = (index.to(tl.int64) * heads + head[None, :]) * CHUNK + step[:, None]
    tl.store(logs + place, sums, mask=(head < heads)[None, :])


@jit_for_any("length", "chunks")
def chunk_kernel(
    x, B,  # (B, L, H, P) and (B, L, G, N), or the gradient of y and C
    logs, documents,  # (B, chunks, H, CHUNK) and (B, chunks, CHUNK), or None
    states,  # (B, chunks + 1, H, P, N) fp32
    x_batch, x_time, x_head, B_batch, B_time, B_head,
    length, heads, share, channels, state_size, chunks,
    TO_END: tl.constexpr, OPERAND: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """What each chunk adds to the state after it, at its place there, or not TO_END: to the gradient of the
    state before it."""
    index, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    blocks = tl.cdiv(state_size, STATES)
    channel = tl.program_id(1) // blocks * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.program_id(1) % blocks * STATES + tl.arange(0, STATES)
    b, chunk = (index // chunks).to(tl.int64), (index % chunks).to(tl.int64)
    first = chunk * CHUNK
    steps = tl.minimum(length - first, CHUNK).to(tl.int32)
    x += b * x_batch + first * x_time + head * x_head
    B += b * B_batch + first * B_time + head // share * B_head
    if logs is not None:
        logs += (index.to(tl.int64) * heads + head) * CHUNK
    if documents is not None:
        documents += index.to(tl.int64) * CHUNK
    total = tl.zeros((CHANNELS, STATES), tl.float32)
    for start in range(0, steps, TILE):
        row = start + tl.arange(0, TILE)
        reach = _reach(logs, documents, row, TO_END, CHUNK)
        given = _load(x, row, x_time, steps, channel, channels).to(tl.float32) * reach[:, None]
        total = _dot(tl.trans(given), _load(B, row, B_time, steps, n, state_size).to(OPERAND), total)
    slot = b * (chunks + 1) + chunk
    if TO_END:
        slot += 1
    place = (slot * heads + head) * channels * state_size
    place += channel[:, None] * state_size + n[None, :]
    tl.store(states + place, total, mask=(channel < channels)[:, None] & (n < state_size)[None, :])


@jit_for_any("chunks")
def combine_kernel(
    states,  # (B, chunks + 1, H, P, N): what each chunk adds, and at one end what is there before
    logs, documents,
    kept,  # (B, chunks + 1, H, P, N): the states, to be multiplied with the gradients; or None
    products,  # (B, chunks, H, blocks): the sum of these products for the state after each chunk; or None
    heads, size, chunks,
    REVERSE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state after each chunk, or REVERSE: the gradient of the state before each chunk."""
    b, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    block, blocks = tl.program_id(1), tl.num_programs(1)
    element = block * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    first, stride = (b * (chunks + 1) * heads + head) * size + element, (b - b + heads) * size
    if REVERSE:
        state = tl.load(states + first + chunks * stride, mask=mask, other=0)
    else:
        state = tl.load(states + first, mask=mask, other=0)
    for i in range(chunks):
        chunk = i
        if REVERSE:
            chunk = chunks - 1 - i
        index = b * chunks + chunk
        if kept is not None:
            after = tl.load(kept + first + (chunk + 1) * stride, mask=mask, other=0)
            tl.store(products + (index * heads + head) * blocks + block, tl.sum(state * after))
        if logs is not None:
            state *= tl.exp2(tl.load(logs + (index * heads + head) * CHUNK + CHUNK - 1) * LOG2_E)
        if documents is not None:
            state = tl.where(tl.load(documents + index * CHUNK + CHUNK - 1) == 0, state, 0.0)
        place = states + first + chunk * stride
        if not REVERSE:
            place += stride
        state += tl.load(place, mask=mask, other=0)
        tl.store(place, state, mask=mask)


@jit_for_any("length", "chunks")
def product_kernel(
    u, v, w,  # (B, L, H or G, inner), the same, (B, L, H or G, outer): see the top of this file
    own,  # the tensor (B, L, G, outer) whose gradient `out` is a part of, for `sums`; or None
    states,  # (B, chunks + 1, H, inner, outer): the states, or if REVERSE their gradients
    logs, documents,
    out,  # (B, L, parts, outer): the sum over the heads of each part
    sums,  # (blocks, B, chunks, H, CHUNK): own times its gradient without the terms of one step; or None
    u_batch, u_time, u_head, v_batch, v_time, v_head, w_batch, w_time, w_head, own_batch, own_time, own_head,
    state_inner, state_outer,
    length, heads, inner_share, outer_share, inner, outer, chunks, splits, group_heads, part_heads,
    REVERSE: tl.constexpr, OPERAND: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    INNER: tl.constexpr, OUTER: tl.constexpr,
):  # fmt: skip
    """One program takes a tile of a chunk's steps and a block of `out`'s columns, for the heads of one part:
    each of the groups of `group_heads` heads is split into `splits` parts."""
    TILES: tl.constexpr = CHUNK // TILE
    parts = heads // group_heads * splits
    tile, part = tl.program_id(0) % TILES, tl.program_id(0) // TILES % parts
    index = (tl.program_id(0) // (TILES * parts)).to(tl.int64)
    b, chunk, first = index // chunks, index % chunks, index % chunks * CHUNK
    steps = tl.minimum(length - first, CHUNK).to(tl.int32)
    row = tile * TILE + tl.arange(0, TILE)
    block = tl.program_id(1)
    column = block * OUTER + tl.arange(0, OUTER)
    group = part // splits
    first_head = group * group_heads + part % splits * part_heads
    last_head = tl.minimum(first_head + part_heads, (group + 1) * group_heads)
    size = inner * outer
    u += b * u_batch + first * u_time
    v += b * v_batch + first * v_time
    w += b * w_batch + first * w_time
    slot, first_tile, last_tile = b * (chunks + 1) + chunk, 0, tile + 1
    if REVERSE:
        slot, first_tile, last_tile = slot + 1, tile, tl.cdiv(steps, TILE)
    if documents is not None:
        documents += index * CHUNK
    total = tl.zeros((TILE, OUTER), tl.float32)
    for head in range(first_head, last_head):
        narrow, wide = head // inner_share, head // outer_share
        state = states + (slot * heads + head) * size
        log = None if logs is None else logs + (index * heads + head) * CHUNK
        found = tl.zeros((TILE, OUTER), tl.float32)
        for start in range(0, inner, INNER):
            k = start + tl.arange(0, INNER)
            mask = (k < inner)[:, None] & (column < outer)[None, :]
            place = k[:, None] * state_inner + column[None, :] * state_outer
            left = _load(u + narrow * u_head, row, u_time, steps, k, inner).to(OPERAND)
            found = _dot(left, tl.load(state + place, mask=mask, other=0), found)
        found *= _reach(log, documents, row, REVERSE, CHUNK)[:, None]
        same_step = tl.zeros((TILE,), tl.float32)
        for other_tile in range(first_tile, last_tile):
            other = other_tile * TILE + tl.arange(0, TILE)
            scores = tl.zeros((TILE, TILE), tl.float32)
            for start in range(0, inner, INNER):
                k = start + tl.arange(0, INNER)
                left = _load(u + narrow * u_head, row, u_time, steps, k, inner).to(OPERAND)
                right = _load(v + narrow * v_head, other, v_time, steps, k, inner).to(OPERAND)
                scores = _dot(left, tl.trans(right), scores)
            later, earlier = row[:, None], other[None, :]
            if REVERSE:
                later, earlier = other[None, :], row[:, None]
            if sums is None:
                seen = later >= earlier
            else:
                seen = later > earlier
                same_step += tl.sum(tl.where(later == earlier, scores, 0.0), axis=1)
            if documents is not None:
                seen &= tl.load(documents + row)[:, None] == tl.load(documents + other)[None, :]
            if logs is not None:
                exponent = tl.load(log + row)[:, None] - tl.load(log + other)[None, :]
                if REVERSE:
                    exponent = -exponent
                scores *= tl.exp2(tl.where(seen, exponent * LOG2_E, 0.0))
            scores = tl.where(seen, scores, 0.0)
            values = _load(w + wide * w_head, other, w_time, steps, column, outer).to(OPERAND)
            found = _dot(scores, values, found)
        if sums is not None:
            base = own + b * own_batch + first * own_time + wide * own_head
            mine = _load(base, row, own_time, steps, column, outer).to(tl.float32)
            chunk_index = block * (tl.num_programs(0) // (TILES * parts)) + index
            place = (chunk_index * heads + head) * CHUNK + row
            tl.store(sums + place, tl.sum(found * mine, axis=1))
            values = _load(w + wide * w_head, row, w_time, steps, column, outer).to(tl.float32)
            found += same_step[:, None] * values
        total += found
    out += ((b * length + first) * parts + part) * outer
    mask = (row < steps)[:, None] & (column < outer)[None, :]
    place = row[:, None] * parts * outer + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@jit_for_any("length", "chunks")
def decay_kernel(
    later, earlier,  # (blocks, B, chunks, H, CHUNK): q and r of the top of this file, in parts
    products,  # (B, chunks, H): k
    document_start, documents,  # (B, L) and (B, chunks, CHUNK), or None
    grad_log_decay,  # (B, L, H)
    length, heads, chunks, blocks,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradient of the logarithms of the decays, summed within each document, and zero at its start."""
    head, index = tl.program_id(0) % heads, (tl.program_id(0) // heads).to(tl.int64)
    b, first, step = index // chunks, index % chunks * CHUNK, tl.arange(0, CHUNK)
    block_size = tl.num_programs(0).to(tl.int64) * CHUNK
    place = (index * heads + head) * CHUNK + step
    given = tl.zeros((CHUNK,), tl.float32)
    for block in range(blocks):
        given += tl.load(later + block * block_size + place) - tl.load(earlier + block * block_size + place)
    end = tl.load(products + index * heads + head)
    counted, reaches_end = step[None, :] >= step[:, None], step >= 0
    mask = step < length - first
    if documents is not None:
        number = tl.load(documents + index * CHUNK + step)
        counted &= number[None, :] == number[:, None]
        reaches_end = number == tl.load(documents + index * CHUNK + CHUNK - 1)
    gradient = tl.sum(tl.where(counted, given[None, :], 0.0), axis=1) + tl.where(reaches_end, end, 0.0)
    if documents is not None:
        start = tl.load(document_start + b * length + first + step, mask=mask, other=0)
        gradient = tl.where(start == 0, gradient, 0.0)
    place = grad_log_decay + ((b * length + first) + step) * heads + head
    tl.store(place, gradient.to(grad_log_decay.dtype.element_ty), mask=mask)
