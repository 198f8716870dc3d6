"""The residual addition and norm in Triton for CUDA, forward and backward.

A program has a whole row in its lanes: it reads each element once, and sums over the row between reading and
writing. Backward computes mean and variance again from x. There a program takes many rows and adds up what
they contribute to the gradients of weight and bias; these partial sums, (programs, 2, d) fp32, are added
afterwards in a fixed order: no atomic additions.
"""

# Parameters in capitals of several letters are compile-time constants, the only parameters with annotations,
# because Triton reads these.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from mambabyte.ops.triton.kernels import jit, jit_for_any, triton

if triton is not None:
    import triton.language as tl


@jit
def _standardise(x, mask, width, epsilon, RMS: tl.constexpr):
    """x over its root mean square, after its mean is subtracted unless RMS; and one over that root."""
    if not RMS:
        x = tl.where(mask, x - tl.sum(x, axis=0) / width, 0.0)
    scale = 1 / tl.sqrt(tl.sum(x * x, axis=0) / width + epsilon)
    return x * scale, scale


@jit
def forward_kernel(
    residual, update,  # (rows, d), fp32 and any; update may be None
    weight, bias,  # (d); bias may be None
    out, total,  # (rows, d): the norm, and residual + update in fp32
    width, epsilon, RMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    mask = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    x = tl.load(residual + place, mask=mask, other=0)
    if update is not None:
        x += tl.load(update + place, mask=mask, other=0).to(tl.float32)
    tl.store(total + place, x, mask=mask)
    normed, _ = _standardise(x, mask, width, epsilon, RMS)
    normed *= tl.load(weight + column, mask=mask, other=0).to(tl.float32)
    if bias is not None:
        normed += tl.load(bias + column, mask=mask, other=0).to(tl.float32)
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=mask)


@jit_for_any("rows")
def backward_kernel(
    total, weight,
    grad_out, grad_total,  # (rows, d); the second may be None for zeros
    grad_residual,  # (rows, d) fp32
    grad_update,  # the same in update's dtype, or None
    partial,  # (programs, 1 or 2, d): of the weight's gradient, and of the bias's
    rows, width, epsilon, RMS: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    mask = column < width
    gain = tl.load(weight + column, mask=mask, other=0).to(tl.float32)
    sum_weight, sum_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    for turn in range(tl.cdiv(rows - program, programs)):
        place = (program + turn * programs) * width + column
        x = tl.load(total + place, mask=mask, other=0)
        upper = tl.load(grad_out + place, mask=mask, other=0).to(tl.float32)
        normed, scale = _standardise(x, mask, width, epsilon, RMS)
        sum_weight += upper * normed
        sum_bias += upper
        upper *= gain
        grad = upper - normed * (tl.sum(upper * normed, axis=0) / width)
        if not RMS:
            grad -= tl.sum(upper, axis=0) / width
        grad *= scale
        if grad_total is not None:
            grad += tl.load(grad_total + place, mask=mask, other=0)
        tl.store(grad_residual + place, grad, mask=mask)
        if grad_update is not None:
            tl.store(grad_update + place, grad.to(grad_update.dtype.element_ty), mask=mask)
    place = partial + program * (BIAS + 1) * width + column
    tl.store(place, sum_weight, mask=mask)
    if BIAS:
        tl.store(place + width, sum_bias, mask=mask)
