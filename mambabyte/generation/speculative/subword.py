"""A subword Mamba as the drafter (MambaByte, arXiv 2401.13660, section 3)."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mambabyte.checkpoints.formats.layout import check_file, read_json
from mambabyte.errors import UserError
from mambabyte.generation.sampler import Draws
from mambabyte.generation.speculative.drafter import Guess
from mambabyte.generation.speculative.subword_tokenizer import BOUNDARIES, SubwordTokenizer
from mambabyte.models.byte_lm import State
from mambabyte.models.subword_mamba import SubwordMamba, subword_config
from mambabyte.runtime.atomic_write import atomic_folder
from mambabyte.runtime.valid_json import valid_json

_CONFIG, _WEIGHTS, _TOKENIZER = "drafter.json", "model.safetensors", "tokenizer.json"
_SHAPE = ("d_model", "n_layer", "d_state")  # what the config says beside the vocabulary
_CHUNK = 1024  # tokens that are read at a time
_FEW = 8  # tokens that are read one by one
_LONGEST_WORD = 256  # bytes: what has no boundary, such as base64, is read on in parts, not remembered whole
_MARGINS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)  # nats; a wider margin is the next kind
_WITHIN = 100  # added to the kind of the bytes of a token after the first


def is_subword_drafter(path: Path) -> bool:
    """Whether this is a folder that `save_subword_drafter` wrote."""
    return (path / _CONFIG).is_file()


def save_subword_drafter(folder: Path, model: SubwordMamba, tokenizer: SubwordTokenizer) -> None:
    """Write a folder, which must not be there.

    Raises:
        OSError: it cannot be written.
    """
    config = {"vocabulary": model.vocabulary, **{name: getattr(model.config, name) for name in _SHAPE}}
    with atomic_folder(folder) as temporary:
        (temporary / _CONFIG).write_text(valid_json(config, indent=2) + "\n")
        weights = {name: t.contiguous() for name, t in model.state_dict().items() if name != "lm_head.weight"}
        save_file(weights, temporary / _WEIGHTS)
        tokenizer.save(temporary / _TOKENIZER)


def load_subword_drafter(folder: Path, device: torch.device) -> SubwordDrafter:
    """The drafter that `save_subword_drafter` wrote.

    Raises:
        UserError: a file of it is missing or damaged, or they do not belong together.
    """
    described = read_json(folder / _CONFIG)
    tokenizer = SubwordTokenizer.load(folder / _TOKENIZER)
    check_file(folder / _WEIGHTS)
    try:
        weights = load_file(folder / _WEIGHTS)
        if not all(tensor.dtype == torch.float32 for tensor in weights.values()):
            raise TypeError("its weights are not in fp32")
        shape, vocabulary = {name: described[name] for name in _SHAPE}, described["vocabulary"]
        if vocabulary != tokenizer.vocabulary or shape["n_layer"] > len(weights):
            raise UserError(f"the files of '{folder}' do not belong together")
        with torch.device("meta"):
            model = SubwordMamba(subword_config(**shape), vocabulary)
        weights["lm_head.weight"] = weights["backbone.embedding.weight"]
        model.load_state_dict(weights, assign=True)
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"'{folder}' is damaged, or no drafter of ours: {reason}") from error
    return SubwordDrafter(model.to(device), tokenizer)


@dataclass
class _Read:
    """What the model has read up to a token, and what it expects next. Later tokens are remembered, because
    the guesses that came true are read again as text."""

    state: State | None
    logits: NDArray[np.float32]  # (vocabulary)
    later: dict[int, _Read] = field(default_factory=dict)


@dataclass
class _Row:
    """A text: what was read of it, whole words, and the word that is being written."""

    read: _Read
    word: bytearray


class SubwordDrafter:
    """Guesses the likeliest subword, byte by byte, and the ones after it. In the middle of a word, the tokens
    that may stand there are those that begin as the word's last token does.

    A row's guesses do not depend on the noise of its draws: one comes true with the probability that the byte
    model gives it.
    """

    def __init__(self, model: SubwordMamba, tokenizer: SubwordTokenizer) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        self._bytes = tokenizer.token_bytes
        self._rows: list[_Row] = []
        self._continuing = lru_cache(maxsize=4096)(self._find_continuing)

    @torch.no_grad()
    def append(self, text: bytes, rows: int) -> None:
        row = _Row(_Read(None, np.zeros(0, dtype=np.float32)), bytearray(text))
        self._read_words(row)
        self._rows += [_Row(row.read, row.word[:]) for _ in range(rows)]

    def select(self, rows: Sequence[int]) -> None:
        chosen = [self._rows[row] for row in rows]
        self._rows = [_Row(row.read, row.word[:]) for row in chosen]

    def push(self, texts: Sequence[bytes]) -> None:
        for row, text in zip(self._rows, texts, strict=True):
            row.word += text

    def guesses(self, draws: Sequence[Draws]) -> Iterator[list[Guess | None]]:
        rows = [self._guesses(row) for row in self._rows]
        while True:
            with torch.no_grad():
                guesses = [next(row, None) for row in rows]
            if all(guess is None for guess in guesses):
                return
            yield guesses

    def _guesses(self, row: _Row) -> Iterator[Guess]:
        self._read_words(row)
        tokens = self._tokenizer.encode(bytes(row.word)).tolist()
        if not tokens:
            return
        here, token, kind = row.read, tokens[-1], 0
        for whole in tokens[:-1]:
            here = self._after(here, whole)
        begun = len(self._bytes[token])
        if here.state is not None:
            candidates = self._continuing(token)
            place, kind = _likeliest(here.logits[candidates])
            token = int(candidates[place])
        while True:
            for place, byte in enumerate(self._bytes[token][begun:], start=begun):
                yield Guess(byte, kind + (_WITHIN if place else 0))
            here, begun = self._after(here, token), 0
            token, kind = _likeliest(here.logits)

    def _read_words(self, row: _Row) -> None:
        """Read the words that are complete: those before the last boundary, and what is too long for a
        word."""
        last = max(0, *(row.word.rfind(byte) for byte in BOUNDARIES))
        if len(row.word) - last > _LONGEST_WORD:
            last = len(row.word) - 1  # so that a byte is left to guess from
        if last == 0:
            return
        tokens = self._tokenizer.encode(bytes(row.word[:last]))
        if len(tokens) <= _FEW:
            for token in tokens.tolist():
                row.read = self._after(row.read, token)
        else:
            for first in range(0, len(tokens), _CHUNK):
                chunk = torch.from_numpy(tokens[first : first + _CHUNK]).to(self._model.device)
                logits, state = self._model.prefill(chunk[None], row.read.state)
                row.read = _Read(state, _array(logits[0, -1]))
        del row.word[:last]

    def _after(self, read: _Read, token: int) -> _Read:
        """What is read with one more token."""
        if token not in read.later:
            state = self._model.initial_state(1) if read.state is None else read.state
            logits, state = self._model.step(torch.tensor([token], device=self._model.device), state)
            read.later[token] = _Read(state, _array(logits[0]))
        return read.later[token]

    def _find_continuing(self, token: int) -> NDArray[np.int64]:
        """The tokens that begin with this one's bytes, itself included."""
        begin = self._bytes[token]
        return np.array([number for number, other in enumerate(self._bytes) if other.startswith(begin)])


def _likeliest(logits: NDArray[np.float32]) -> tuple[int, int]:
    """The place of the largest, and a kind by how far it leads the second."""
    place = int(logits.argmax())
    if len(logits) == 1:
        return place, len(_MARGINS)
    second, first = np.partition(logits, -2)[-2:].tolist()
    return place, bisect(_MARGINS, first - second)


def _array(logits: Tensor) -> NDArray[np.float32]:
    return logits.float().cpu().numpy()
