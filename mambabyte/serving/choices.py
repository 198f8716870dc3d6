"""The bytes of one choice as a client gets them: text, and logarithms of probabilities."""

from __future__ import annotations

import codecs
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
LEAST = -9999.0  # for a probability of 0, whose logarithm is no JSON number


def token(byte: int) -> str:
    """A byte's name: its character in ASCII, else ``bytes:\\xc3``, as OpenAI names what is no text."""
    return chr(byte) if byte < 0x80 else f"bytes:\\x{byte:02x}"


class Choice:
    """Gathers what one choice has got since it was last taken.

    Text never ends within a character, and invalid bytes become U+FFFD. The probabilities are the model's
    own, before temperature, penalties and filters.

    Args:
        logprobs: how many of the likeliest bytes to tell; None for no probabilities at all.
    """

    def __init__(self, index: int, logprobs: int | None) -> None:
        self.index, self._logprobs = index, logprobs
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""
        self._decoded = 0  # characters of all the text so far
        self._held: deque[tuple[int, Logits | None]] = deque()  # drawn, but may belong to a stop string
        self._tokens: list[tuple[int, int, Logits | None]] = []  # byte, offset, logits
        self.drawn = 0
        self.finish_reason: str | None = None
        self._told_end = False

    def echo(self, piece: bytes, logits: Logits | None) -> None:
        """Bytes of the prompt, and (len(piece), 256) the logits each was predicted from."""
        for i, byte in enumerate(piece):
            self._show(byte, None if logits is None else logits[i])

    def draw(self, byte: int, text: bytes, logits: Logits | None) -> None:
        """A byte that was drawn, and the bytes that may be shown now: those drawn first of what was held."""
        self.drawn += 1
        if self._logprobs is None:
            self._text += self._decode(text)
            return
        self._held.append((byte, logits))
        for _ in text:
            self._show(*self._held.popleft())

    def end(self, reason: str) -> None:
        """There is no more."""
        self._text += self._decode(b"", final=True)
        self.finish_reason = reason

    def take(self) -> dict[str, Any] | None:
        """What has come since the last call, as an item of `choices`; None if it is nothing."""
        end = self.finish_reason is not None and not self._told_end
        if not (self._text or self._tokens or end):
            return None
        self._told_end |= end
        text, self._text = self._text, ""
        tokens, self._tokens = self._tokens, []
        return {
            "text": text,
            "index": self.index,
            "logprobs": None if self._logprobs is None else _logprobs(tokens, self._logprobs),
            "finish_reason": self.finish_reason,
        }

    def _show(self, byte: int, logits: Logits | None) -> None:
        self._text += self._decode(bytes([byte]))
        if self._logprobs is not None:
            between = not self._decoder.getstate()[0]
            self._tokens.append((byte, self._decoded - between, logits))

    def _decode(self, data: bytes, final: bool = False) -> str:
        text = self._decoder.decode(data, final)
        self._decoded += len(text)
        return text


def _logprobs(tokens: list[tuple[int, int, Logits | None]], count: int) -> dict[str, list[Any]]:
    """OpenAI's object. A text's first byte is not predicted, and has null."""
    known = [logits for _, _, logits in tokens if logits is not None and not np.isnan(logits[0])]
    table = np.stack(known).astype(np.float64) if known else np.empty((0, 256))
    table -= table.max(1, keepdims=True)
    table -= np.log(np.exp(table).sum(1, keepdims=True))
    table = np.maximum(table, LEAST)
    likeliest = np.argsort(-table, axis=1, kind="stable")[:, :count].tolist()
    chosen: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    rows = iter(zip(table.tolist(), likeliest, strict=True))
    for byte, _, logits in tokens:
        if logits is None or np.isnan(logits[0]):
            chosen.append(None)
            tops.append(None)
            continue
        row, top = next(rows)
        chosen.append(row[byte])
        tops.append({token(each): row[each] for each in top} | ({token(byte): row[byte]} if count else {}))
    return {
        "tokens": [token(byte) for byte, _, _ in tokens],
        "token_logprobs": chosen,
        "top_logprobs": tops if count else [],
        "text_offset": [offset for _, offset, _ in tokens],
    }
