"""The selective scan in Triton for CUDA, forward and backward (arXiv 2312.00752, section 3.3.2).

One warp per program, channels on its lanes. A program walks a stretch of time in chunks: u, delta, z and the
gradients of a chunk are (chunk, block) tiles with time in each lane's registers, so the recurrence is a chain
of fused multiply-adds without shuffles. The N states are a loop around it; between chunks they live in a
(B, spans, N, D) buffer that stays in cache, and (B, L, D, N) is never written. For tiles to be laid out so,
the compiler must not know that pointers are aligned: it would give a lane eight channels and spread time over
lanes.

Programs are spread over channels and batch and, where these are few and in all of backward, over spans of
SPAN steps too: a span is walked from zero, `join_kernel` joins the spans, and each is walked again from its
true state. Forward keeps the state at the start of each span, (B, L / SPAN, N, D) fp32; backward first walks
them again for the state at the start of each chunk, a temporary of 1 / BACKWARD_CHUNK of a (B, L, D, N) fp32
tensor.

The gradients of B and C are summed over the channels of a block in the kernel and over blocks afterwards:
(B, D / BACKWARD_BLOCK, N, L) fp32 each, together 2 / BACKWARD_BLOCK of a (B, L, D, N) fp32 tensor. Nothing is
added atomically, so results are the same from run to run.
"""

# A kernel's tensors have the letters of `forward` and `backward`. Capitals of several letters are constants
# of the compilation: the only parameters with annotations, as Triton reads them.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

LOG2_E: Any = None if triton is None else tl.constexpr(1.4426950408889634)


def _jit(function: Callable[..., Any]) -> Any:
    if triton is None:
        return function
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    known = {"B", "C", "padded", *function.__annotations__}
    return triton.jit(function, do_not_specialize_on_alignment=[name for name in names if name not in known])


@_jit
def _sigmoid(x):
    return 1 / (1 + tl.exp2(x * -LOG2_E))


@_jit
def _softplus(x):
    """max(x, 0) + log1p(exp(-|x|)), log1p(e) = 2 atanh(s) for s = e / (2 + e) <= 1/3: the hardware's
    logarithm is not accurate near 1, where small step sizes are."""
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    s = e / (2 + e)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return tl.maximum(x, 0) + 2 * s * series


@_jit
def _minus_zero():
    """The zero for which x + zero is x for every x: a sum that picks a constant row of a tile leaves no code.
    Made from its bits, as Triton takes a literal -0.0 for 0.0."""
    return tl.full((1, 1), -(2**31), tl.int32).to(tl.float32, bitcast=True)


@_jit
def _scan(decay, update, state, rows, CHUNK: tl.constexpr):
    """The state after each step and the part of it carried from before, (CHUNK, BLOCK); the last, (BLOCK)."""
    states, carried, zero = update, decay, _minus_zero()
    for i in tl.static_range(CHUNK):
        now = rows[:, None] == i
        left = tl.sum(tl.where(now, decay, zero), axis=0) * state
        state = left + tl.sum(tl.where(now, update, zero), axis=0)
        carried = tl.where(now, left[None, :], carried)
        states = tl.where(now, state[None, :], states)
    return states, carried, state


@_jit
def _reverse_scan(decay, update, adjoint, rows, CHUNK: tl.constexpr):
    """Gradient of the state after each step, (CHUNK, BLOCK), and of the one before the first, (BLOCK)."""
    gradient, zero = update, _minus_zero()
    for i in tl.static_range(CHUNK):
        now = rows[:, None] == CHUNK - 1 - i
        after = adjoint + tl.sum(tl.where(now, update, zero), axis=0)
        gradient = tl.where(now, after[None, :], gradient)
        adjoint = tl.sum(tl.where(now, decay, zero), axis=0) * after
    return gradient, adjoint


@_jit
def _tile(tensor, batch_stride, time_stride, b, first, rows, channel, live):
    """A (CHUNK, BLOCK) tile of a (B, L, D) tensor from step `first` on, in fp32, zero where not live."""
    start = tensor + b * batch_stride + first * time_stride
    return tl.load(start + rows[:, None] * time_stride + channel[None, :], mask=live, other=0).to(tl.float32)


@_jit
def _write(tensor, values, b, first, rows, channel, live, length, channels):
    start = tensor + (b * length + first) * channels
    values = values.to(tensor.dtype.element_ty)
    tl.store(start + rows[:, None] * channels + channel[None, :], values, mask=live)


@_jit
def _steps(raw, live, SOFTPLUS: tl.constexpr):
    """Step sizes from delta plus bias; zero where not live, so that these steps leave the state as it is."""
    return tl.where(live, _softplus(raw) if SOFTPLUS else raw, 0.0)


@_jit
def _resets(document_start, b, first, rows, in_time, length):
    """Added to the exponent of the decay: -inf at a document's first step, else 0; (CHUNK)."""
    start = tl.load(document_start + b * length + first + rows, mask=in_time, other=0)
    return tl.where(start != 0, float("-inf"), 0.0)


