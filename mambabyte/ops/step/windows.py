"""Rows that go on from a state by the fused CPU step: windows of several bytes, and the way back."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from mambabyte.ops.step.cpu import PreparedMamba, State, layer_states
from mambabyte.ops.step.rows import NO_WINDOW, check_batch, check_counts, check_rows

READ_POSITIONS = 512  # bytes that `read` gives the kernel at a time, of all rows together


class MambaStepper:
    """Rows that go on from a state. One call of the kernel reads L bytes of each of B rows and gives the same
    bits as L calls that read one, whatever other rows there are and at any number of threads. V vocabulary,
    n the longest n-gram.

    Steps and prompts overwrite the state. A window writes another one beside it and leaves what went into
    each layer's convolution and scan, so that `keep` needs no product: see `MambaRecurrence` in the C++
    source.

    Args:
        weights: prepared with their embedding.
        state: the n-grams' (B, n - 1), if there are any, and that of the layers. It is copied.
        keep_hidden: whether to keep `hidden`.

    Attributes:
        hidden: what the head has read for the logits that the last call returned: as those, with d for V.

    Raises:
        ValueError: a state of another shape; in all calls, what does not fit the rows, which changes nothing.
    """

    def __init__(self, weights: PreparedMamba, state: State, keep_hidden: bool = False) -> None:
        if not weights.embeds:
            raise ValueError("a stepper of bytes needs weights that were prepared with their embedding")
        self._weights, self._rows = weights, 0
        self._now = _Memory(weights, 0)
        self._before: _Memory | None = None  # the state before the last window, or memory for the next one
        self._window: Tensor | None = None  # its bytes
        self._inputs = torch.empty(0)
        self._keeps_hidden = keep_hidden
        self.hidden: Tensor | None = None
        self.append(state)

    def __call__(self, byte: Tensor) -> Tensor:
        """Logits (B, V) after one more byte (B,) of each row."""
        if byte.ndim != 1:
            raise ValueError(f"byte must have the shape ({self._rows},), not {tuple(byte.shape)}")
        return self._overwrite(self._checked(byte.unsqueeze(1)))

    def window(self, bytes: Tensor) -> Tensor:
        """Logits (B, L, V) after each of these bytes (B, L), which `keep` can take back until the next call
        that reads, selects or appends."""
        bytes = self._checked(bytes).clone()  # `keep` reads them again
        after, inputs = self._before, self._inputs
        if after is None:
            after = _Memory(self._weights, self._now.capacity)
        size = bytes.numel() * self._weights.inputs_per_byte
        if len(inputs) < size:
            inputs = torch.empty(size)
        logits = self._logits(bytes, False, inputs=inputs.data_ptr(), **self._now.to(after))
        self._now, self._before, self._inputs, self._window = after, self._now, inputs, bytes
        return logits

    def keep(self, counts: Sequence[int]) -> None:
        """Go on from the state after the first `counts[b]` bytes, 0 to L, of each row b's last window."""
        if self._window is None or self._before is None:
            raise ValueError(NO_WINDOW)
        length = self._window.shape[1]
        check_counts(counts, self._rows, length)
        if any(count < length for count in counts):
            kept = torch.tensor(counts, dtype=torch.int64)
            self._weights.replay(
                self._rows, length, bytes=self._window.data_ptr(), inputs=self._inputs.data_ptr(),
                counts=kept.data_ptr(), **self._before.to(self._now),
            )  # fmt: skip
        self._window = None

    def read(self, bytes: Tensor) -> Tensor:
        """Logits (B, V) after the last of these bytes (B, L), in memory that does not grow with L."""
        bytes = self._checked(bytes)
        parts = bytes.split(max(1, READ_POSITIONS // self._rows), dim=1)
        if len(parts) > 1:  # else the kernel looks
            self._weights.check_bytes(bytes)
        for part in parts:
            logits = self._overwrite(part.contiguous())
        return logits

    def state(self, rows: Sequence[int] | None = None) -> State:
        """A copy of the state of these rows, or of all."""
        rows = list(range(self._rows) if rows is None else rows)
        check_rows(rows, self._rows)
        (history,), conv, scan = ([layer[rows] for layer in tensor] for tensor in self._now.tensors)
        layers: State = list(zip(conv, scan, strict=True))
        return layers if self._weights.longest == 1 else [(history,), *layers]

    def rows(self) -> int:
        """B."""
        return self._rows

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one that is named several times goes on as several rows. Only rows
        that change their place are copied."""
        check_rows(rows, self._rows)
        self._reserve(len(rows))
        places = [place for place, row in enumerate(rows) if place != row]
        if places:
            moved = [rows[place] for place in places]
            for tensor in self._now.tensors:
                tensor[:, places] = tensor[:, moved]
        self._rows, self._window = len(rows), None

    def append(self, state: State) -> None:
        """Let the rows of another state follow at the end."""
        ngrams = int(self._weights.longest > 1)
        history, layers = [tensor for (tensor,) in state[:ngrams]], state[ngrams:]
        first, last = self._rows, self._rows + len(state[0][0])
        self._weights.check(last - first, layers)
        if any(tensor.shape != (last - first, self._weights.longest - 1) for tensor in history):
            raise ValueError(f"the state of the n-grams must have {self._weights.longest - 1} columns")
        self._reserve(last)
        for memory, given in zip(self._now.tensors, [history, *zip(*layers, strict=True)], strict=True):
            for ours, tensor in zip(memory, given, strict=False):
                ours[first:last] = tensor.detach()
        self._rows, self._window = last, None

    def _overwrite(self, bytes: Tensor) -> Tensor:
        logits = self._logits(bytes, True, **self._now.to(self._now))
        self._window = None
        return logits

    def _logits(self, bytes: Tensor, last_only: bool, **pointers: int) -> Tensor:
        if self._keeps_hidden:
            shape = bytes.shape[:1] if last_only else bytes.shape
            self.hidden = torch.empty(*shape, self._weights.d_model)
            pointers["hidden"] = self.hidden.data_ptr()
        pointers["bytes"] = bytes.data_ptr()
        return self._weights.logits(self._rows, bytes.shape[1], last_only, **pointers)

    def _checked(self, bytes: Tensor) -> Tensor:
        check_batch(len(bytes), self._rows)
        if bytes.ndim != 2 or bytes.shape[1] == 0:
            raise ValueError(f"bytes must have the shape ({self._rows}, 1 or more), not {tuple(bytes.shape)}")
        return bytes.to(torch.int64).contiguous()

    def _reserve(self, rows: int) -> None:
        """Memory for so many rows, with some to spare if there is not enough."""
        if rows > self._now.capacity:
            more = _Memory(self._weights, max(rows, 2 * self._now.capacity))
            for tensor, ours in zip(self._now.tensors, more.tensors, strict=True):
                ours[:, : self._rows] = tensor[:, : self._rows]
            self._now, self._before = more, None


class _Memory:
    """A state for `capacity` rows: the n-grams' (1, capacity, n - 1), and of all layers the convolution's
    (layers, capacity, W - 1, D) and the scan's (layers, capacity, D, N)."""

    def __init__(self, weights: PreparedMamba, capacity: int) -> None:
        self.capacity = capacity
        self.tensors = [
            torch.empty(1, capacity, weights.longest - 1, dtype=torch.int64),
            *(torch.empty(weights.layers, capacity, *shape) for shape in weights.layer_shapes),
        ]
        self._addresses = [[layer.data_ptr() for layer in tensor] for tensor in self.tensors[1:]]
        self._in_place = self._pointers = self._layer_states(self)

    def to(self, after: _Memory) -> dict[str, int]:
        """The fields of `Arguments` for a call from this state to another one, or to itself."""
        # Kept as long as they are used.
        self._pointers = self._in_place if after is self else self._layer_states(after)
        return {
            "state": ctypes.addressof(self._pointers),
            "history": self.tensors[0].data_ptr(),
            "next_history": after.tensors[0].data_ptr(),
        }

    def _layer_states(self, after: _Memory) -> ctypes.Array:
        both = zip(*self._addresses, *after._addresses, strict=True)
        return layer_states(address for layer in both for address in layer)
