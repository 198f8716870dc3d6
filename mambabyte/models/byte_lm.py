"""What every model of bytes promises here: the contract that training, evaluation and generation rely on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mambabyte.models.hyperparameters import ByteLMConfig

VOCABULARY = 256
State = list[tuple[Tensor, ...]]


@dataclass(frozen=True)
class FlopsPerByte:
    """Floating-point operations per byte, a multiply-add counted as two; training is thrice inference."""

    inference: float

    @property
    def training(self) -> float:
        return 3 * self.inference


class ByteLM(nn.Module):
    """A causal language model over the 256 bytes; none of them is padding.

    recurrent: the state's size does not grow with the bytes behind it, so that a document of any length can
    be scored and continued in constant memory.
    """

    recurrent: ClassVar[bool] = False

    def __init__(self, config: ByteLMConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, bytes: Tensor, state: State | None = None, document_start: Tensor | None = None
    ) -> Tensor:
        """Logits (B, L, 256) for integer bytes (B, L); logits[:, t] predicts byte t + 1 from bytes <= t.

        `state` is what came before, from `prefill` or `step`. With `document_start` (B, L) boolean, a marked
        byte and those after it see nothing before it.
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> State:
        """The state before any byte: tensors whose first dimension is the batch."""
        raise NotImplementedError

    def prefill(self, bytes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits (B, L, 256), equal to `forward`'s wherever one cuts, and the state after the last byte."""
        raise NotImplementedError

    def step(self, byte: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (B, 256) after one more byte (B,), and the new state."""
        logits, state = self.prefill(byte.unsqueeze(1), state)
        return logits[:, 0], state

    def blocks(self) -> list[nn.Module]:
        """The layers a byte goes through, first to last, each called once in a pass: activation checkpointing
        recomputes them and FSDP gathers their weights one at a time."""
        raise NotImplementedError

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        """Analytic cost of one byte in a window of `context_length` bytes."""
        raise NotImplementedError

    def num_parameters(self) -> int:
        """Parameters, a tied one counted once."""
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