@_jit
def _of_state(n, A, B, C, carry, channel, here, channels, batch_row, padded, place):
    """What the walk needs of state n: its rates (BLOCK), B and C (CHUNK) and its value (BLOCK)."""
    row = (batch_row + n) * padded + place
    A_n = tl.load(A + n * channels + channel, mask=here, other=0)
    return A_n, tl.load(B + row), tl.load(C + row), tl.load(carry + n * channels, mask=here, other=0)


@_jit
def walk_kernel(
    u, delta, z, A, B, C, D, delta_bias, document_start,
    out,  # (B, L, D), or None: then only states are wanted
    states,  # (B, chunks / KEEP_EVERY, N, D): the state before every so many chunks, or None
    carry,  # (B, spans, N, D): in, the state before each span; out, after it
    span_steps,  # (B, spans, D): the sum of a span's step sizes, infinite if a document starts in it; or None
    u_batch, u_time, delta_batch, delta_time, z_batch, z_time,
    length, padded, channels, width, span_chunks, kept,
    SOFTPLUS: tl.constexpr, KEEP_EVERY: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, span = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    channel, rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    here = channel < channels
    bias = 0.0 if delta_bias is None else tl.load(delta_bias + channel, mask=here, other=0)[None, :]
    carry += (b * tl.num_programs(1) + span) * width * channels + channel
    total = tl.zeros((BLOCK,), tl.float32)
    for chunk in range(span * span_chunks, tl.minimum((span + 1) * span_chunks, tl.cdiv(length, CHUNK))):
        first = chunk * CHUNK
        in_time = rows < (length - first).to(tl.int32)
        live = in_time[:, None] & here[None, :]
        x = _tile(u, u_batch, u_time, b, first, rows, channel, live)
        raw = _tile(delta, delta_batch, delta_time, b, first, rows, channel, live) + bias
        steps = _steps(raw, live, SOFTPLUS)
        scaled = steps * x
        total += tl.sum(steps, axis=0)
        if document_start is not None:
            reset = _resets(document_start, b, first, rows, in_time, length)
            total -= tl.min(reset, axis=0)
        y = tl.zeros((CHUNK, BLOCK), tl.float32)
        place = first + rows
        ahead = _of_state(0, A, B, C, carry, channel, here, channels, b * width, padded, place)
        for n in range(width):
            # Read one state ahead of the arithmetic: a lone warp has nobody to wait behind.
            A_n, b_n, c_n, state = ahead
            following = tl.minimum(n + 1, width - 1)
            ahead = _of_state(following, A, B, C, carry, channel, here, channels, b * width, padded, place)
            if KEEP_EVERY > 0 and chunk % KEEP_EVERY == 0:
                slot = ((b * kept + chunk // KEEP_EVERY) * width + n) * channels
                tl.store(states + slot + channel, state, mask=here)
            exponent = steps * (A_n * LOG2_E)[None, :]
            if document_start is not None:
                exponent += reset[:, None]
            update = scaled * b_n[:, None]
            in_chunk, _, state = _scan(tl.exp2(exponent), update, state, rows, CHUNK)
            tl.store(carry + n * channels, state, mask=here)
            if out is not None:
                y += in_chunk * c_n[:, None]
        tl.debug_barrier()  # the next chunk reads what this one wrote to carry
        if out is not None:
            if D is not None:
                y += tl.load(D + channel, mask=here, other=0)[None, :] * x
            if z is not None:
                gate = _tile(z, z_batch, z_time, b, first, rows, channel, live)
                y *= gate * _sigmoid(gate)
            _write(out, y, b, first, rows, channel, live, length, channels)
    if span_steps is not None:
        tl.store(span_steps + (b * tl.num_programs(1) + span) * channels + channel, total, mask=here)


@_jit
def join_kernel(
    carry,  # (B, spans, N, D): in, what a span adds to a state; out, the state that enters it
    boundary,  # (B, N, D): in, the state before the first span; out, after the last
    span_steps, A, spans, channels, width, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = channel < channels
    rate = tl.load(A + n * channels + channel, mask=here, other=0) * LOG2_E
    state = tl.load(boundary + (b * width + n) * channels + channel, mask=here, other=0)
    for i in range(spans):
        span = b * spans + (spans - 1 - i if REVERSE else i)
        steps = tl.load(span_steps + span * channels + channel, mask=here, other=0)
        decay = tl.where(steps == float("inf"), 0.0, tl.exp2(rate * steps))
        place = carry + (span * width + n) * channels + channel
        added = tl.load(place, mask=here, other=0)
        tl.store(place, state, mask=here)
        state = decay * state + added
    tl.store(boundary + (b * width + n) * channels + channel, state, mask=here)


@_jit
def backward_kernel(
    u, delta, z, grad_out, A, B, C, D, delta_bias, document_start,
    states,  # (B, chunks, N, D): the state before each chunk
    carry,  # (B, spans, N, D): in, the gradient of the state after each span; out, of the state before it
    grad_u, grad_delta, grad_z,  # (B, L, D)
    grad_A,  # (B, spans, N, D), zero; grad_D, grad_delta_bias (B, spans, D) or None
    grad_B, grad_C,  # (B, blocks, N, L)
    grad_D, grad_delta_bias,
    u_batch, u_time, delta_batch, delta_time, z_batch, z_time, grad_out_batch, grad_out_time,
    length, padded, channels, width, span_chunks,
    CARRY_ONLY: tl.constexpr, SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, span, block = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(0)
    channel, rows = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    here = channel < channels
    bias = 0.0 if delta_bias is None else tl.load(delta_bias + channel, mask=here, other=0)[None, :]
    span_index = b * tl.num_programs(1) + span
    carry += span_index * width * channels + channel
    sum_D, sum_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    chunks = tl.cdiv(length, CHUNK)
    last = tl.minimum((span + 1) * span_chunks, chunks) - 1
    for back in range(last + 1 - span * span_chunks):
        chunk = last - back
        first = chunk * CHUNK
        in_time = rows < (length - first).to(tl.int32)
        live = in_time[:, None] & here[None, :]
        raw = _tile(delta, delta_batch, delta_time, b, first, rows, channel, live) + bias
        steps = _steps(raw, live, SOFTPLUS)
        grad_y = _tile(grad_out, grad_out_batch, grad_out_time, b, first, rows, channel, live)
        if z is not None:
            gate = _tile(z, z_batch, z_time, b, first, rows, channel, live)
            grad_y *= gate * _sigmoid(gate)
        if document_start is not None:
            reset = _resets(document_start, b, first, rows, in_time, length)
        if not CARRY_ONLY:
            scaled = steps * _tile(u, u_batch, u_time, b, first, rows, channel, live)
            y = tl.zeros((CHUNK, BLOCK), tl.float32)
            grad_steps, grad_scaled = y, y
        for n in range(width):
            A_n = tl.load(A + n * channels + channel, mask=here, other=0)
            column = (b * width + n) * padded + first + rows
            c_n = tl.load(C + column)
            adjoint = tl.load(carry + n * channels, mask=here, other=0)
            exponent = steps * (A_n * LOG2_E)[None, :]
            if document_start is not None:
                exponent += reset[:, None]
            decay = tl.exp2(exponent)
            grad_state, adjoint = _reverse_scan(decay, grad_y * c_n[:, None], adjoint, rows, CHUNK)
            tl.store(carry + n * channels, adjoint, mask=here)
            if not CARRY_ONLY:
                b_n = tl.load(B + column)
                before = states + ((b * chunks + chunk) * width + n) * channels + channel
                update = scaled * b_n[:, None]
                state, carried, _ = _scan(decay, update, tl.load(before, mask=here, other=0), rows, CHUNK)
                y += state * c_n[:, None]
                partial = ((b * tl.num_programs(0) + block) * width + n) * length + first + rows
                tl.store(grad_C + partial, tl.sum(grad_y * state, axis=1), mask=in_time)
                tl.store(grad_B + partial, tl.sum(grad_state * scaled, axis=1), mask=in_time)
                grad_scaled += grad_state * b_n[:, None]
                grad_exponent = grad_state * carried
                grad_steps += grad_exponent * A_n[None, :]
                place = grad_A + (span_index * width + n) * channels + channel
                before_A = tl.load(place, mask=here, other=0)
                tl.store(place, before_A + tl.sum(grad_exponent * steps, axis=0), mask=here)
        tl.debug_barrier()  # the next chunk reads what this one wrote to carry and grad_A
        if not CARRY_ONLY:
            x = _tile(u, u_batch, u_time, b, first, rows, channel, live)
            grad_x = grad_scaled * steps
            if D is not None:
                D_row = tl.load(D + channel, mask=here, other=0)[None, :]
                y += D_row * x
                grad_x += D_row * grad_y
                sum_D += tl.sum(grad_y * x, axis=0)
            _write(grad_u, grad_x, b, first, rows, channel, live, length, channels)
            grad_raw = grad_steps + grad_scaled * x
            if SOFTPLUS:
                raw = _tile(delta, delta_batch, delta_time, b, first, rows, channel, live) + bias
                grad_raw *= _sigmoid(raw)
            _write(grad_delta, grad_raw, b, first, rows, channel, live, length, channels)
            sum_bias += tl.sum(tl.where(live, grad_raw, 0.0), axis=0)
            if z is not None:
                gate = _tile(z, z_batch, z_time, b, first, rows, channel, live)
                grad = _tile(grad_out, grad_out_batch, grad_out_time, b, first, rows, channel, live)
                opening = _sigmoid(gate)
                grad *= y * opening * (1 + gate * (1 - opening))
                _write(grad_z, grad, b, first, rows, channel, live, length, channels)
    if not CARRY_ONLY:
        if grad_D is not None:
            tl.store(grad_D + span_index * channels + channel, sum_D, mask=here)
        if grad_delta_bias is not None:
            tl.store(grad_delta_bias + span_index * channels + channel, sum_bias, mask=here)
