"""The mixers as their papers write them, one position at a time in fp64, on the weights of ours."""

import math

import torch
from torch.nn.functional import softplus

from tests.ops.naive import naive_selective_scan, naive_ssd


def s6(mixer, x):
    rank, states = mixer.rank, mixer.d_state
    dt, B, C = (x @ mixer.x_proj.weight.T).split([rank, states, states], -1)
    zero = torch.zeros(len(x), *mixer.A_log.shape, dtype=x.dtype)
    gate = torch.full_like(x, 1.2784645427610738)  # silu of it is 1
    delta, A = dt @ mixer.dt_proj.weight.T, -mixer.A_log.exp()
    return naive_selective_scan(x, delta, A, B, C, mixer.D, gate, mixer.dt_proj.bias, zero)[0]


def ssd(mixer, x):
    batch, length, width = x.shape
    heads, states = mixer.heads, mixer.d_state
    B, C, dt = (x @ mixer.x_proj.weight.T).split([states, states, heads], -1)
    dt = softplus(dt + mixer.dt_bias)
    u = x.view(batch, length, heads, -1)
    zero = torch.zeros(batch, heads, width // heads, states, dtype=x.dtype)
    inputs = (u * dt[..., None], -dt * mixer.A_log.exp(), B[:, :, None], C[:, :, None])
    y = naive_ssd(*inputs, zero)[0]
    return (y + mixer.D[:, None] * u).flatten(2)


def mamba2(mixer, x):
    """As arXiv 2405.21060 has it, the rows of W_i in mamba_ssm's order: z, x, B, C, dt."""
    inner, heads, groups = mixer.norm.weight.numel(), mixer.A_log.numel(), mixer.groups
    states, taps = mixer.d_state, mixer.conv1d.weight.shape[2]
    projected = x @ mixer.in_proj.weight.T
    z, dt = projected[..., :inner], softplus(projected[..., -heads:] + mixer.dt_bias)
    before = projected[..., inner:-heads]
    padded = torch.cat([torch.zeros_like(before[:, :1]).expand(-1, taps - 1, -1), before], 1)
    kernel, bias = mixer.conv1d.weight[:, 0].T, mixer.conv1d.bias
    convolved = [(padded[:, t : t + taps] * kernel).sum(1) + bias for t in range(x.shape[1])]
    convolved = torch.stack([each * each.sigmoid() for each in convolved], 1)
    u = convolved[..., :inner].unflatten(-1, (heads, -1))
    B, C = convolved[..., inner:].unflatten(-1, (2, groups, states)).unbind(2)
    zero = torch.zeros(len(x), heads, inner // heads, states, dtype=x.dtype)
    y = naive_ssd(u * dt[..., None], -dt * mixer.A_log.exp(), B, C, zero)[0] + mixer.D[:, None] * u
    gated = (y.flatten(2) * z * z.sigmoid()).unflatten(-1, (groups, -1))
    normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return (normed.flatten(2) * mixer.norm.weight) @ mixer.out_proj.weight.T


def mamba3(mixer, x):
    """As arXiv 2603.15569 has it before it moves the rotations of the state into B and C, and with its
    matrices written out; the rows of W_i and the rate of decay are mamba_ssm's."""
    heads, groups, states, inner = (
        mixer.D.numel(),
        mixer.groups,
        mixer.d_state,
        mixer.out_proj.weight.shape[1],
    )
    shared, pairs = groups * states, mixer.angles
    sizes = [inner, inner, shared, shared, heads, heads, heads, pairs]
    z, u, B, C, dt, rate, trapezoid, theta = (x @ mixer.in_proj.weight.T).split(sizes, -1)
    u = u.unflatten(-1, (heads, -1))
    dt, trapezoid, theta = softplus(dt + mixer.dt_bias), trapezoid.sigmoid(), math.pi * theta.tanh()
    rate = torch.where(rate > 0, 1 + rate, 1 / (1 - torch.where(rate > 0, 0, rate)))

    def of_heads(x, norm, bias):
        x = x.unflatten(-1, (groups, states))
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
        return x.repeat_interleave(heads // groups, 2) + bias[:, 0]

    B, C = of_heads(B, mixer.B_norm, mixer.B_bias), of_heads(C, mixer.C_norm, mixer.C_bias)
    h, out = torch.zeros(len(x), heads, u.shape[-1], states, dtype=x.dtype), []
    for t in range(x.shape[1]):
        angle = -dt[:, t, :, None] * theta[:, t, None]
        turn = torch.eye(states, dtype=x.dtype).repeat(len(x), heads, 1, 1)
        for pair in range(pairs):
            i, cosine, sine = 2 * pair, angle[..., pair].cos(), angle[..., pair].sin()
            turn[..., i, i], turn[..., i, i + 1] = cosine, -sine
            turn[..., i + 1, i], turn[..., i + 1, i + 1] = sine, cosine
        decay, new = (-dt[:, t] * rate[:, t]).exp(), trapezoid[:, t] * dt[:, t]
        old = (1 - trapezoid[:, t]) * dt[:, t] * decay
        h = decay[..., None, None] * h
        if t:
            h = h + old[..., None, None] * u[:, t - 1, :, :, None] * B[:, t - 1, :, None]
        h = h @ turn.mT + new[..., None, None] * u[:, t, :, :, None] * B[:, t, :, None]
        out.append((h * C[:, t, :, None]).sum(-1) + mixer.D[:, None] * u[:, t])
    return (torch.stack(out, 1).flatten(2) * z * z.sigmoid()) @ mixer.out_proj.weight.T


def linear_attention(mixer, x):
    heads, size = mixer.heads, mixer.width // mixer.heads
    q, k, v = (part.unflatten(-1, (heads, size)) for part in (x @ mixer.qkv.weight.T).chunk(3, -1))

    def feature(x):
        return torch.where(x > 0, x + 1, x.clamp(max=0).exp())

    out = []
    for t in range(x.shape[1]):
        similarity = (feature(q[:, t, None]) * feature(k[:, : t + 1])).sum(-1, keepdim=True)
        out.append(((similarity * v[:, : t + 1]).sum(1) / (similarity.sum(1) + mixer.epsilon)).flatten(1))
    return torch.stack(out, 1) @ mixer.out_proj.weight.T


def attention(mixer, x):
    layer = mixer.attention
    heads, size = layer.heads, mixer.width // layer.heads
    q, k, v = (part.unflatten(-1, (heads, size)) for part in (x @ layer.qkv.weight.T).chunk(3, -1))
    frequency = mixer.rope_base ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)

    def rotate(x, t):
        cos, sin = (t * frequency).cos(), (t * frequency).sin()
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    keys = [rotate(k[:, t], t) for t in range(x.shape[1])]
    out = []
    for t in range(x.shape[1]):
        first = 0 if layer.window is None else max(0, t + 1 - layer.window)
        scores = (rotate(q[:, t], t)[:, None] * torch.stack(keys[first : t + 1], 1)).sum(-1)
        weights = (scores / math.sqrt(size)).softmax(1)
        out.append((weights[..., None] * v[:, first : t + 1]).sum(1).flatten(1))
    return torch.stack(out, 1) @ layer.out.weight.T


def shifted(x, mix):
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    return [weight * x + (1 - weight) * before for weight in mix]


def rwkv(mixer, x):
    """Equations 11 to 16, the sums as they are written: of all positions before, and may overflow."""
    r, k, v = shifted(x, mixer.mix)
    r, k, v = r @ mixer.receptance.weight.T, k @ mixer.key.weight.T, v @ mixer.value.weight.T
    w, u, out = mixer.decay.exp(), mixer.bonus, []
    for t in range(x.shape[1]):
        own = (u + k[:, t]).exp()
        numerator, denominator = own * v[:, t], own
        for i in range(t):
            weight = (-(t - 1 - i) * w + k[:, i]).exp()
            numerator, denominator = numerator + weight * v[:, i], denominator + weight
        out.append(r[:, t].sigmoid() * numerator / denominator)
    return torch.stack(out, 1) @ mixer.out_proj.weight.T


def channel_mixing(mixer, x):
    r, k = shifted(x, mixer.mix)
    hidden = (k @ mixer.up.weight.T).clamp(min=0) ** 2
    return (r @ mixer.receptance.weight.T).sigmoid() * (hidden @ mixer.down.weight.T)


def s4d(mixer, x):
    decay = -mixer.log_decay.exp()
    A = decay if mixer.is_real else torch.complex(decay, mixer.frequency)
    C = mixer.C.squeeze(-1) if mixer.is_real else torch.view_as_complex(mixer.C)
    step = mixer.log_step.exp()[:, None]
    h, out = torch.zeros_like(A), []
    for t in range(x.shape[1]):
        h = (step * A).exp() * h + ((step * A).exp() - 1) / A * x[:, t, :, None]
        out.append(2 * (C * h).sum(-1).real + mixer.D * x[:, t])  # of real states .real is themselves
    return torch.stack(out, 1)


def s4(mixer, x):
    """With both states of each pair and A as a matrix."""
    L = torch.complex(-mixer.log_decay.exp(), mixer.frequency)
    P, B, C = (torch.view_as_complex(each) for each in (mixer.P, mixer.B, mixer.C))
    L, P, B, C = (torch.cat([each, each.conj()], -1) for each in (L, P, B, C))
    A = torch.diag_embed(L) - P[:, :, None] * P.conj()[:, None]
    step, one = mixer.log_step.exp()[:, None, None], torch.eye(A.shape[-1], dtype=A.dtype)
    inverse = torch.linalg.inv(one - step / 2 * A)
    matrix, column = inverse @ (one + step / 2 * A), inverse @ (step * B[..., None])
    h, out = torch.zeros(len(x), *B.shape, 1, dtype=A.dtype), []
    for t in range(x.shape[1]):
        h = matrix @ h + column * x[:, t, :, None, None]
        out.append((C * h.squeeze(-1)).sum(-1).real + mixer.D * x[:, t])
    return torch.stack(out, 1)


def h3(mixer, x):
    q, k, v = (x @ mixer.qkv.weight.T).chunk(3, -1)
    taps = mixer.shift.shape[1]
    padded = torch.cat([torch.zeros_like(k[:, :1]).expand(-1, taps - 1, -1), k], 1)
    keys = torch.stack([(padded[:, t : t + taps] * mixer.shift.T).sum(1) for t in range(x.shape[1])], 1)
    return (q * s4d(mixer.mixer, keys * v)) @ mixer.out_proj.weight.T


def lstm(mixer, x):
    cell = output = torch.zeros_like(x[:, 0])
    weights, out = mixer.lstm, []
    for t in range(x.shape[1]):
        gates = x[:, t] @ weights.weight_ih_l0.T + weights.bias_ih_l0
        gates = gates + output @ weights.weight_hh_l0.T + weights.bias_hh_l0
        i, f, g, o = gates.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        output = o.sigmoid() * cell.tanh()
        out.append(output)
    return torch.stack(out, 1) @ mixer.out_proj.weight.T


def cnn(mixer, x):
    count = mixer.reach // mixer.dilation + 1
    taps, out = mixer.taps.weight.view(-1, count, x.shape[-1]), []
    for t in range(x.shape[1]):
        total = 0
        for tap in range(count):
            place = t - mixer.reach + tap * mixer.dilation
            total = total + (x[:, place] if place >= 0 else 0 * x[:, 0]) @ taps[:, tap].T
        filtered, gate = total.chunk(2, -1)
        out.append(filtered.tanh() * gate.sigmoid())
    return torch.stack(out, 1) @ mixer.out_proj.weight.T
