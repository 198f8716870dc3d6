"""The selective scan in Triton for CUDA, forward and backward (arXiv 2312.00752, section 3.3.2).

Each program is one warp with channels on its lanes. It scans a stretch of time in chunks: u, delta, z and the
gradients of a chunk are (chunk, block) tiles with time in each lane's registers, so the recurrence is a chain
of fused multiply-adds without shuffles. A loop over the N states surrounds it; between chunks they are in a
(B, spans, N, D) buffer that stays in cache, and (B, L, D, N) is never written. This layout requires that the
compiler not know that pointers are aligned: otherwise it gives each lane eight channels and spreads time over
lanes.

Programs are spread over channels and batch. Where these are too few for the device, and always in backward,
they are also spread over spans of SPAN steps: each span is scanned from a zero state, `combine_kernel`
computes every span's true initial state, and each span is scanned again from it. Forward keeps the state at
the start of each span, (B, L / SPAN, N, D) fp32.

Backward takes groups of spans, from the last to the first, each as large as keeps the device busy: its
temporaries depend on the device, not on L. A walk through the spans of a group writes the state at the start
of each chunk, and adds up what a span's outputs give to the gradient of the state before it: the gradients of
its states times the decays since its start, which the walk has at hand. From that, `combine_kernel` computes
the gradient of the state after each span, and `backward_kernel` takes a span's chunks from the last to the
first.

The gradients of B and C are summed over the channels of a block in the kernel and over blocks afterwards.
There are no atomic additions, so results are the same from run to run on the same device.
"""

# The kernels' tensors are named as in `forward` and `backward`. Parameters in capitals of several letters are
# compile-time constants, the only parameters with annotations, because Triton reads these.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mambabyte.ops.triton.kernels import LOG2_E, jit, sigmoid, triton

if triton is not None:
    import triton.language as tl


def _jit(function: Callable[..., Any]) -> Any:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    known = {"B", "C", "padded", *function.__annotations__}
    unaligned = [name for name in names if name not in known]
    return jit(function, do_not_specialize_on_alignment=unaligned, do_not_specialize=["first_span"])


@_jit
def _softplus(x):
    """max(x, 0) + log1p(exp(-|x|)), with log1p(e) = 2 atanh(s) for s = e / (2 + e) <= 1/3: the hardware's
    logarithm is inaccurate near 1, where small step sizes fall."""
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    s = e / (2 + e)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return tl.maximum(x, 0) + 2 * s * series


@_jit
def _minus_zero():
    """The zero for which x + zero is x for every x, so a sum that picks a constant row of a tile compiles to
    nothing. Built from its bits, because Triton reads a literal -0.0 as 0.0."""
    return tl.full((1, 1), -(2**31), tl.int32).to(tl.float32, bitcast=True)


@_jit
def _scan_chunk(decay, update, state, rows, CHUNK: tl.constexpr):
    """The state after each step and its part from the one before, (CHUNK, BLOCK); the last state, (BLOCK)."""
    states, carried, zero = update, decay, _minus_zero()
    for i in tl.static_range(CHUNK):
        now = rows[:, None] == i
        left = tl.sum(tl.where(now, decay, zero), axis=0) * state
        state = left + tl.sum(tl.where(now, update, zero), axis=0)
        carried = tl.where(now, left[None, :], carried)
        states = tl.where(now, state[None, :], states)
    return states, carried, state


@_jit
def _reverse_scan_chunk(decay, update, adjoint, rows, CHUNK: tl.constexpr):
    """Gradient of the state after each step, (CHUNK, BLOCK), and of the state before the first, (BLOCK)."""
    gradient, zero = update, _minus_zero()
    for i in tl.static_range(CHUNK):
        now = rows[:, None] == CHUNK - 1 - i
        after = adjoint + tl.sum(tl.where(now, update, zero), axis=0)
        gradient = tl.where(now, after[None, :], gradient)
        adjoint = tl.sum(tl.where(now, decay, zero), axis=0) * after
    return gradient, adjoint


@_jit
def _reach_chunk(decay, update, reach, rows, CHUNK: tl.constexpr):
    """The sum (BLOCK) over a chunk's steps of `update`, each times `reach` and the decays up to that step."""
    total, zero = tl.zeros_like(reach), _minus_zero()
    for i in tl.static_range(CHUNK):
        now = rows[:, None] == i
        reach *= tl.sum(tl.where(now, decay, zero), axis=0)
        total += reach * tl.sum(tl.where(now, update, zero), axis=0)
    return total


