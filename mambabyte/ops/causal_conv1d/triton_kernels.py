"""The causal convolution with SiLU in Triton for CUDA, forward and backward.

A program has BLOCK channels on its lanes and walks down a tile of time with the W-1 inputs before the current
one in registers, so that it reads each input once, and the few around its tile. It reads ROWS rows before it
uses the first, because stores keep the compiler from moving later reads ahead. At a document's first step the
inputs in registers become zero.

Backward computes the sum before SiLU again. Walking down, it holds the gradients of the last W-1 inputs,
which are complete W-1 steps later. Of the gradients of weight and bias each program writes its own partial
sums, (B tiles, W + 1, D) fp32, which are added afterwards in a fixed order: no atomic additions.
"""

# Parameters in capitals of several letters are compile-time constants, the only parameters with annotations,
# because Triton reads these. A tuple grows by addition, because Triton knows no unpacking inside of one.
# mypy: disable-error-code="no-untyped-def, assignment"
# ruff: noqa: RUF005
from __future__ import annotations

from mambabyte.ops.triton.kernels import jit, jit_for_any, sigmoid, triton

if triton is not None:
    import triton.language as tl


@jit
def _position(channels, tiles, tile_rows, length, BLOCK: tl.constexpr):
    """Batch element, tile, first step of the tile, channels and their mask. Neighbouring programs have
    neighbouring channels of the same rows."""
    blocks = tl.cdiv(channels, BLOCK)
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    tile, b = program // blocks % tiles, (program // blocks // tiles).to(tl.int64)
    return b, tile, tl.minimum(tile * tile_rows, length), channel, channel < channels


@jit
def _load_taps(weight, channel, channel_mask, WIDTH: tl.constexpr):
    """The weights (BLOCK) of the current input and of those 1, 2 and 3 steps before; zero beyond WIDTH."""
    column = tl.arange(0, 4)[None, :]
    mask = channel_mask[:, None] & (column < WIDTH)
    columns = tl.load(weight + channel[:, None] * WIDTH + column, mask=mask, other=0).to(tl.float32)
    taps = ()
    for back in tl.static_range(4):
        taps = taps + (tl.sum(tl.where(column == WIDTH - 1 - back, columns, 0.0), axis=1),)
    return taps


@jit
def _load_rows(tensor, b, batch_stride, time_stride, first, end, channel, channel_mask, ROWS: tl.constexpr):
    """ROWS rows (BLOCK) of a (B, L, D) tensor from step `first` on; zero from step `end` on."""
    place = tensor + b * batch_stride + first.to(tl.int64) * time_stride
    rows = ()
    for row in tl.static_range(ROWS):
        mask = channel_mask & (first + row < end)
        rows = rows + (tl.load(place + row * time_stride + channel, mask=mask, other=0),)
    return rows


@jit
def _begins(document_start, b, step, length):
    """Whether a document begins at the step; it does not outside the window."""
    mask = (step >= 0) & (step < length)
    return tl.load(document_start + b * length + step, mask=mask, other=0) != 0


@jit
def _load_begins(document_start, b, first, length, ROWS: tl.constexpr):
    begins = ()
    for row in tl.static_range(ROWS):
        if document_start is None:
            begins = begins + (False,)
        else:
            begins = begins + (_begins(document_start, b, first + row, length),)
    return begins


