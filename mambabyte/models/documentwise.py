"""Packed windows for models that know nothing of them: every document is run as if it stood alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mambabyte.models.byte_lm import ByteLM, State
from mambabyte.models.states import select_rows


@dataclass
class _Group:
    """Stretches of like length: where each stands in the flattened window, and if a state precedes them."""

    index: np.ndarray  # (stretches, longest) places in the flattened window, each stretch's last one repeated
    lengths: np.ndarray
    continued: bool


class DocumentwiseByteLM(ByteLM):
    """A ByteLM that runs the documents of a packed window each by itself.

    Positions, patches and states then begin anew with every document, whatever the model does with them, and
    nothing can leak. Documents of like length (within a factor of two) are run together, padded behind: at
    most log2(L) calls. A window without a document's start inside runs as it is. The marks are read on the
    host.
    """

    def forward(
        self, bytes: Tensor, state: State | None = None, document_start: Tensor | None = None
    ) -> Tensor:
        if document_start is None:
            return self._run(bytes, state)[0]
        groups = list(_groups(document_start.cpu().numpy(), state is not None))
        if len(groups) == 1 and groups[0].index.shape == bytes.shape:
            return self._run(bytes, state if groups[0].continued else None)[0]
        return _run_groups(self._run, bytes, state, groups)

    def prefill(self, bytes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        return self._run(bytes, self.initial_state(len(bytes)) if state is None else state)

    def _run(self, bytes: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Logits (B, L, 256) and the state after the bytes; from None the state may be left out."""
        raise NotImplementedError


def _groups(document_start: np.ndarray, has_state: bool) -> Iterator[_Group]:
    begins = document_start.copy()
    begins[:, 0] = True
    begin = np.flatnonzero(begins)
    lengths = np.diff(np.append(begin, document_start.size))
    # only what no mark begins goes on from the state; a row's first byte may carry a mark too
    continued = has_state & ~document_start.reshape(-1)[begin]
    size_class = np.frexp(lengths - 1)[1]  # the power of two above
    for key in np.unique(np.stack([size_class, continued]), axis=1).T:
        chosen = (size_class == key[0]) & (continued == key[1])
        within = np.minimum(np.arange(lengths[chosen].max()), lengths[chosen][:, None] - 1)
        yield _Group(begin[chosen][:, None] + within, lengths[chosen], bool(key[1]))


def _run_groups(
    run: Callable[[Tensor, State | None], tuple[Tensor, State]],
    bytes: Tensor,
    state: State | None,
    groups: list[_Group],
) -> Tensor:
    """Logits (B, L, 256): every group's, put back where its bytes stand."""
    flat, length = bytes.flatten(), bytes.shape[1]
    place = np.empty(bytes.numel(), dtype=np.int64)
    logits, done = [], 0
    for group in groups:
        count, longest = group.index.shape
        before = None
        if group.continued and state is not None:
            before = select_rows(state, (group.index[:, 0] // length).tolist())
        index = torch.from_numpy(group.index).to(bytes.device)
        logits.append(run(flat[index], before)[0].flatten(0, 1))
        valid = np.arange(longest) < group.lengths[:, None]
        place[group.index[valid]] = done + np.flatnonzero(valid)
        done += count * longest
    return torch.cat(logits)[torch.from_numpy(place).to(bytes.device)].unflatten(0, bytes.shape)
