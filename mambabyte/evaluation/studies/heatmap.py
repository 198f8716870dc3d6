"""Where the bits go: text coloured by the bits per byte of each character, for a terminal and as HTML."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mambabyte.evaluation.bits_per_byte import FIRST_BYTE_NATS, scored_spans
from mambabyte.models import ByteLM

_MOST = 8.0  # bits per byte of a uniform guess, the strongest colour


@dataclass(frozen=True)
class Character:
    """A character of the text, or U+FFFD for a byte that belongs to none, and its bits per byte."""

    text: str
    bits_per_byte: float


def byte_bits(
    model: ByteLM,
    documents: Sequence[np.ndarray],
    protocol: str,
    context_length: int,
    batch_size: int,
    precision: str = "fp32",
    stride: int | None = None,
) -> list[np.ndarray]:
    """For each document the bits (length,) float64 of its bytes under the protocol."""
    bits = [np.full(len(document), FIRST_BYTE_NATS / math.log(2)) for document in documents]
    spans = scored_spans(model, documents, protocol, context_length, batch_size, precision, stride)
    for batch in spans:
        for span in batch:
            bits[span.document][span.start : span.start + len(span.nats)] = span.nats / math.log(2)
    return bits


def characters(data: bytes, bits: np.ndarray) -> list[Character]:
    """The characters of the bytes, each with the mean of its bytes' bits."""
    found, place = [], 0
    for text in data.decode("utf-8", "surrogateescape"):
        size = len(text.encode("utf-8", "surrogateescape"))
        shown = "\ufffd" if "\udc80" <= text <= "\udcff" else text
        found.append(Character(shown, float(bits[place : place + size].mean())))
        place += size
    return found


def to_terminal(text: Sequence[Character]) -> str:
    """With ANSI colours of 24 bits, from white to red."""
    painted = []
    for character in text:
        other = round(255 * (1 - _strength(character.bits_per_byte)))
        # a terminal would obey the control characters that a text may hold
        shown = character.text if character.text.isprintable() else {"\n": "↵"}.get(character.text, "\ufffd")
        painted.append(f"\x1b[30;48;2;255;{other};{other}m{shown}\x1b[0m")
        if character.text == "\n":
            painted.append("\n")
    return "".join(painted)


def write_html(documents: Sequence[Sequence[Character]], title: str, path: Path) -> None:
    """A page of its own, without scripts; a character's bits per byte appear under the pointer."""
    pieces = [
        "<!doctype html><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>",
        "<p>From white (0 bits per byte) to red (8 and more).</p>",
        "<style>body{font-family:sans-serif;margin:2em;background:#fff;color:#000}"
        "pre{white-space:pre-wrap;font-size:1.1em;line-height:1.6}</style>",
    ]
    for document in documents:
        pieces.append("<pre>")
        for character in document:
            shown = "↵\n" if character.text == "\n" else character.text
            other = round(255 * (1 - _strength(character.bits_per_byte)))
            pieces.append(
                f"<span style='background:rgb(255,{other},{other})' title='{character.bits_per_byte:.2f}'>"
                f"{html.escape(shown)}</span>"
            )
        pieces.append("</pre>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(pieces) + "\n", encoding="utf-8")


def _strength(bits: float) -> float:
    return min(1.0, max(0.0, bits / _MOST))
