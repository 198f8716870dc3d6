"""What the model expects of the next bytes of many segments: the same for the encoder and the decoder.

A file is cut into segments, and up to ``lanes`` of them are in flight: one `ByteLM.step` on a batch predicts
one more byte of each. Which bytes stand in which batch follows from the segments' lengths alone, so that the
decoder repeats the encoder's computation exactly: the same shapes, the same rows, the same order.
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
Predictions = Generator[tuple[np.ndarray, np.ndarray], np.ndarray, None]


def predictions(model: ByteLM, lengths: Sequence[int], lanes: int, window: int | None) -> Predictions:
    """Yield (positions (n,), probabilities (n, 256) float64) of bytes to code; send back the bytes (n,).

    Positions count from the start of the first segment. A segment's first byte is expected with probability
    1/256 each; every later one from all those before it in its segment, or, with ``window``, from those since
    the last multiple of ``window``. So segments that are documents cost what the protocol ``stateful`` finds,
    or ``disjoint`` with windows. With windows the lanes keep step: new segments begin where windows begin,
    as the state of a model may be of another size at every place of its window.

    Raises:
        UserError: the model gives no probabilities, or without ``window`` has a state that grows.
    """
    if window is None and not model.recurrent:
        raise UserError(
            f"the state of {type(model).__name__} grows with what it has read: it compresses in windows only"
        )
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
    starts = ends - lengths
    longest_first = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    waiting = [int(i) for i in longest_first if lengths[i] > 0][::-1]
    position, end = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    last_byte = np.zeros(0, dtype=np.int64)
    state = model.initial_state(0)
    place = 0  # in the window
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
    """The model in eval mode on so many threads: how a sum is shared out decides how it is rounded."""
    before, was_training = torch.get_num_threads(), model.training
    torch.set_num_threads(threads)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        torch.set_num_threads(before)
