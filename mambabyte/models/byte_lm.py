"""The interface of every model, which training, evaluation and generation rely on.

    B batch   L length   d width of what the heads read   K prediction heads

Beside the head of the next byte, a model may have further heads, of the bytes after it: K - 1 matrices
(256, d) that read the same vector as the first head's, as in EvaByte's code (OpenEvaByte/evabyte). Before an
output matrix, multi-token prediction (arXiv 2404.19737) has a Transformer layer for each head, and Medusa
(arXiv 2401.10774) a residual block (d, d). For 256 symbols the matrix alone is smaller than such a block from
d = 257 on, and nothing has to adapt a vector to it: the model is trained together with its heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from mambabyte.errors import UserError
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.runtime.devices import to_device

VOCABULARY = 256
NOT_SCORED = -100  # the target of a byte that no loss counts
State = list[tuple[Tensor, ...]]
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class FlopsPerByte:
    """Floating-point operations per byte, multiply-adds counted as two.

    inference: up to the next byte's logits. further_heads: the further heads', which training computes too.
    """

    inference: float
    further_heads: float = 0.0

    @property
    def forward(self) -> float:
        """The forward pass of a training step."""
        return self.inference + self.further_heads

    @property
    def training(self) -> float:
        """With all weights trained: three times the forward pass."""
        return 3 * self.forward


class TrainingLoss(NamedTuple):
    """What a training step minimises.

    nats: (B, L), what each target costs, in fp32 (fp64); 0 where it is not scored. Reports count these alone.
    auxiliary: a number that is minimised beside the mean of the nats; None where a model has none.
    """

    nats: Tensor
    auxiliary: Tensor | None = None


@runtime_checkable
class ReadsChunks(Protocol):
    """A model some of whose layers run once for a chunk of bytes, so that its cost depends on the bytes."""

    def chunk_rates(self, bytes: Tensor, document_start: Tensor | None = None) -> list[float]:
        """How many chunks a byte makes in each stage that makes them, the outermost first, measured on these
        bytes (B, L), without gradients."""

    def flops_per_byte(self, context_length: int, chunk_rates: Sequence[float] | None = None) -> FlopsPerByte:
        """Analytic cost of one byte at these chunk rates; None: at those that the config expects."""


class ByteLM(nn.Module):
    """A causal language model over the 256 bytes, none of which is padding.

    `recurrent` says that the state's size does not grow with the bytes read, so a document of any length can
    be scored and continued in constant memory. `reads_marks_on_host` says that `forward` needs the values of
    `document_start` on the host and takes them as an array of NumPy too, which training then gives it.

    A model implements `hidden` and `prefill_hidden`, and its constructor ends with `add_further_heads`. One
    that implements `forward` and `prefill` themselves has no further heads.
    """

    recurrent: bool = False
    reads_marks_on_host: bool = False
    lm_head: nn.Linear

    def __init__(self, config: ByteLMConfig) -> None:
        super().__init__()
        self.config = config
        self.further_heads: nn.Linear | None = None

    def add_further_heads(self) -> None:
        """Make the heads beside `lm_head` that `config.prediction_heads` asks for."""
        further = self.config.prediction_heads - 1
        if further:
            self.further_heads = nn.Linear(self.lm_head.in_features, further * VOCABULARY, bias=False)
            nn.init.normal_(self.further_heads.weight, std=0.02)

    def forward(
        self, bytes: Tensor | bytes, state: State | None = None, document_start: Tensor | None = None
    ) -> Tensor:
        """Logits (B, L, 256) for integer bytes (B, L); logits[:, t] predicts byte t + 1 from bytes <= t.

        Args:
            bytes: a tensor, or Python's `bytes` as a batch of one.
            state: the state after the bytes before these, from `prefill` or `step`; None at a beginning.
            document_start: (B, L) boolean; a marked byte and those after it see nothing before it.

        Raises:
            UserError: see `as_batch`, which every model calls on what it is given.
        """
        return self.lm_head(self.hidden(bytes, state, document_start))

    def hidden(
        self, bytes: Tensor | bytes, state: State | None = None, document_start: Tensor | None = None
    ) -> Tensor:
        """What the heads read at each byte (B, L, d); arguments and errors are those of `forward`."""
        raise NotImplementedError

    def further_logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., K - 1, 256) of the bytes after the next one, from what the heads read (..., d).

        Raises:
            UserError: the model has no further heads.
        """
        if self.further_heads is None:
            raise UserError(
                "this model has no heads for the bytes after the next one: train one with "
                "model.prediction_heads=4"
            )
        return self.further_heads(hidden).unflatten(-1, (-1, VOCABULARY))

    def training_loss(
        self, bytes: Tensor, targets: Tensor, document_start: Tensor | None = None
    ) -> TrainingLoss:
        """The cross entropy of the bytes that follow, `targets` (B, L), -100 where one is not scored; and
        what else a model has to minimise. Training calls this instead of `forward`."""
        if self.further_heads is None:
            return TrainingLoss(target_nats(self.forward(bytes, document_start=document_start), targets))
        return self.loss_of(self.hidden(bytes, document_start=document_start), targets, document_start)

    def loss_of(
        self, hidden: Tensor, targets: Tensor, document_start: Tensor | np.ndarray | None
    ) -> TrainingLoss:
        """The loss from what the heads read in a window (B, L, d).

        The auxiliary term is `further_heads_weight` times the nats of all `further_targets`, divided by the
        number of scored next bytes and by that of further heads. As not all of these targets exist, it is a
        little less than their mean; but it is the same however a step's windows are split into batches.
        """
        nats = target_nats(self.lm_head(hidden), targets)
        if self.further_heads is None:
            return TrainingLoss(nats)
        further = further_targets(targets, document_start, self.config.prediction_heads - 1)
        further_nats = target_nats(self.further_logits(hidden).flatten(1, 2), further.flatten(1, 2))
        counted = further.shape[-1] * (targets != NOT_SCORED).sum().clamp(min=1)
        return TrainingLoss(nats, self.config.further_heads_weight * further_nats.sum() / counted)

    def initial_state(self, batch_size: int) -> State:
        """The state before any byte: tensors with the batch as their first dimension. Dimensions that grow
        with the bytes read are 0 here."""
        raise NotImplementedError

    def prefill(self, bytes: Tensor | bytes, state: State | None = None) -> tuple[Tensor, State]:
        """Logits (B, L, 256), equal to `forward`'s however a window is split, and the state after the last
        byte."""
        hidden, state = self.prefill_hidden(bytes, state)
        return self.lm_head(hidden), state

    def prefill_hidden(self, bytes: Tensor | bytes, state: State | None = None) -> tuple[Tensor, State]:
        """What the heads read at each byte (B, L, d), and the state after the last one."""
        raise NotImplementedError

    def step(self, byte: Tensor | bytes, state: State) -> tuple[Tensor, State]:
        """Logits (B, 256) after one more byte (B,) of each row, and the new state."""
        logits, state = self.prefill(self.as_column(byte), state)
        return logits[:, 0], state

    def trimmed(self, state: State) -> State:
        """The state without padding that none of its rows needs: rows that were in one batch with others may
        have caches as long as theirs. Most models' rows are all alike, and have no padding."""
        return state

    def blocks(self) -> list[nn.Module]:
        """The layers in order, each called once per forward pass: activation checkpointing recomputes them,
        and FSDP gathers their weights one at a time."""
        raise NotImplementedError

    def matrices(self, block: nn.Module) -> list[nn.Module]:
        """A block's linear layers that it calls as modules: FSDP may gather their weights in bf16. One whose
        weight the block reads itself, or needs unrounded, must not be among them."""
        return [m for m in block.modules() if isinstance(m, nn.Linear) and m.bias is None]

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        """Analytic cost of one byte in a window of `context_length` bytes."""
        raise NotImplementedError

    def flops(self, inference: float) -> FlopsPerByte:
        """The cost of a byte whose logits take `inference` operations, and of its further heads."""
        further = 0 if self.further_heads is None else 2 * self.further_heads.weight.numel()
        return FlopsPerByte(float(inference), float(further))

    def uses_per_byte(self, layer: str) -> float:
        """How often the weight of the linear layer of this name is multiplied in a forward pass, per byte."""
        return 1.0

    @property
    def kind(self) -> str:
        """What reports call models like this one."""
        return type(self).__name__

    def num_parameters(self) -> int:
        """The number of parameters, with tied ones counted once."""
        return sum(p.numel() for p in self.parameters())

    def as_batch(
        self, bytes: Tensor | bytes, state: State | None = None, document_start: Tensor | None = None
    ) -> Tensor:
        """An integer tensor (B, L) as it is; Python's `bytes` as one row (1, L) on the model's device.

        Values are looked at on a CPU only: elsewhere that would wait for the device at every step.

        Raises:
            UserError: it is neither, is empty or holds what is no byte; the state or the marks are not of
                this model and these bytes.
        """
        if not isinstance(bytes, Tensor):
            bytes = self._row(bytes)
        elif bytes.ndim != 2 or bytes.dtype not in _INTEGERS:
            raise UserError(
                f"a model reads bytes or an integer tensor (batch, length), not {_described(bytes)}"
            )
        if bytes.shape[1] == 0:
            raise UserError("a model reads one byte or more, and was given none")
        self._refuse_other_values(bytes)
        if state is not None and not _fits(state, self._state_shapes, len(bytes)):
            raise UserError(
                f"this is no state of this model for a batch of {len(bytes)}: give the one that prefill or "
                "step returned for the bytes before these"
            )
        if document_start is not None and (
            not isinstance(document_start, Tensor)
            or document_start.dtype != torch.bool
            or document_start.shape != bytes.shape
        ):
            raise UserError(
                f"document_start must be a boolean tensor of shape {tuple(bytes.shape)}, as the bytes have, "
                f"not {_described(document_start)}"
            )
        return bytes

    def as_column(self, byte: Tensor | bytes) -> Tensor:
        """The next byte of each row, a tensor (B,) or Python's `bytes` of length B, as a window (B, 1).

        Raises:
            UserError: it is neither.
        """
        if not isinstance(byte, Tensor):
            return self._row(byte).T
        if byte.ndim != 1 or byte.dtype not in _INTEGERS:
            raise UserError(f"a step reads bytes or an integer tensor (batch), not {_described(byte)}")
        return byte.unsqueeze(1)

    def _row(self, data: Any) -> Tensor:
        if isinstance(data, str):
            raise UserError("a model reads bytes and no text: give it text.encode()")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise UserError(
                f"a model reads bytes or an integer tensor, not {type(data).__name__}: give it bytes(...) or "
                "torch.tensor(...)"
            )
        return torch.tensor(list(bytes(data)), dtype=torch.uint8, device=self.device)[None]

    def _refuse_other_values(self, data: Tensor) -> None:
        if data.dtype == torch.uint8 or data.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if not data.numel():
            return
        least, most = map(int, data.aminmax())
        if least < 0 or most >= VOCABULARY:
            raise UserError(
                f"bytes are from 0 to {VOCABULARY - 1}, and these hold {least if least < 0 else most}"
            )

    @cached_property
    def _state_shapes(self) -> Any:
        """The shapes of a state's tensors, without the batch, in the state's structure."""
        return _shapes(self.initial_state(0))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def target_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross entropy in nats (B, L) of targets (B, L) under logits (B, L, 256), in fp32 (fp64); 0 where a
    target is -100."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nats = cross_entropy(
        logits.flatten(0, 1), targets.long().flatten(), ignore_index=NOT_SCORED, reduction="none"
    )
    return nats.view(targets.shape)


