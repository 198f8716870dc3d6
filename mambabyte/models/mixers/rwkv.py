"""RWKV-4's time mixing and channel mixing (arXiv 2305.13048, sections 3.1 to 3.4).

Each input is first mixed with the one before it, with a weight for each channel, for r, k and v separately.
Per channel, with a decay exp(-w) and a bonus u for the current position:

    wkv_t = (sum_{i<t} exp(-(t-1-i) w + k_i) v_i + exp(u + k_t) v_t)
            / (sum_{i<t} exp(-(t-1-i) w + k_i) + exp(u + k_t))          y_t = W_o (sigmoid(r_t) * wkv_t)

exp(k) overflows, so the sums a_t and b_t over i <= t are kept divided by exp(p_t) (appendix D), where p_t is
the largest exponent in them:

    p_t = max(p_{t-1} - w, k_t)         a_t = exp(p_{t-1} - w - p_t) a_{t-1} + exp(k_t - p_t) v_t

The results do not depend on p, so it has no gradient and may come from a maximum of its own; what is left is
a linear recurrence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from mambabyte.models.layers import as_residual
from mambabyte.models.mixers.linear_recurrence import linear_recurrence
from mambabyte.models.mixers.mixer import MixerConfig, MixerState, Place, SequenceMixer

NOTHING = -1e30  # the largest exponent of an empty sum


@dataclass
class RWKVConfig(MixerConfig):
    """It has no hyperparameters but its width."""


class RWKV(SequenceMixer):
    """Time mixing. The state is the last input (B, d) and a, b and p in one tensor (B, 3, d)."""

    resets = True

    def __init__(self, config: RWKVConfig, place: Place) -> None:
        super().__init__()
        width = place.width
        depth, rise = _position(place)
        channel = torch.arange(width) / max(1, width - 1)
        # The published initialisation: early channels forget slowly, and later layers more of them.
        self.decay = nn.Parameter(-5 + 8 * channel ** (0.7 + 1.3 * depth))  # the logarithm of w
        self.bonus = nn.Parameter(torch.full((width,), 0.3).log() + 0.5 * ((torch.arange(width) + 1) % 3 - 1))
        mix = (torch.arange(width) / width) ** rise
        self.mix = nn.Parameter(torch.stack([0.5 * mix, mix, mix + 0.3 * depth]))  # of r, k and v
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        for parameter in (self.decay, self.bonus, self.mix):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        last, sums = (None, None) if state is None else state
        mixed = token_shift(x, last, self.mix, document_start)
        projections = (self.receptance, self.key, self.value)
        r, k, v = (linear(part) for linear, part in zip(projections, mixed, strict=True))
        with torch.autocast(x.device.type, enabled=False):
            w, u, k, v = map(as_residual, (self.decay.exp(), self.bonus, k, v))
            y, sums = wkv(w, u, k, v, sums, document_start)
        y = self.out_proj(r.sigmoid() * y.to(r.dtype))
        return y, None if state is None else (x[:, -1], sums)

    def initial_state(self, batch_size: int) -> MixerState:
        zeros = self.decay.new_zeros(batch_size, 3, len(self.decay))
        zeros = as_residual(zeros)  # fp16 has no such number
        zeros[:, 2] = NOTHING
        return self.decay.new_zeros(batch_size, len(self.decay)), zeros

    def flops(self, context_length: int) -> float:
        """The projections and the recurrence, at any context length: 8 for a and b, 4 for their exponents,
        7 for the output and 9 for the mixing of r, k and v."""
        return 8 * self.out_proj.weight.numel() + 28 * len(self.decay)


class ChannelMixing(SequenceMixer):
    """RWKV's MLP: sigmoid(W_r x') * W_v relu(W_k x'')^2, of inputs mixed with the one before, which is the
    state (B, d)."""

    resets = True

    def __init__(self, inner: int, place: Place) -> None:
        super().__init__()
        width, rise = place.d_model, _position(place)[1]
        self.mix = nn.Parameter(((torch.arange(width) / width) ** rise).repeat(2, 1))
        self.mix._no_weight_decay = True  # type: ignore[attr-defined]
        self.receptance = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    @property
    def output_projection(self) -> nn.Linear:
        return self.down

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        r, k = token_shift(x, None if state is None else state[0], self.mix, document_start)
        y = self.receptance(r).sigmoid() * self.down(relu(self.up(k)).square())
        return y, None if state is None else (x[:, -1],)

    def initial_state(self, batch_size: int) -> MixerState:
        return (self.mix.new_zeros(batch_size, self.mix.shape[1]),)

    def flops(self, context_length: int) -> float:
        linear = (self.receptance, self.up, self.down)
        return 2 * sum(each.weight.numel() for each in linear) + 6 * self.mix.shape[1]


def _position(place: Place) -> tuple[float, float]:
    """How deep a layer lies, from 0 to 1, and the exponent by which its mixing rises over the channels."""
    return place.layer / max(1, place.n_layer - 1), 1 - place.layer / place.n_layer


def token_shift(x: Tensor, last: Tensor | None, mix: Tensor, document_start: Tensor | None) -> list[Tensor]:
    """For each row of mix (n, d): mix x_t + (1 - mix) x_{t-1}, (B, L, d), with `last` (B, d) before x_0 and
    zero before a document."""
    first = torch.zeros_like(x[:, :1]) if last is None else last.to(x.dtype).unsqueeze(1)
    before = torch.cat([first, x[:, :-1]], dim=1)
    if document_start is not None:
        before = before.masked_fill(document_start.unsqueeze(-1), 0.0)
    difference = x - before
    return [torch.addcmul(before, difference, weight.to(x.dtype)) for weight in mix]


def wkv(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None, document_start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The weighted means (B, L, d) of values v by keys k (B, L, d), and the sums (B, 3, d) after them.

    Args:
        w, u: (d), the decay, positive, and the bonus of the current position.
        state: (B, 3, d), the sums a and b and the exponent p after the positions before.
        document_start: (B, L) boolean; the sums are empty before each marked position.
    """
    if state is None:
        a = b = torch.zeros_like(k[:, 0])
        p = torch.full_like(a, NOTHING)
    else:
        a, b, p = as_residual(state).unbind(1)
    with torch.no_grad():
        largest = running_maximum(k, w, p, document_start)
        before = torch.cat([p.unsqueeze(1), largest[:, :-1]], dim=1)
        if document_start is not None:
            before = before.masked_fill(document_start.unsqueeze(-1), NOTHING)
    decay = torch.exp(before - w - largest)
    weight = torch.exp(k - largest)
    added = torch.stack([weight * v, weight], dim=2)  # (B, L, 2, d)
    initial = torch.stack([a, b], dim=1)
    sums = linear_recurrence(decay.unsqueeze(2), added, initial)
    # the current position's own weight is exp(u + k), and the sums before it have decayed by one step less
    earlier = torch.cat([initial.unsqueeze(1), sums[:, :-1]], dim=1)
    with torch.no_grad():
        scale = torch.maximum(before, u + k)
    old, own = torch.exp(before - scale), torch.exp(u + k - scale)
    numerator, denominator = earlier.unbind(2)
    y = (old * numerator + own * v) / (old * denominator + own)
    return y, torch.cat([sums[:, -1], largest[:, -1:]], dim=1)


def running_maximum(k: Tensor, w: Tensor, p: Tensor, document_start: Tensor | None) -> Tensor:
    """max(p_{t-1} - w, k_t) for each t, and k_t where a document starts: (B, L, d) for k (B, L, d), w (d) and
    p (B, d)."""
    decayed = torch.arange(1, k.shape[1] + 1, device=k.device, dtype=k.dtype).unsqueeze(-1) * w
    level, p = k + decayed, p.unsqueeze(1)
    if document_start is None:
        return torch.maximum(level.cummax(1).values, p) - decayed
    # Each document is lifted above all before it, which fp32 has not the digits for.
    level, p = level.double(), p.double()
    lift = torch.maximum(level.amax(1, keepdim=True), p) - level.amin(1, keepdim=True)
    lift = document_start.cumsum(1).unsqueeze(-1) * lift
    return (torch.maximum((level + lift).cummax(1).values, p) - lift - decayed).to(k.dtype)


RWKVConfig.mixer = RWKV