@_jit
def _load_tile(tensor, batch_stride, time_stride, b, first, rows, channel, mask):
    """A (CHUNK, BLOCK) tile of a (B, L, D) tensor from step `first` on, in fp32, zero outside the mask."""
    start = tensor + b * batch_stride + first * time_stride
    return tl.load(start + rows[:, None] * time_stride + channel[None, :], mask=mask, other=0).to(tl.float32)


@_jit
def _store_tile(tensor, values, b, first, rows, channel, mask, length, channels):
    start = tensor + (b * length + first) * channels
    values = values.to(tensor.dtype.element_ty)
    tl.store(start + rows[:, None] * channels + channel[None, :], values, mask=mask)


@_jit
def _step_sizes(raw, mask, SOFTPLUS: tl.constexpr):
    """Step sizes from delta plus bias; zero outside the mask, where a step must not change the state."""
    return tl.where(mask, _softplus(raw) if SOFTPLUS else raw, 0.0)


@_jit
def _reset_exponents(document_start, b, first, rows, time_mask, length):
    """What to add to the decay's exponent, (CHUNK): -inf at a document's first step, else 0."""
    start = tl.load(document_start + b * length + first + rows, mask=time_mask, other=0)
    return tl.where(start != 0, float("-inf"), 0.0)


@_jit
def _decay(rate, steps):
    """The decay over steps of this sum, which is infinite if a document starts in them."""
    return tl.where(steps == float("inf"), 0.0, tl.exp2(rate * steps))


@_jit
def _load_for_state(n, A, B, C, carry, channel, channel_mask, channels, batch_row, padded, place):
    """What a scan needs for state n: its rates (BLOCK), B and C (CHUNK) and its value (BLOCK)."""
    row = (batch_row + n) * padded + place
    A_n = tl.load(A + n * channels + channel, mask=channel_mask, other=0)
    return A_n, tl.load(B + row), tl.load(C + row), tl.load(carry + n * channels, mask=channel_mask, other=0)


