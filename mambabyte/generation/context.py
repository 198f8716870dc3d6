"""What a model has read: its state, from which it goes on as often as one likes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mambabyte.checkpoints import weights_fingerprint
from mambabyte.errors import UserError
from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import State
from mambabyte.runtime.atomic_write import atomic_write

CHUNK = 1024  # bytes of a prompt that are read at a time
# A model needs at least one byte to predict the next from; the start of a line is the most neutral choice.
EMPTY_PROMPT = b"\n"
_TAIL = 64  # bytes that are kept of the text: as many as any sampler looks back
_RECENT = 1 << 17
_FORMAT = "mambabyte state 1"


@dataclass(frozen=True)
class Context:
    """What a model has read so far.

    state: the model's, of one row.
    logits: (1, 256), of the next byte.
    length: the bytes read.
    tail: the last 64 of them.
    recent: the last 128 KiB of them, for drafters; of those before a saved context, the tail alone.
    """

    state: State
    logits: Tensor
    length: int
    tail: bytes
    recent: bytes = b""

    def extended(self, data: bytes, state: State, logits: Tensor) -> Context:
        """The context after these bytes too, with the model's state and logits then."""
        tail, recent = (self.tail + data)[-_TAIL:], (self.recent + data)[-_RECENT:]
        return Context(state, logits, self.length + len(data), tail, recent)


def read(model: ByteLM, data: bytes, context: Context | None = None) -> Context:
    """Read bytes, as many as one likes, in chunks: a recurrent model's memory does not grow with them.

    Args:
        context: what comes before them; nothing if it is left out. Where there are no bytes at all, the model
            reads a line feed.

    Raises:
        UserError: see `ByteLM.as_batch`.
    """
    pieces = (data[first : first + CHUNK] for first in range(0, len(data), CHUNK))
    with in_eval_mode(model):
        for after in read_pieces(model, pieces, context):
            context = after
    return context or read(model, EMPTY_PROMPT)


@contextmanager
def in_eval_mode(model: ByteLM) -> Iterator[None]:
    """Have the model in eval mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def read_pieces(model: ByteLM, pieces: Iterable[bytes], context: Context | None = None) -> Iterator[Context]:
    """Read bytes as they come, and yield the context after each piece. The model must be in eval mode."""
    for piece in pieces:
        if not piece:
            continue
        logits, state = model.prefill(model.as_batch(piece), None if context is None else context.state)
        last = logits[:, -1].clone()  # so that the other positions' are freed
        before = Context(state, last, 0, b"") if context is None else context
        context = before.extended(piece, state, last)
        yield context


def save_context(path: str | Path, model: ByteLM, context: Context) -> None:
    """Write a context to a file of safetensors, which `load_context` reads for the same weights.

    Raises:
        UserError: it cannot be written.
    """
    tensors = {"logits": context.logits, **_named(context.state)}
    metadata = {
        "format": _FORMAT,
        "weights": weights_fingerprint(model),
        "length": str(context.length),
        "tail": context.tail.hex(),
    }
    content = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, metadata)
    try:
        with atomic_write(Path(path)) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"the state cannot be written to '{path}': {error.strerror or error}") from error


def load_context(path: str | Path, model: ByteLM) -> Context:
    """Read what `save_context` wrote, onto the model's device.

    Raises:
        UserError: there is no such file, it is none of ours or damaged, or of a model with other weights.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file '{path}' with a saved state")
    try:
        with safe_open(path, "pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UserError(f"'{path}' holds no saved state: generate writes one with save_state=FILE")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        length, tail = int(metadata["length"]), bytes.fromhex(metadata["tail"])
        of_these_weights = metadata["weights"] == weights_fingerprint(model)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"'{path}' is damaged and cannot be read: {error}") from error
    if not of_these_weights:
        raise UserError(
            f"'{path}' is the state of a model with other weights: read the prompt again with this one"
        )
    try:
        logits = tensors.pop("logits").to(model.device)
        state = _rebuilt(model.initial_state(1), tensors, model.device)
        model.as_batch(EMPTY_PROMPT, state)
        if tensors or logits.shape != (1, 256) or len(tail) > min(length, _TAIL):
            raise KeyError
        _try(model, state)
    except (KeyError, UserError, RuntimeError, IndexError) as error:
        raise UserError(f"'{path}' is damaged: it holds no state of this model") from error
    return Context(state, logits, length, tail, tail)


@torch.no_grad()
def _try(model: ByteLM, state: State) -> None:
    """Have the model go on from it: caches may not fit one another, and bytes in them be none."""
    with in_eval_mode(model), suppress(UserError):  # a text that is as long as the model's can be
        model.prefill(EMPTY_PROMPT * _TAIL, state)


def _named(state: Any, name: str = "state") -> dict[str, Tensor]:
    if isinstance(state, Tensor):
        return {name: state}
    return {key: t for i, part in enumerate(state) for key, t in _named(part, f"{name}.{i}").items()}


def _rebuilt(like: Any, tensors: dict[str, Tensor], device: torch.device, name: str = "state") -> Any:
    """The tensors, which it removes, in the structure of another state; KeyError if a dtype differs."""
    if isinstance(like, Tensor):
        if tensors[name].dtype != like.dtype:
            raise KeyError(name)
        return tensors.pop(name).to(device)
    return type(like)(_rebuilt(part, tensors, device, f"{name}.{i}") for i, part in enumerate(like))
