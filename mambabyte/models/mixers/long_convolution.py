"""Causal convolution with a kernel as long as the sequence, by FFT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def long_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """y[:, t, d] = sum_j kernel[d, j] u[:, t - j, d]: (B, L, d) and (d, L) -> (B, L, d), in O(L log L)."""
    return _LongConvolution.apply(u, kernel)


class _LongConvolution(torch.autograd.Function):
    """PyTorch's own derivative of a real FFT is a complex one of twice the work. This one is by real FFTs."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        length = u.shape[1]
        # padding, so that the circular convolution does not wrap around
        ctx.size = size = _fast_size(2 * length - 1)
        spectrum, response = torch.fft.rfft(u.transpose(1, 2), size), torch.fft.rfft(kernel, size)
        ctx.save_for_backward(spectrum, response)
        return torch.fft.irfft(spectrum * response, size)[..., :length].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        spectrum, response = ctx.saved_tensors
        gradient = torch.fft.rfft(grad.transpose(1, 2), ctx.size)
        grad_u = torch.fft.irfft(gradient * response.conj(), ctx.size)[..., : grad.shape[1]]
        grad_kernel = torch.fft.irfft((gradient * spectrum.conj()).sum(0), ctx.size)[..., : grad.shape[1]]
        return grad_u.transpose(1, 2), grad_kernel


def _fast_size(least: int) -> int:
    """The smallest 2^i, 3 2^i or 5 2^i that is even and at least so much: other sizes have slow FFTs."""
    return min(factor * 2 ** max(1, (-(-least // factor) - 1).bit_length()) for factor in (1, 3, 5))
