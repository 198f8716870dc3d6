"""Sampling the next byte from logits."""

from dataclasses import dataclass, field

import torch

from mambabyte.errors import UserError


@dataclass
class Sampler:
    """Temperature, then top-k, then top-p (nucleus sampling, arXiv 1904.09751), then one draw.

    Samples are drawn on the CPU in float64 from a separate generator, so that a seed means the same on every
    device.

    Args:
        temperature: divides the logits; 0 takes the likeliest byte and ignores the other settings.
        top_k: keep only this many of the likeliest bytes.
        top_p: keep the smallest set of likeliest bytes whose probabilities add up to this.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be 1 or more, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        """One byte from ``logits`` (256,).

        Raises:
            UserError: they give no probabilities.
        """
        if not logits.max().isfinite():  # the largest of any with a NaN is NaN
            raise UserError(
                "the model gives no probabilities (NaN or infinite logits): its training failed, or its file "
                "is damaged; choose another checkpoint"
            )
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
