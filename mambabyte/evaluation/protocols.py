"""Which context each byte is predicted from.

A protocol scores every byte of every document but the first, exactly once, and returns nats per document.
Long windows come first, so that those of one batch are of like length and little is computed on padding,
which stands only behind the bytes of a document, where a causal model cannot see it.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mambabyte.models import ByteLM

Progress = Callable[[int], None]


def disjoint(
    model: ByteLM, documents: Sequence[np.ndarray], context_length: int, batch_size: int, progress: Progress
) -> np.ndarray:
    """Windows of ``context_length`` predictions, each from a fresh state and one byte of earlier context.

    Returns:
        (len(documents),) float64 nats.
    """
    nats = np.zeros(len(documents))
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    owner = np.repeat(np.arange(len(documents)), -(-(lengths - 1) // context_length))
    first = np.concatenate(([0], np.cumsum(np.bincount(owner, minlength=len(documents)))))[owner]
    start = 1 + (np.arange(len(owner)) - first) * context_length
    scored = np.minimum(context_length, lengths[owner] - start)
    order = np.argsort(-scored, kind="stable")
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        windows = [documents[owner[i]][start[i] - 1 : start[i] + scored[i]] for i in chosen]
        inputs, targets = _pad(windows, model)
        window_nats = _nats(model(inputs), targets, scored[chosen])
        np.add.at(nats, owner[chosen], window_nats)
        progress(int(scored[chosen].sum()))
    return nats


def stateful(
    model: ByteLM, documents: Sequence[np.ndarray], chunk_length: int, batch_size: int, progress: Progress
) -> np.ndarray:
    """Each byte from all bytes before it in its document: the state is carried from chunk to chunk.

    ``batch_size`` documents are in flight; one that ends gives its place, with a fresh state, to the next.
    Memory does not grow with the documents' length.

    Returns:
        (len(documents),) float64 nats.
    """
    nats = np.zeros(len(documents))
    waiting = [int(i) for i in np.argsort([-len(document) for document in documents], kind="stable")]
    waiting = [i for i in waiting if len(documents[i]) > 1][::-1]
    active = [
        [waiting.pop(), 1] for _ in range(min(batch_size, len(waiting)))
    ]  # (document, next byte to score)
    state = model.initial_state(len(active)) if active else None
    while active:
        windows = [documents[i][position - 1 : position + chunk_length] for i, position in active]
        inputs, targets = _pad(windows, model)
        scored = np.array([len(window) - 1 for window in windows])
        logits, state = model.prefill(inputs, state)
        nats[[i for i, _ in active]] += _nats(logits, targets, scored)
        progress(int(scored.sum()))
        kept, fresh = [], []
        for row, (slot, count) in enumerate(zip(active, scored, strict=True)):
            slot[1] += int(count)
            if slot[1] == len(documents[slot[0]]) and waiting:
                slot[:] = [waiting.pop(), 1]
                fresh.append(row)
            if slot[1] < len(documents[slot[0]]):
                kept.append(row)
        state = _restart_rows(state, model, fresh)
        if len(kept) < len(active):
            active = [active[row] for row in kept]
            state = _map(itemgetter(kept), state)
    return nats


def _pad(windows: list[np.ndarray], model: ByteLM) -> tuple[Tensor, Tensor]:
    """Inputs and targets (batch, longest window - 1) int64 on the model's device, zero behind each window."""
    block = np.zeros((len(windows), max(map(len, windows))), dtype=np.int64)
    for row, window in zip(block, windows, strict=True):
        row[: len(window)] = window
    on_device = torch.from_numpy(block).to(model.device)
    return on_device[:, :-1], on_device[:, 1:]


def _nats(logits: Tensor, targets: Tensor, scored: np.ndarray) -> np.ndarray:
    """(batch,) float64: log-softmax in float32, summed in float64 over a row's first ``scored`` positions."""
    log_probabilities = torch.log_softmax(logits.float(), dim=-1).gather(-1, targets[..., None])[..., 0]
    rows = log_probabilities.cpu().double().numpy()
    # summed row by row over exactly the scored positions: the padding's length must not change the rounding
    return np.array([-row[:count].sum() for row, count in zip(rows, scored, strict=True)])


def _restart_rows(state: Any, model: ByteLM, rows: list[int]) -> Any:
    if not rows:
        return state
    fresh = model.initial_state(len(rows))

    def restart(carried: Tensor, new: Tensor) -> Tensor:
        return carried.index_copy(0, torch.tensor(rows, device=carried.device), new.to(carried.dtype))

    return _map(restart, state, fresh)


def _map(function: Callable[..., Tensor], *trees: Any) -> Any:
    """Apply ``function`` to the tensors of states of one structure: (lists and tuples of) tensors."""
    first = trees[0]
    if isinstance(first, (list, tuple)):
        return type(first)(_map(function, *children) for children in zip(*trees, strict=True))
    return function(*trees)