def further_targets(targets: Tensor, document_start: Tensor | np.ndarray | None, heads: int) -> Tensor:
    """The targets (B, L, heads) of the bytes after the next one, from those of the next byte (B, L).

    Head k, counted from 1 for the next byte, has at place t the target of place t + k - 1. There is none
    (-100) where that place is not scored or not in the window, or where a document starts at one of the
    places t + 1 to t + k - 1, so that the byte is of another document.
    """
    length = targets.shape[1]
    if isinstance(document_start, np.ndarray):
        document_start = to_device(document_start, targets.device)
    ahead = pad(targets, (0, heads), value=NOT_SCORED)
    # one after the other the documents have the numbers 0, 1, 2, ..
    document = None if document_start is None else pad(document_start.cumsum(1), (0, heads), value=-1)
    found = []
    for shift in range(1, heads + 1):
        its = ahead[:, shift : shift + length]
        if document is not None:
            its = its.masked_fill(document[:, shift : shift + length] != document[:, :length], NOT_SCORED)
        found.append(its)
    return torch.stack(found, dim=-1)


def _shapes(state: Any) -> Any:
    return [_shapes(part) for part in state] if isinstance(state, (list, tuple)) else state.shape[1:]


def _fits(state: Any, shapes: Any, batch: int) -> bool:
    """Whether a state has these shapes, of which the dimensions of size 0 may have grown."""
    if isinstance(shapes, torch.Size):
        if not isinstance(state, Tensor) or state.ndim != len(shapes) + 1 or state.shape[0] != batch:
            return False
        here = state.shape[1:]
        return here == shapes or all(size in (0, now) for size, now in zip(shapes, here, strict=True))
    same = isinstance(state, (list, tuple)) and len(state) == len(shapes)
    return same and all(_fits(part, shape, batch) for part, shape in zip(state, shapes, strict=True))


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