@jit
def _input_before(
    x, state, b, x_batch, x_time, first, channel, channel_mask, channels,
    BACK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The input (BLOCK) of BACK steps before step `first`, which the state has where x has not begun."""
    step = first - BACK
    place = x + b * x_batch + step.to(tl.int64) * x_time + channel
    value = tl.load(place, mask=channel_mask & (step >= 0), other=0).to(tl.float32)
    if state is not None:
        place = state + (b * (WIDTH - 1) + step + WIDTH - 1) * channels + channel
        value += tl.load(place, mask=channel_mask & (step < 0), other=0).to(tl.float32)
    return value


@jit
def _load_past(
    x, state, document_start, b, x_batch, x_time, first, length, channel, channel_mask, channels,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """The inputs (BLOCK) 1, 2 and 3 steps before step `first`, as a document that goes on there sees them;
    beyond WIDTH they mean nothing."""
    past1 = _input_before(x, state, b, x_batch, x_time, first, channel, channel_mask, channels, 1, WIDTH)
    past2, past3 = past1, past1
    if WIDTH > 2:
        past2 = _input_before(x, state, b, x_batch, x_time, first, channel, channel_mask, channels, 2, WIDTH)
    if WIDTH > 3:
        past3 = _input_before(x, state, b, x_batch, x_time, first, channel, channel_mask, channels, 3, WIDTH)
    if document_start is not None:
        begins = _begins(document_start, b, first - 1, length)
        past2 = tl.where(begins, 0.0, past2)
        past3 = tl.where(begins | _begins(document_start, b, first - 2, length), 0.0, past3)
    return past1, past2, past3


@jit
def _forget(past, begins):
    """The past inputs, or zero if a document begins now."""
    return tl.where(begins, 0.0, past[0]), tl.where(begins, 0.0, past[1]), tl.where(begins, 0.0, past[2])


@jit
def _convolve(now, past, taps, bias, WIDTH: tl.constexpr):
    total = bias + taps[0] * now + taps[1] * past[0]
    if WIDTH > 2:
        total += taps[2] * past[1]
    if WIDTH > 3:
        total += taps[3] * past[2]
    return total


@jit_for_any("length", "tiles", "tile_rows")
def forward_kernel(
    x, weight, bias,
    state,  # (B, W-1, D), or None for zeros
    document_start,  # (B, L) bytes, or None
    out,  # (B, L, D)
    final_state,  # (B, W-1, D), or None; if it is wanted, one tile more than time has writes it
    x_batch, x_time, length, channels, tiles, tile_rows,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, _, first, channel, channel_mask = _position(channels, tiles, tile_rows, length, BLOCK)
    taps = _load_taps(weight, channel, channel_mask, WIDTH)
    added = tl.load(bias + channel, mask=channel_mask, other=0).to(tl.float32)
    past = _load_past(
        x, state, document_start, b, x_batch, x_time, first, length, channel, channel_mask, channels, WIDTH
    )
    if final_state is not None:
        final_mask = channel_mask & (first == length)
        for back in tl.static_range(1, WIDTH):
            last = final_state + (b * (WIDTH - 1) + WIDTH - 1 - back) * channels + channel
            tl.store(last, past[back - 1].to(final_state.dtype.element_ty), mask=final_mask)
    for offset in range(0, tl.minimum(tile_rows, length - first), ROWS):
        step = first + offset
        rows = _load_rows(x, b, x_batch, x_time, step, length, channel, channel_mask, ROWS)
        begins = _load_begins(document_start, b, step, length, ROWS)
        place = out + (b * length + step) * channels
        for row in tl.static_range(ROWS):
            now = rows[row].to(tl.float32)
            if document_start is not None:
                past = _forget(past, begins[row])
            total = _convolve(now, past, taps, added, WIDTH)
            value = (total * sigmoid(total)).to(out.dtype.element_ty)
            tl.store(place + row * channels + channel, value, mask=channel_mask & (step + row < length))
            past = (now, past[0], past[1])


@jit
def _step_back(
    now, grad, begins, past, grads, sums, cuts, taps, bias, document_start, counted, WIDTH: tl.constexpr
):
    """One step of the backward walk: the new past inputs, gradients of the last W-1 inputs, sums and cuts;
    the gradient of the input W-1 steps ago from the outputs, and whether a document began since."""
    cut = begins
    if document_start is not None:
        past = _forget(past, begins)
    total = _convolve(now, past, taps, bias, WIDTH)
    opening = sigmoid(total)
    grad = grad * opening * (1 + total * (1 - opening))
    grad1, grad2, grad3 = grad, grad, grad  # as the inputs of 1, 2 and 3 steps ago see it
    if document_start is not None:
        grad1 = tl.where(begins, 0.0, grad)
        grad2 = tl.where(begins | cuts[0], 0.0, grad)
        grad3 = tl.where(begins | cuts[1], 0.0, grad)
        cut = begins | cuts[WIDTH - 3] if WIDTH > 2 else begins
        cuts = (begins, begins | cuts[0])
    grads = (
        taps[0] * grad,
        grads[0] + taps[1] * grad1,
        grads[1] + taps[2] * grad2,
        grads[2] + taps[3] * grad3,
    )
    grad = tl.where(counted, grad, 0.0)
    sums = (
        sums[0] + grad * now,
        sums[1] + grad * past[0],
        sums[2] + grad * past[1],
        sums[3] + grad * past[2],
        sums[4] + grad,
    )
    return (now, past[0], past[1]), grads[:3], sums, cuts, grads[WIDTH - 1], cut


@jit
def _completed(complete, grad_final_state, b, step, length, cut, channel, channel_mask, channels, WIDTH):
    """`complete` with what the final state adds to it: the W-1 last inputs are in that, and complete W-1
    steps later, beyond the window's end."""
    if grad_final_state is not None:
        row = step - length
        mask = channel_mask & (row >= 0) & (row < WIDTH - 1)
        place = grad_final_state + (b * (WIDTH - 1) + row) * channels + channel
        added = tl.load(place, mask=mask, other=0).to(tl.float32)
        complete += tl.where(cut, 0.0, added)
    return complete


@jit
def _enter_tile(
    x, state, document_start, grad_out, grad_final_state, grad_state, b, first, taps, bias,
    x_batch, x_time, grad_batch, grad_time, length, channel, channel_mask, channels,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The backward walk's first W-1 steps of a tile, which complete no input of it. Those of the first tile
    complete the inputs of the state."""
    past = _load_past(
        x, state, document_start, b, x_batch, x_time, first, length, channel, channel_mask, channels, WIDTH
    )
    zero = tl.zeros((BLOCK,), tl.float32)
    grads, sums = (zero, zero, zero), (zero, zero, zero, zero, zero)
    cuts = (first < 0, first < 0)  # whether a document began within the last step, and within the last two
    rows = _load_rows(x, b, x_batch, x_time, first, length, channel, channel_mask, WIDTH - 1)
    upper = _load_rows(grad_out, b, grad_batch, grad_time, first, length, channel, channel_mask, WIDTH - 1)
    begins = _load_begins(document_start, b, first, length, WIDTH - 1)
    for row in tl.static_range(WIDTH - 1):
        now, grad = rows[row].to(tl.float32), upper[row].to(tl.float32)
        past, grads, sums, cuts, complete, cut = _step_back(
            now, grad, begins[row], past, grads, sums, cuts, taps, bias, document_start, first == 0, WIDTH
        )
        if grad_state is not None:
            step = first + row
            complete = _completed(
                complete, grad_final_state, b, step, length, cut, channel, channel_mask, channels, WIDTH
            )
            place = grad_state + (b * (WIDTH - 1) + row) * channels + channel
            tl.store(place, complete, mask=channel_mask & (first == 0))
    return past, grads, sums, cuts


@jit_for_any("length", "tiles", "tile_rows")
def backward_kernel(
    x, weight, bias, state, document_start,
    grad_out,  # (B, L, D)
    grad_final_state,  # (B, W-1, D), or None for zeros
    grad_x,  # (B, L, D), with rows grad_x_time apart
    grad_state,  # (B, W-1, D), or None
    partial,  # (B tiles, W + 1, D): a row for each column of the weight, and one for the bias
    x_batch, x_time, grad_batch, grad_time, grad_x_time, length, channels, tiles, tile_rows,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile writes the gradients of its own inputs, the last of which complete W-1 steps into the next tile.
    It adds up the weight's gradient over the steps from its own W-1 on; the first tile, over all it takes."""
    b, tile, first, channel, channel_mask = _position(channels, tiles, tile_rows, length, BLOCK)
    taps = _load_taps(weight, channel, channel_mask, WIDTH)
    added = tl.load(bias + channel, mask=channel_mask, other=0).to(tl.float32)
    past, grads, sums, cuts = _enter_tile(
        x, state, document_start, grad_out, grad_final_state, grad_state, b, first, taps, added,
        x_batch, x_time, grad_batch, grad_time, length, channel, channel_mask, channels, WIDTH, BLOCK,
    )  # fmt: skip
    for offset in range(0, tl.minimum(tile_rows, length - first), ROWS):
        step = first + offset + WIDTH - 1
        rows = _load_rows(x, b, x_batch, x_time, step, length, channel, channel_mask, ROWS)
        upper = _load_rows(grad_out, b, grad_batch, grad_time, step, length, channel, channel_mask, ROWS)
        begins = _load_begins(document_start, b, step, length, ROWS)
        place = grad_x + (b * length + first + offset) * grad_x_time + channel
        for row in tl.static_range(ROWS):
            now, grad = rows[row].to(tl.float32), upper[row].to(tl.float32)
            past, grads, sums, cuts, complete, cut = _step_back(
                now, grad, begins[row], past, grads, sums, cuts, taps, added, document_start, True, WIDTH
            )
            complete = _completed(
                complete, grad_final_state, b, step + row, length, cut, channel, channel_mask, channels, WIDTH
            )
            mask = channel_mask & (first + offset + row < length)
            tl.store(place + row * grad_x_time, complete.to(grad_x.dtype.element_ty), mask=mask)
    place = partial + (b * tiles + tile) * (WIDTH + 1) * channels + channel
    for back in tl.static_range(WIDTH):
        tl.store(place + (WIDTH - 1 - back) * channels, sums[back], mask=channel_mask)
    tl.store(place + WIDTH * channels, sums[4], mask=channel_mask)
