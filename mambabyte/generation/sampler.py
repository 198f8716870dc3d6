"""Sampling the next byte from logits."""

from dataclasses import dataclass, field

import torch

from mambabyte.config.settings import Settings, setting
from mambabyte.errors import UserError

NO_PROBABILITIES = (
    "the model gives no probabilities (NaN or infinite logits): its training failed, or its file is damaged; "
    "choose another checkpoint"
)


@dataclass
class Sampler(Settings):
    """Temperature, then top-k, then top-p (nucleus sampling, arXiv 1904.09751), then one draw.

    A call draws on the CPU in float64 from a separate generator, so that a seed means the same wherever the
    logits come from. Where `generate` draws on a CUDA device instead, it does so from the same probabilities
    with other noise: a seed gives the same bytes there each time, but not those of a CPU.

    Args:
        temperature: divides the logits; 0 takes the likeliest byte and ignores the other settings.
        top_k: keep only this many of the likeliest bytes.
        top_p: keep the smallest set of likeliest bytes whose probabilities add up to this.

    Raises:
        UserError: a setting of another type or out of range.
    """

    temperature: float = setting(default=0.8, at_least=0)
    top_k: int | None = setting(default=None, at_least=1, at_most=256)
    top_p: float | None = setting(default=None, above=0, at_most=1)
    seed: int = setting(default=0, at_least=0, below=2**32)
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        """One byte from ``logits`` (256,).

        Raises:
            UserError: they give no probabilities.
        """
        if not logits.max().isfinite():  # the largest of any with a NaN is NaN
            raise UserError(NO_PROBABILITIES)
        if self.temperature == 0:
            return int(logits.argmax())
        scaled = logits.detach().to("cpu", torch.float64)
        scaled = (scaled - scaled.max()) / self.temperature  # at most 0: no overflow
        values, order = torch.sort(scaled, descending=True, stable=True)
        probabilities = torch.softmax(values[: self.top_k], dim=0)
        if self.top_p is not None:
            reached_before = probabilities.cumsum(0) - probabilities
            probabilities = torch.where(reached_before < self.top_p, probabilities, 0.0)
        return int(order[torch.multinomial(probabilities, 1, generator=self._generator)])
