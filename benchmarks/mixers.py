"""Sequence mixers, forward and backward: S4D beside the public layer's formulas, all beside Mamba's mixer.

    python benchmarks/mixers.py [--d-model 256 --batch 1 --lengths 1024 4096 --only s6 rwkv]

The first part times S4D's convolution (kernel, FFT and skip) at 4,096 positions, N = 64, against the formulas
of the S4D layer in state-spaces/s4 (models/s4/s4d.py), written anew here: the kernel as a sum over a
(d, N/2, L) tensor of powers, FFTs of length 2 L by autograd, in the layout (B, d, L) that it has.

The second part times each mixer in a plain block (`mixer=NAME model.block=plain model.mlp=none`, no norms)
at each of two lengths beside the mixer of MambaByte, its projections, convolution and gate included, at the
same width. Of a mixer linear in the length, the times have the lengths' ratio or less. All is fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from measuring import measure, parser, report
from torch import Tensor, nn

from mambabyte.models import MambaByteConfig, mixers
from mambabyte.models.mamba import Mixer
from mambabyte.models.mixers.blocks import PlainBlock
from mambabyte.models.mixers.s4d import S4D


class PublicS4D(nn.Module):
    """The public layer's kernel, convolution and skip, u (B, d, L) -> (B, d, L)."""

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        log_step = torch.rand(channels) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)
        self.log_step = nn.Parameter(log_step)
        self.log_A_real = nn.Parameter(torch.full((channels, states // 2), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(states // 2).repeat(channels, 1))
        self.C = nn.Parameter(torch.randn(channels, states // 2, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(channels))

    def forward(self, u: Tensor) -> Tensor:
        length = u.shape[-1]
        step, C = self.log_step.exp(), torch.view_as_complex(self.C)
        A = -self.log_A_real.exp() + 1j * self.A_imag
        exponent = A * step.unsqueeze(-1)
        powers = torch.exp(exponent.unsqueeze(-1) * torch.arange(length))
        kernel = 2 * torch.einsum("hn, hnl -> hl", C * (exponent.exp() - 1) / A, powers).real
        spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length] + u * self.D.unsqueeze(-1)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=7)
    for name, default in (("d-model", 256), ("batch", 1)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--lengths", type=int, nargs=2, default=[1024, 4096])
    arguments.add_argument("--only", nargs="+", choices=[*mixers.MIXERS.values()], help="these mixers alone")
    options = arguments.parse_args()
    torch.manual_seed(0)
    setting = {key: getattr(options, key) for key in ("d_model", "batch", "repeats")}
    d, batch = options.d_model, options.batch

    s4d, public = S4D(d, 64, 0.001, 0.1), PublicS4D(d, 64)
    public.load_state_dict(dict(zip(public.state_dict(), s4d.state_dict().values(), strict=True)))
    u = torch.randn(1, 100, d)
    torch.testing.assert_close(public(u.mT).mT, s4d(u, None)[0], atol=1e-4, rtol=1e-4)
    calls = {
        "S4D": passes(lambda x: s4d(x, None)[0], batch, 4096, d),
        "public S4D": passes(public, batch, d, 4096),
    }
    timings = measure(calls, options.repeats)
    ratio = timings["public S4D"].median / timings["S4D"].median
    ratios = {"public S4D / S4D": ratio}
    report("S4D's convolution at 4,096", timings, ratios, options.json, **setting)

    short, long = options.lengths
    chosen = {name: module for name, module in mixers.MIXERS.items() if module in (options.only or [module])}
    calls = {}
    for length in options.lengths:
        mamba = Mixer(MambaByteConfig(d_model=d, n_layer=1))
        calls[f"mamba at {length}"] = passes(
            lambda x, mamba=mamba: mamba(x, None, None, False)[0], batch, length, d
        )
        for name, module in chosen.items():
            config = getattr(mixers, f"{name}Config")()
            block = PlainBlock(config.build(mixers.Place(d, d, 0, 1)), d)
            calls[f"{module} at {length}"] = passes(
                lambda x, block=block: block(x, None)[0], batch, length, d
            )
    timings = measure(calls, options.repeats)
    ratios = {}
    for module in ["mamba", *chosen.values()]:
        first, last = timings[f"{module} at {short}"].median, timings[f"{module} at {long}"].median
        if module != "mamba":
            ratios[f"{module} / mamba at {short}"] = first / timings[f"mamba at {short}"].median
        ratios[f"{module} at {long} / {short}"] = last / first
    report("mixers, forward and backward", timings, ratios, options.json, lengths=options.lengths, **setting)


def passes(function: Callable[[Tensor], Tensor], *shape: int) -> Callable[[], None]:
    """A forward and a backward pass, down to the input, as within a model."""
    x = torch.randn(*shape, requires_grad=True)
    weights = torch.randn(*shape)

    def call() -> None:
        function(x).backward(weights)

    return call


if __name__ == "__main__":
    main()