@_jit
def scan_kernel(
    u, delta, z, A, B, C, D, delta_bias, document_start,
    out,  # (B, L, D), or None to compute only states
    states,  # (B, chunks / KEEP_EVERY, N, D): the state before every KEEP_EVERY chunks, or None
    carry,  # (B, spans, N, D): in, the state before each span; out, after it
    span_steps,  # (B, spans, D): the sum of a span's step sizes, infinite if a document starts in it; or None
    grad_out,  # (B, L, D), for `adjoint`, or None
    adjoint,  # (B, spans, N, D), zero: gets the gradient of the state before a span from the span's outputs
    u_batch, u_time, delta_batch, delta_time, z_batch, z_time, grad_out_batch, grad_out_time,
    length, padded, channels, state_size, first_span, span_chunks, kept,
    SOFTPLUS: tl.constexpr, KEEP_EVERY: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, place = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    channel, rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    channel_mask = channel < channels
    bias = 0.0 if delta_bias is None else tl.load(delta_bias + channel, mask=channel_mask, other=0)[None, :]
    span_index = b * tl.num_programs(1) + place
    carry += span_index * state_size * channels + channel
    if adjoint is not None:
        adjoint += span_index * state_size * channels + channel
    total = tl.zeros((BLOCK,), tl.float32)
    first_chunk = (first_span + place) * span_chunks
    for chunk in range(first_chunk, tl.minimum(first_chunk + span_chunks, tl.cdiv(length, CHUNK))):
        first = chunk * CHUNK
        time_mask = rows < (length - first).to(tl.int32)
        mask = time_mask[:, None] & channel_mask[None, :]
        x = _load_tile(u, u_batch, u_time, b, first, rows, channel, mask)
        raw = _load_tile(delta, delta_batch, delta_time, b, first, rows, channel, mask) + bias
        steps = _step_sizes(raw, mask, SOFTPLUS)
        scaled = steps * x
        before = total
        total += tl.sum(steps, axis=0)
        if document_start is not None:
            reset = _reset_exponents(document_start, b, first, rows, time_mask, length)
            total -= tl.min(reset, axis=0)
        if adjoint is not None:
            grad_y = _load_tile(grad_out, grad_out_batch, grad_out_time, b, first, rows, channel, mask)
            if z is not None:
                gate = _load_tile(z, z_batch, z_time, b, first, rows, channel, mask)
                grad_y *= gate * sigmoid(gate)
        y = tl.zeros((CHUNK, BLOCK), tl.float32)
        times = first + rows
        row = b * state_size
        for n in range(state_size):
            A_n, b_n, c_n, state = _load_for_state(
                n, A, B, C, carry, channel, channel_mask, channels, row, padded, times
            )
            if KEEP_EVERY > 0 and chunk % KEEP_EVERY == 0:
                slot = (chunk - first_span * span_chunks) // KEEP_EVERY
                kept_state = states + ((b * kept + slot) * state_size + n) * channels
                tl.store(kept_state + channel, state, mask=channel_mask)
            rate = A_n * LOG2_E
            exponent = steps * rate[None, :]
            if document_start is not None:
                exponent += reset[:, None]
            decay = tl.exp2(exponent)
            update = scaled * b_n[:, None]
            in_chunk, _, state = _scan_chunk(decay, update, state, rows, CHUNK)
            tl.store(carry + n * channels, state, mask=channel_mask)
            if out is not None:
                y += in_chunk * c_n[:, None]
            if adjoint is not None:
                reach = _decay(rate, before)
                given = _reach_chunk(decay, grad_y * c_n[:, None], reach, rows, CHUNK)
                given += tl.load(adjoint + n * channels, mask=channel_mask, other=0)
                tl.store(adjoint + n * channels, given, mask=channel_mask)
        tl.debug_barrier()  # the next chunk reads what this one wrote to carry and adjoint
        if out is not None:
            if D is not None:
                y += tl.load(D + channel, mask=channel_mask, other=0)[None, :] * x
            if z is not None:
                gate = _load_tile(z, z_batch, z_time, b, first, rows, channel, mask)
                y *= gate * sigmoid(gate)
            _store_tile(out, y, b, first, rows, channel, mask, length, channels)
    if span_steps is not None:
        tl.store(span_steps + span_index * channels + channel, total, mask=channel_mask)


@_jit
def combine_kernel(
    carry,  # (B, spans, N, D): in, a span's final state from zero; out, its true initial state
    boundary,  # (B, N, D): in, the state before the first span; out, after the last
    span_steps, A, spans, channels, state_size, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel_mask = channel < channels
    rate = tl.load(A + n * channels + channel, mask=channel_mask, other=0) * LOG2_E
    state = tl.load(boundary + (b * state_size + n) * channels + channel, mask=channel_mask, other=0)
    for i in range(spans):
        span = b * spans + (spans - 1 - i if REVERSE else i)
        steps = tl.load(span_steps + span * channels + channel, mask=channel_mask, other=0)
        decay = _decay(rate, steps)
        place = carry + (span * state_size + n) * channels + channel
        added = tl.load(place, mask=channel_mask, other=0)
        tl.store(place, state, mask=channel_mask)
        state = decay * state + added
    tl.store(boundary + (b * state_size + n) * channels + channel, state, mask=channel_mask)


@_jit
def backward_kernel(
    u, delta, z, grad_out, A, B, C, D, delta_bias, document_start,
    states,  # (B, chunks, N, D): the state before each chunk of these spans
    carry,  # (B, spans, N, D): in, the gradient of the state after each span; out, of the state before it
    grad_u, grad_delta, grad_z,  # (B, L, D)
    grad_A,  # (B, spans, N, D): adds to it
    grad_B, grad_C,  # (B, blocks, N, steps of these spans)
    grad_D, grad_delta_bias,  # (B, all spans, D), or None
    u_batch, u_time, delta_batch, delta_time, z_batch, z_time, grad_out_batch, grad_out_time,
    length, padded, channels, state_size, first_span, span_chunks, all_spans,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, place, block = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(0)
    spans, span = tl.num_programs(1), first_span + place
    channel, rows = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    channel_mask = channel < channels
    bias = 0.0 if delta_bias is None else tl.load(delta_bias + channel, mask=channel_mask, other=0)[None, :]
    carry += (b * spans + place) * state_size * channels + channel
    grad_A += (b * spans + place) * state_size * channels + channel
    sum_D, sum_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    first_chunk, kept = first_span * span_chunks, spans * span_chunks
    last = tl.minimum((span + 1) * span_chunks, tl.cdiv(length, CHUNK)) - 1
    for back in range(last + 1 - span * span_chunks):
        chunk = last - back
        first = chunk * CHUNK
        time_mask = rows < (length - first).to(tl.int32)
        mask = time_mask[:, None] & channel_mask[None, :]
        raw = _load_tile(delta, delta_batch, delta_time, b, first, rows, channel, mask) + bias
        steps = _step_sizes(raw, mask, SOFTPLUS)
        grad_y = _load_tile(grad_out, grad_out_batch, grad_out_time, b, first, rows, channel, mask)
        if z is not None:
            gate = _load_tile(z, z_batch, z_time, b, first, rows, channel, mask)
            grad_y *= gate * sigmoid(gate)
        if document_start is not None:
            reset = _reset_exponents(document_start, b, first, rows, time_mask, length)
        scaled = steps * _load_tile(u, u_batch, u_time, b, first, rows, channel, mask)
        y = tl.zeros((CHUNK, BLOCK), tl.float32)
        grad_steps, grad_scaled = y, y
        for n in range(state_size):
            A_n = tl.load(A + n * channels + channel, mask=channel_mask, other=0)
            column = (b * state_size + n) * padded + first + rows
            c_n = tl.load(C + column)
            adjoint = tl.load(carry + n * channels, mask=channel_mask, other=0)
            exponent = steps * (A_n * LOG2_E)[None, :]
            if document_start is not None:
                exponent += reset[:, None]
            decay = tl.exp2(exponent)
            grad_state, adjoint = _reverse_scan_chunk(decay, grad_y * c_n[:, None], adjoint, rows, CHUNK)
            tl.store(carry + n * channels, adjoint, mask=channel_mask)
            b_n = tl.load(B + column)
            before = states + ((b * kept + chunk - first_chunk) * state_size + n) * channels + channel
            update = scaled * b_n[:, None]
            initial = tl.load(before, mask=channel_mask, other=0)
            state, carried, _ = _scan_chunk(decay, update, initial, rows, CHUNK)
            y += state * c_n[:, None]
            partial = ((b * tl.num_programs(0) + block) * state_size + n) * (kept * CHUNK)
            partial += (chunk - first_chunk) * CHUNK + rows
            tl.store(grad_C + partial, tl.sum(grad_y * state, axis=1), mask=time_mask)
            tl.store(grad_B + partial, tl.sum(grad_state * scaled, axis=1), mask=time_mask)
            grad_scaled += grad_state * b_n[:, None]
            grad_exponent = grad_state * carried
            grad_steps += grad_exponent * A_n[None, :]
            before_A = tl.load(grad_A + n * channels, mask=channel_mask, other=0)
            grad_rate = before_A + tl.sum(grad_exponent * steps, axis=0)
            tl.store(grad_A + n * channels, grad_rate, mask=channel_mask)
        tl.debug_barrier()  # the next chunk reads what this one wrote to carry and grad_A
        x = _load_tile(u, u_batch, u_time, b, first, rows, channel, mask)
        grad_x = grad_scaled * steps
        if D is not None:
            D_row = tl.load(D + channel, mask=channel_mask, other=0)[None, :]
            y += D_row * x
            grad_x += D_row * grad_y
            sum_D += tl.sum(grad_y * x, axis=0)
        _store_tile(grad_u, grad_x, b, first, rows, channel, mask, length, channels)
        grad_raw = grad_steps + grad_scaled * x
        if SOFTPLUS:
            raw = _load_tile(delta, delta_batch, delta_time, b, first, rows, channel, mask) + bias
            grad_raw *= sigmoid(raw)
        _store_tile(grad_delta, grad_raw, b, first, rows, channel, mask, length, channels)
        sum_bias += tl.sum(tl.where(mask, grad_raw, 0.0), axis=0)
        if z is not None:
            gate = _load_tile(z, z_batch, z_time, b, first, rows, channel, mask)
            grad = _load_tile(grad_out, grad_out_batch, grad_out_time, b, first, rows, channel, mask)
            opening = sigmoid(gate)
            grad *= y * opening * (1 + gate * (1 - opening))
            _store_tile(grad_z, grad, b, first, rows, channel, mask, length, channels)
    span_index = b * all_spans + span
    if grad_D is not None:
        tl.store(grad_D + span_index * channels + channel, sum_D, mask=channel_mask)
    if grad_delta_bias is not None:
        tl.store(grad_delta_bias + span_index * channels + channel, sum_bias, mask=channel_mask)
