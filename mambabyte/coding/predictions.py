"""The model's predictions of the next bytes of many segments, the same for encoder and decoder.

A file is cut into segments, up to ``lanes`` of which are in flight: one `ByteLM.step` on a batch predicts one
more byte of each. Which bytes share a batch follows from the segments' lengths alone, so the decoder repeats
the encoder's computation exactly: the same shapes, the same rows, the same order.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from mambabyte.errors import UserError
from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import VOCABULARY
from mambabyte.models.states import map_tensors, select_rows

MAX_LANES = 64
_ALIGNMENT = 64  # bytes; that of PyTorch's memory on a CPU
Predictions = Generator[tuple[np.ndarray, np.ndarray], np.ndarray, None]


def predictions(model: ByteLM, lengths: Sequence[int], lanes: int, window: int | None) -> Predictions:
    """Yield (positions (n,), probabilities (n, 256) float64) of bytes to code; send back the bytes (n,).

    Positions count from the start of the first segment. A segment's first byte is predicted uniformly; every
    later one from all bytes before it in its segment or, with ``window``, from those since the last multiple
    of ``window``. So documents as segments cost what the protocol ``stateful`` measures, or ``disjoint`` with
    ``window``. With ``window`` new segments only begin where windows begin, because the size of a model's
    state may depend on the position in the window.

    Raises:
        UserError: the model gives no probabilities, or without ``window`` has a state that grows.
    """
    if window is None and not model.recurrent:
        raise UserError(
            f"the state of {model.kind} grows with what it has read: it compresses in windows only"
        )
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
    starts = ends - lengths
    longest_first = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    waiting = [int(i) for i in longest_first if lengths[i] > 0][::-1]
    position = end = last_byte = np.zeros(0, dtype=np.int64)
    state = model.initial_state(0)
    place = 0  # within the window
    while len(position) or waiting:
        at_start = window is None or place == 0
        if at_start and waiting and len(position) < lanes:
            new = [waiting.pop() for _ in range(min(lanes - len(position), len(waiting)))]
            first = yield starts[new], np.full((len(new), VOCABULARY), 1 / VOCABULARY)
            position = np.concatenate((position, starts[new] + 1))
            end = np.concatenate((end, ends[new]))
            last_byte = np.concatenate((last_byte, first))
            if window is None:
                state = map_tensors(lambda *rows: torch.cat(rows), state, model.initial_state(len(new)))
        if at_start and window is not None:
            state = model.initial_state(len(position))
        going = np.flatnonzero(position < end)
        if len(going) < len(position):
            position, end, last_byte = position[going], end[going], last_byte[going]
            state = select_rows(state, going.tolist())
        if not len(position):
            place = 0
            continue
        logits, state = model.step(torch.from_numpy(last_byte).to(model.device), state)
        last_byte = (yield position, _probabilities(logits)).astype(np.int64)
        position = position + 1
        place = 0 if window is None else (place + 1) % window


def _probabilities(logits: torch.Tensor) -> np.ndarray:
    values = logits.cpu().double().numpy()
    if values.shape[1] != VOCABULARY or not np.isfinite(values).all():
        raise UserError(
            "the model gives no probabilities of 256 bytes (NaN, infinite values or another vocabulary): "
            "choose another checkpoint"
        )
    odds = np.exp(values - values.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


@contextmanager
def fixed_arithmetic(model: ByteLM, threads: int) -> Iterator[None]:
    """Eval mode and a fixed number of threads: how a sum is divided among threads affects its rounding. So
    does where a weight begins: those that a mapped file has put askew are moved."""
    before, was_training = torch.get_num_threads(), model.training
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % _ALIGNMENT:
            parameter.data = parameter.data.clone()
    torch.set_num_threads(threads)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        torch.set_num_threads(before)
