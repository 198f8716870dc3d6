"""What stands around a mixer in a block: a projection, H3's gates, or Mamba's gate and convolution.

Each is a sequence mixer itself, from the residual stream's d channels to an update of it, so that any mixer
can stand in any block: Mamba's table 1 (arXiv 2312.00752) compares S4 and S6 within all three.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from mambabyte.models.mixers.mixer import MixerState, SequenceMixer
from mambabyte.ops import causal_conv1d
from mambabyte.ops.causal_conv1d.reference import causal_sum, last_inputs


class PlainBlock(SequenceMixer):
    """y = mixer(x), or W_o gelu(mixer(x)) around one that does not end with a linear layer, as in S4."""

    def __init__(self, mixer: SequenceMixer, d_model: int) -> None:
        super().__init__()
        self.mixer, self.resets = mixer, mixer.resets
        needed = mixer.output_projection is None
        self.out_proj = nn.Linear(d_model, d_model, bias=False) if needed else None

    @property
    def output_projection(self) -> nn.Linear | None:
        return self.mixer.output_projection if self.out_proj is None else self.out_proj

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        y, after = self.mixer(x, state, document_start)
        return y if self.out_proj is None else self.out_proj(gelu(y.to(x.dtype))), after

    def initial_state(self, batch_size: int) -> MixerState:
        return self.mixer.initial_state(batch_size)

    def flops(self, context_length: int) -> float:
        projection = 0 if self.out_proj is None else 2 * self.out_proj.weight.numel()
        return self.mixer.flops(context_length) + projection


class H3Block(SequenceMixer):
    """H3 (arXiv 2212.14052, section 3.1): y = W_o (q * mixer(shift(k) * v)), q, k and v linear in x.

    The shift SSM, whose matrix moves its states on by one, is a convolution with as many free taps as it has
    states; its skip connection D, at first from N(0, 1), is part of the last. Here a head is one channel. The
    state is the last taps - 1 keys (B, taps - 1, d) and the mixer's.
    """

    def __init__(self, mixer: SequenceMixer, d_model: int, taps: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        taps_at_first = torch.empty(d_model, taps).uniform_(-(taps**-0.5), taps**-0.5)
        taps_at_first[:, -1] += torch.randn(d_model)
        self.shift = nn.Parameter(taps_at_first)
        self.mixer, self.resets = mixer, mixer.resets
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        keys, inner = (None, None) if state is None else (state[0], state[1:])
        shifted = causal_sum(k, self.shift, None, keys, document_start)
        y, after = self.mixer(shifted.to(v.dtype) * v, inner, document_start)
        y = self.out_proj(q * y.to(q.dtype))
        if after is None:
            return y, None
        return y, (last_inputs(k, keys, self.shift.shape[1] - 1, document_start), *after)

    def initial_state(self, batch_size: int) -> MixerState:
        channels, taps = self.shift.shape
        return self.shift.new_zeros(batch_size, taps - 1, channels), *self.mixer.initial_state(batch_size)

    def flops(self, context_length: int) -> float:
        weights = self.qkv.weight.numel() + self.out_proj.weight.numel() + self.shift.numel()
        return 2 * weights + self.mixer.flops(context_length)


class MambaBlock(SequenceMixer):
    """Mamba (arXiv 2312.00752, section 3.4): y = W_o (mixer(silu(conv(W_x x))) * silu(W_z x)), with W_x and
    W_z from d to the mixer's channels D. The state is the last taps - 1 inputs of the convolution and the
    mixer's."""

    def __init__(self, mixer: SequenceMixer, d_model: int, inner: int, taps: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        # Only holds the weights; the op is `causal_conv1d`.
        self.conv1d = nn.Conv1d(inner, inner, taps, groups=inner)
        self.mixer, self.resets = mixer, mixer.resets
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        before, inner = (None, None) if state is None else (state[0], state[1:])
        weight = self.conv1d.weight.squeeze(1)
        x, inputs = causal_conv1d(
            x, weight, self.conv1d.bias, before, return_final_state=True, document_start=document_start
        )
        y, after = self.mixer(x, inner, document_start)
        y = self.out_proj(y.to(z.dtype) * silu(z))
        return y, None if after is None else (inputs, *after)

    def initial_state(self, batch_size: int) -> MixerState:
        inner, _, taps = self.conv1d.weight.shape
        zeros = self.conv1d.weight.new_zeros(batch_size, taps - 1, inner)
        return zeros, *self.mixer.initial_state(batch_size)

    def flops(self, context_length: int) -> float:
        linear = (self.in_proj, self.conv1d, self.out_proj)
        return 2 * sum(each.weight.numel() for each in linear) + self.mixer.flops(context_length)
