"""Packed windows for models without support for them: every document runs as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mambabyte.models.byte_lm import ByteLM, State
from mambabyte.models.states import select_rows
from mambabyte.runtime.devices import to_device


@dataclass
class _Group:
    """Documents of similar length that run as one batch."""

    index: np.ndarray  # (documents, longest) places in the flattened window, a document's last one repeated
    lengths: np.ndarray
    continued: bool  # whether they resume from the state before the window


class DocumentwiseByteLM(ByteLM):
    """A ByteLM that runs each document of a packed window separately.

    Positions, patches and states then restart with every document, so nothing can leak from one to the next.
    Documents of similar length (within a factor of two) run as one batch, padded at the end: at most log2(L)
    calls. A window that contains no document's start runs unchanged. The marks are read on the host: as an
    array (B, L) of NumPy they are there already, and nothing waits for the device.

    Attributes:
        calls_of_all: the most calls of any rank, from this one's. Where each call gathers weights from all
            ranks, as under FSDP, every rank has to make as many; None where it does not.
    """

    reads_marks_on_host = True
    calls_of_all: Callable[[int], int] | None = None

    def hidden(
        self,
        bytes: Tensor | bytes,
        state: State | None = None,
        document_start: Tensor | np.ndarray | None = None,
    ) -> Tensor:
        (hidden,) = self.each_document(
            lambda part, before: (self._read(part, before)[0],), bytes, state, document_start
        )
        return hidden

    def each_document(
        self,
        run: Callable[[Tensor, State | None], Sequence[Tensor]],
        bytes: Tensor | bytes,
        state: State | None = None,
        document_start: Tensor | np.ndarray | None = None,
    ) -> Sequence[Tensor]:
        """What `run` makes of each byte, run on each document by itself.

        Args:
            run: makes tensors (b, l, ...) of bytes (b, l) and the state before them.
            bytes, state, document_start: as in `forward`.

        Returns:
            Tensors (B, L, ...), of the bytes alone: what was computed on padding is left out.
        """
        marks = torch.from_numpy(document_start) if isinstance(document_start, np.ndarray) else document_start
        bytes = self.as_batch(bytes, state, marks)
        groups = [] if marks is None else list(_groups(marks.cpu().numpy(), state is not None))
        calls = max(1, len(groups))
        missing = 0 if self.calls_of_all is None else self.calls_of_all(calls) - calls
        if not groups:
            made = run(bytes, state)
        elif len(groups) == 1 and groups[0].index.shape == bytes.shape:
            made = run(bytes, state if groups[0].continued else None)
        else:
            made = _run_groups(run, groups, bytes, state)
        for _ in range(missing):  # in the backward pass too, and of no effect
            idle = run(bytes[:1, :1], None)[0]
            made = [made[0] + 0 * idle.sum(), *made[1:]]
        return made

    def prefill_hidden(self, bytes: Tensor | bytes, state: State | None = None) -> tuple[Tensor, State]:
        bytes = self.as_batch(bytes, state)
        return self._read(bytes, self.initial_state(len(bytes)) if state is None else state)

    def _read(self, bytes: Tensor, state: State | None) -> tuple[Tensor, State]:
        """What the heads read (B, L, d) and the state after the bytes; without a state, that one may be
        empty."""
        raise NotImplementedError


def _run_groups(
    run: Callable[[Tensor, State | None], Sequence[Tensor]],
    groups: Sequence[_Group],
    bytes: Tensor,
    state: State | None,
) -> Sequence[Tensor]:
    """What `run` makes of each byte, called once for each group."""
    flat, length = bytes.flatten(), bytes.shape[1]
    place = np.empty(len(flat), dtype=np.int64)  # of each byte among those of all groups
    made, done = [], 0
    for group in groups:
        before = None
        if group.continued and state is not None:
            before = select_rows(state, (group.index[:, 0] // length).tolist())
        index = to_device(group.index, bytes.device)
        made.append([each.flatten(0, 1) for each in run(flat[index], before)])
        valid = np.arange(group.index.shape[1]) < group.lengths[:, None]
        place[group.index[valid]] = done + np.flatnonzero(valid)
        done += group.index.size
    places = to_device(place, bytes.device)
    return [torch.cat(parts)[places].unflatten(0, bytes.shape) for parts in zip(*made, strict=True)]


def _groups(document_start: np.ndarray, has_state: bool) -> Iterator[_Group]:
    begins = document_start.copy()
    begins[:, 0] = True
    begin = np.flatnonzero(begins)
    lengths = np.diff(np.append(begin, document_start.size))
    # Only a row that does not begin with a mark resumes from the state.
    continued = has_state & ~document_start.reshape(-1)[begin]
    size_class = np.frexp(lengths - 1)[1]  # the power of two above
    for key in np.unique(np.stack([size_class, continued]), axis=1).T:
        chosen = (size_class == key[0]) & (continued == key[1])
        within = np.minimum(np.arange(lengths[chosen].max()), lengths[chosen][:, None] - 1)
        yield _Group(begin[chosen][:, None] + within, lengths[chosen], bool(key[1]))
