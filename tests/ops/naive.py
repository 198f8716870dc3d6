"""The ops as the papers write them, one step at a time in fp64: slow, and simple to check by reading."""

import torch
from torch.nn.functional import silu, softplus


def naive_selective_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, document_start=None):
    """arXiv 2312.00752, equations 2 and 4, with softplus, skip and gate; the output and the last state."""
    h, out = initial_state, []
    for t in range(u.shape[1]):
        if document_start is not None:
            h = torch.where(document_start[:, t, None, None], torch.zeros_like(h), h)
        dt = softplus(delta[:, t] + delta_bias)
        h = torch.exp(dt[:, :, None] * A) * h + (dt * u[:, t])[:, :, None] * B[:, t, None, :]
        out.append(((h * C[:, t, None, :]).sum(-1) + D * u[:, t]) * silu(z[:, t]))
    return torch.stack(out, 1), h


def naive_causal_conv1d(x, weight, bias, initial_state, document_start=None):
    """Each output from those inputs of its own document that are within the width."""
    width = weight.shape[1]
    rows = torch.cat([initial_state, x], 1)
    out = []
    for t in range(x.shape[1]):
        total = bias.expand(x.shape[0], -1)
        alive = torch.ones(x.shape[0], 1, dtype=x.dtype)
        for back in range(width):
            total = total + alive * weight[:, width - 1 - back] * rows[:, t + width - 1 - back]
            if document_start is not None and t - back >= 0:
                alive = alive * (~document_start[:, t - back, None]).to(x.dtype)
        out.append(silu(total))
    return torch.stack(out, 1)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation relative to the expected tensor's largest magnitude. A NaN fails every comparison."""
    scale = expected.abs().max().clamp_min(1e-12)
    return ((actual.double() - expected.double()).abs().max() / scale).item()


def naive_ssd(x, log_decay, B, C, initial_state, document_start=None):
    """arXiv 2405.21060, equation 1, with a scalar decay for each head; the output and the last state."""
    h, out = initial_state, []
    share = x.shape[2] // B.shape[2]
    for t in range(x.shape[1]):
        if document_start is not None:
            h = torch.where(document_start[:, t, None, None, None], torch.zeros_like(h), h)
        if log_decay is not None:
            h = log_decay[:, t, :, None, None].exp() * h
        h = h + x[:, t, :, :, None] * B[:, t].repeat_interleave(share, 1)[:, :, None]
        out.append((h * C[:, t].repeat_interleave(share, 1)[:, :, None]).sum(-1))
    return torch.stack(out, 1), h
