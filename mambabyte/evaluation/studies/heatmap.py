"""Text coloured by the bits per byte of each character, for a terminal and as HTML."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mambabyte.evaluation.protocols import FIRST_BYTE_NATS, Protocol, scored_spans
from mambabyte.evaluation.studies import Study, write_picture
from mambabyte.models import ByteLM
from mambabyte.runtime.terminal import visible

_MOST = 8.0  # bits per byte of a uniform guess, the strongest colour


@dataclass(frozen=True)
class Character:
    """A character of the text, or U+FFFD for a byte that belongs to none, and its bits per byte."""

    text: str
    bits_per_byte: float


def heatmap_study(
    model: ByteLM, documents: Sequence[np.ndarray], protocol: Protocol, title: str, page: Path
) -> Study:
    """The documents in colour; the HTML goes to ``page``."""
    bits = byte_bits(model, documents, protocol)
    texts = [characters(bytes(data), each) for data, each in zip(documents, bits, strict=True)]
    heading = f"{title}: where the bits go ({protocol.name})"
    fault = write_picture(page, lambda: write_html(texts, heading, page))
    legend = f"from white (0 bits per byte) to red (8 and more){'' if fault else f': {visible(str(page))}'}"
    return Study(None if fault else str(page), [*map(to_terminal, texts), legend], fault, coloured=True)


def byte_bits(model: ByteLM, documents: Sequence[np.ndarray], protocol: Protocol) -> list[np.ndarray]:
    """For each document the bits (length,) float64 of its bytes."""
    bits = [np.full(len(document), FIRST_BYTE_NATS / math.log(2)) for document in documents]
    for batch in scored_spans(model, documents, protocol):
        for span in batch:
            bits[span.document][span.start : span.start + len(span.nats)] = span.nats / math.log(2)
    return bits


def characters(data: bytes, bits: np.ndarray) -> list[Character]:
    """The characters of ``data``, each with the mean of its bytes' bits."""
    found, place = [], 0
    for text in data.decode("utf-8", "surrogateescape"):
        size = len(text.encode("utf-8", "surrogateescape"))
        shown = "\ufffd" if "\udc80" <= text <= "\udcff" else text
        found.append(Character(shown, float(bits[place : place + size].mean())))
        place += size
    return found


def to_terminal(text: Sequence[Character]) -> str:
    """The text with 24-bit ANSI colours, from white to red."""
    painted = []
    for character in text:
        other = _green_and_blue(character)
        # a terminal would obey control characters in the text
        shown = character.text if character.text.isprintable() else {"\n": "↵"}.get(character.text, "\ufffd")
        painted.append(f"\x1b[30;48;2;255;{other};{other}m{shown}\x1b[0m")
        if character.text == "\n":
            painted.append("\n")
    return "".join(painted)


def write_html(documents: Sequence[Sequence[Character]], title: str, path: Path) -> None:
    """Write a self-contained page without scripts; hovering over a character shows its bits per byte."""
    pieces = [
        "<!doctype html><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>",
        "<p>From white (0 bits per byte) to red (8 and more).</p>",
        "<style>body{font-family:sans-serif;margin:1em;background:#fff;color:#000}"
        "pre{white-space:pre-wrap;font-size:1.1em;line-height:1.6}</style>",
    ]
    for document in documents:
        pieces.append("<pre>")
        for character in document:
            shown = "↵\n" if character.text == "\n" else character.text
            other = _green_and_blue(character)
            pieces.append(
                f"<span style='background:rgb(255,{other},{other})' title='{character.bits_per_byte:.2f}'>"
                f"{html.escape(shown)}</span>"
            )
        pieces.append("</pre>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(pieces) + "\n", encoding="utf-8")


def _green_and_blue(character: Character) -> int:
    return round(255 * (1 - min(1.0, max(0.0, character.bits_per_byte / _MOST))))
