"""Byte-pair encoding of arbitrary bytes, by the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambabyte.checkpoints.formats.byte_tokenizer import alphabet
from mambabyte.checkpoints.formats.layout import check_file
from mambabyte.errors import UserError

_CHARACTERS = alphabet()
_TABLE = dict(enumerate(_CHARACTERS))
_BYTES = {character: byte for byte, character in enumerate(_CHARACTERS)}
_SPACE, _NEWLINE = _CHARACTERS[0x20], _CHARACTERS[0x0A]
BOUNDARIES = b" \n"  # a word begins with one of them: no token reaches across
_PIECE = 1 << 20  # bytes that are encoded at a time


class SubwordTokenizer:
    """Token numbers for bytes and back. Any bytes survive: each of the 256 is a token of its own."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def trained(cls, documents: Iterable[bytes], vocabulary: int) -> SubwordTokenizer:
        """Learn the merges of a vocabulary of this size, or fewer where there are no more pairs.

        Raises:
            UserError: the library is missing.
        """
        tokenizer = _without_tokens()
        trainer = _library().trainers.BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=_CHARACTERS, special_tokens=[], show_progress=False
        )
        tokenizer.train_from_iterator(
            (_text(piece) for data in documents for piece in _pieces(data)), trainer
        )
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> SubwordTokenizer:
        """Read what `save` wrote.

        Raises:
            UserError: it is missing, damaged, or no tokenizer of bytes; or the library is missing.
        """
        tokenizers = _library()
        try:
            check_file(path)
            tokenizer = cls(tokenizers.Tokenizer.from_file(str(path)))
            if _all_but_tokens(tokenizer._tokenizer) != _all_but_tokens(_without_tokens()):
                raise UserError(f"'{path}' is no tokenizer of ours: it does more than merge bytes")
            whole = sorted(token for token in tokenizer.token_bytes if len(token) == 1)
        except UserError:
            raise
        except Exception as error:  # the library raises no narrower one
            raise UserError(f"'{path}' is damaged or no tokenizer of bytes: {error}") from error
        if whole != [bytes([byte]) for byte in range(256)]:
            raise UserError(f"'{path}' is no tokenizer of bytes: some of the 256 have no token")
        return tokenizer

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))

    @property
    def vocabulary(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, data: bytes) -> NDArray[np.int64]:
        """The token numbers of bytes."""
        ids = [self._tokenizer.encode(_text(piece)).ids for piece in _pieces(data)]
        return np.array([number for part in ids for number in part], dtype=np.int64)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each token stands for.

        Raises:
            UserError: one stands for no bytes.
        """
        tokens = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        if [number for _, number in tokens] != list(range(len(tokens))) or not all(
            set(token) <= _BYTES.keys() for token, _ in tokens
        ):
            raise UserError("it has tokens that stand for no bytes")
        return [bytes(_BYTES[character] for character in token) for token, _ in tokens]


def _without_tokens() -> Any:
    """The library's tokenizer of words, before it has tokens."""
    tokenizers = _library()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = tokenizers.Regex(f"[{_SPACE}{_NEWLINE}]?[^{_SPACE}{_NEWLINE}]+|[{_SPACE}{_NEWLINE}]")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(words, "isolated")
    return tokenizer


def _all_but_tokens(tokenizer: Any) -> dict[str, Any]:
    """What it does to a text beside merging: a file may say anything, slow patterns and random merges too."""
    described = json.loads(tokenizer.to_str())
    del described["model"]["vocab"], described["model"]["merges"]
    return described


def _text(data: bytes) -> str:
    """A character for each byte, since the library takes text."""
    return data.decode("latin-1").translate(_TABLE)


def _pieces(data: bytes) -> Iterable[bytes]:
    """The data in pieces that begin where a word does."""
    first = 0
    while first < len(data):
        last = min(first + _PIECE, len(data))
        if last < len(data):
            boundary = max(data.rfind(byte, first + 1, last) for byte in BOUNDARIES)
            last = boundary if boundary > first else last
        yield data[first:last]
        first = last


def _library() -> Any:
    try:
        return import_module("tokenizers")
    except ImportError as error:
        raise UserError("subword drafters need tokenizers: pip install 'mambabyte[draft]'") from error
