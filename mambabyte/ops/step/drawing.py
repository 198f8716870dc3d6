"""Bytes drawn on the device, one after the other, and read from it in chunks while it goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from mambabyte.ops.step import triton_kernels as kernels
from mambabyte.ops.step.cpu import EmbeddingWeights, MambaWeights, State
from mambabyte.ops.step.triton import Launch, TritonStep, recorded

CHUNK = 32  # bytes of each row that are read at a time; the device is one chunk ahead


class TritonDrawing:
    """Draws bytes for each row of a batch: the draw and the step after it are one CUDA graph, and the byte
    stays on the device. The same arguments give the same bytes on the same kind of device, and a row's do not
    depend on how many others there are if their number chooses the same kernels (see `TritonStep`).

    Args:
        history: the state of the n-grams (B, n - 1), if there are any.
        layers: the state of the layers, with the history after the bytes so far.
        logits: (B, V), of the first byte to draw.
        temperature, top_k, top_p, seed: as `mambabyte.generation.Sampler` has them.
        storage: as for `TritonStep`.

    Raises:
        ValueError: a state of another shape.
    """

    def __init__(
        self, weights: MambaWeights, embedding: EmbeddingWeights, history: Tensor | None, layers: State,
        logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, seed: int,
        storage: str = "fp32",
    ) -> None:  # fmt: skip
        device, batch = logits.device, len(logits)
        self._step = TritonStep(weights, embedding, batch, storage)
        self._position = torch.zeros(batch, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(2 * CHUNK, batch, dtype=torch.int16, device=device)
        buffers = self._step.logits, self._step.symbols, self._position, self._drawn
        self._draw = draw_launch(*buffers, temperature, top_k, top_p, seed)
        self._replay = recorded(self._once, device)
        self._step.load(history, layers)
        self._step.logits.copy_(logits)
        self._position.zero_()
        self._begun = 0

    def _once(self) -> None:
        self._draw()
        self._step()

    def chunks(self, count: int) -> Iterator[Tensor]:
        """The next `count` bytes of each row, as CPU tensors (n, B) of int16 in which -1 stands for a byte
        that logits without probabilities (NaN, infinity) did not give. A chunk is yielded when the device has
        drawn it; the next one is under way then."""
        waiting = deque[tuple[Tensor, torch.cuda.Event | None]]()
        while count or waiting:
            while count and len(waiting) < 2:
                first = self._begun % len(self._drawn)
                number = min(CHUNK - first % CHUNK, count)
                for _ in range(number):
                    self._replay()
                waiting.append(_copied(self._drawn[first : first + number]))
                self._begun, count = self._begun + number, count - number
            chunk, done = waiting.popleft()
            if done is not None:
                done.synchronize()
            yield chunk


def draw_launch(
    logits: Tensor, symbols: Tensor, position: Tensor, drawn: Tensor,
    temperature: float, top_k: int | None, top_p: float | None, seed: int,
) -> Launch:  # fmt: skip
    """Draws a byte for each row of logits (B, V), where V is a power of two: see `sample_kernel`."""
    vocabulary = logits.shape[1]

    def number(value: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([value], dtype=dtype, device=logits.device)

    return Launch(
        kernels.sample_kernel, (len(logits),), 8, logits, symbols, position, drawn,
        number(temperature, torch.float64), number(2.0 if top_p is None else top_p, torch.float64),
        number(top_k or vocabulary, torch.int64), number(seed, torch.int64), len(drawn),
        LONGEST=symbols.shape[1], SYMBOLS=vocabulary, CHUNK=min(16, vocabulary),
    )  # fmt: skip


def _copied(tensor: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the CPU, and the event after which it is there, if it has to be waited for."""
    if tensor.device.type != "cuda":
        return tensor.clone(), None
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    with torch.cuda.device(tensor.device):
        copy.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
    return copy, done
