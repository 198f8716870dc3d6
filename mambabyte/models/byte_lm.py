"""The interface of every model, which training, evaluation and generation rely on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mambabyte.errors import UserError
from mambabyte.models.hyperparameters import ByteLMConfig

VOCABULARY = 256
State = list[tuple[Tensor, ...]]


@dataclass(frozen=True)
class FlopsPerByte:
    """Floating-point operations per byte, multiply-adds counted as two; training is three times inference."""

    inference: float

    @property
    def training(self) -> float:
        return 3 * self.inference


class ByteLM(nn.Module):
    """A causal language model over the 256 bytes, none of which is padding.

    `recurrent` says that the state's size does not grow with the bytes read, so a document of any length can
    be scored and continued in constant memory.
    """

    recurrent: ClassVar[bool] = False

    def __init__(self, config: ByteLMConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, bytes: Tensor | bytes, state: State | None = None, document_start: Tensor | None = None
    ) -> Tensor:
        """Logits (B, L, 256) for integer bytes (B, L); logits[:, t] predicts byte t + 1 from bytes <= t.

        Args:
            bytes: a tensor, or Python's `bytes` as a batch of one.
            state: the state after the bytes before these, from `prefill` or `step`; None at a beginning.
            document_start: (B, L) boolean; a marked byte and those after it see nothing before it.
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> State:
        """The state before any byte: tensors with the batch as their first dimension."""
        raise NotImplementedError

    def prefill(self, bytes: Tensor | bytes, state: State | None = None) -> tuple[Tensor, State]:
        """Logits (B, L, 256), equal to `forward`'s however a window is split, and the state after the last
        byte."""
        raise NotImplementedError

    def step(self, byte: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (B, 256) after one more byte (B,), and the new state."""
        logits, state = self.prefill(byte.unsqueeze(1), state)
        return logits[:, 0], state

    def blocks(self) -> list[nn.Module]:
        """The layers in order, each called once per forward pass: activation checkpointing recomputes them,
        and FSDP gathers their weights one at a time."""
        raise NotImplementedError

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        """Analytic cost of one byte in a window of `context_length` bytes."""
        raise NotImplementedError

    def num_parameters(self) -> int:
        """The number of parameters, with tied ones counted once."""
        return sum(p.numel() for p in self.parameters())

    def as_batch(self, bytes: Tensor | bytes) -> Tensor:
        """An integer tensor (B, L) as it is; Python's `bytes` as one row (1, L) on the model's device.

        Raises:
            UserError: it is neither.
        """
        if isinstance(bytes, Tensor):
            if bytes.ndim != 2 or bytes.is_floating_point():
                raise UserError(
                    f"a model reads bytes or an integer tensor (batch, length), not {bytes.dtype} of shape "
                    f"{tuple(bytes.shape)}"
                )
            return bytes
        if isinstance(bytes, str):
            raise UserError("a model reads bytes and no text: give it text.encode()")
        return torch.frombuffer(bytearray(bytes), dtype=torch.uint8)[None].to(self.device)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
