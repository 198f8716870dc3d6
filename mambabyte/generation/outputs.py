"""Where texts go as they are written: a terminal, a file of raw bytes, a JSON object."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable
from typing import Any, Protocol

from mambabyte.generation.continuations import Continuation, Spent
from mambabyte.generation.speculative.drafting import Statistics
from mambabyte.runtime.terminal import visible
from mambabyte.runtime.valid_json import valid_json


class Output(Protocol):
    def begin(self, text: Continuation) -> None:
        """A text whose prompt was read. They begin in their order."""

    def write(self, text: Continuation, data: bytes) -> None:
        """What comes next in a text. With its last bytes, and not before, `text.finished` is set."""

    def close(self, spent: Spent, interrupted: bool) -> None:
        """All that will be written is written."""


class ShownText:
    """One text after the other on stdout, each as soon as its UTF-8 is complete, after its prompt if that was
    typed. Those that are written meanwhile wait for their turn.

    Args:
        headings: whether a line before each says whose text it is.
    """

    def __init__(self, headings: bool) -> None:
        self._headings = headings
        self._waiting: dict[int, _Waiting] = {}
        self._current = 0
        self._decoder: codecs.IncrementalDecoder | None = None

    def begin(self, text: Continuation) -> None:
        self._waiting[text.index] = _Waiting(text)
        self._show()

    def write(self, text: Continuation, data: bytes) -> None:
        waiting = self._waiting[text.index]
        waiting.data += data
        waiting.ended = text.finished is not None
        self._show()

    def close(self, spent: Spent, interrupted: bool) -> None:
        for waiting in self._waiting.values():
            waiting.ended = True
        self._show()

    def _show(self) -> None:
        while waiting := self._waiting.get(self._current):
            if self._decoder is None:
                self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
                if self._headings:
                    print(self._heading(waiting.text), flush=True)
            if shown := self._decoder.decode(bytes(waiting.data), final=waiting.ended):
                print(visible(shown), end="", flush=True)
            waiting.data.clear()
            if not waiting.ended:
                return
            print(flush=True)
            self._decoder = None
            del self._waiting[self._current]
            self._current += 1

    def _heading(self, text: Continuation) -> str:
        above = "\n" if text.index else ""
        return f"{above}== {text.prompt.name}, sample {text.sampler.sample} =="


class _Waiting:
    """What is still to be shown of a text, and whether that is all."""

    def __init__(self, text: Continuation) -> None:
        self.text, self.data, self.ended = text, bytearray(text.prompt.typed), False


class RawBytes:
    """One text as it is, after its prompt if that was typed.

    Args:
        write: takes bytes, and has them written when it returns.
    """

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write

    def begin(self, text: Continuation) -> None:
        self.write(text, text.prompt.typed)

    def write(self, text: Continuation, data: bytes) -> None:
        if data:
            self._write(data)

    def close(self, spent: Spent, interrupted: bool) -> None:
        """Nothing is left to do."""


class JsonObject:
    """All texts as one JSON object on stdout, at the end.

    Args:
        about: what stands in it before the texts.
        drafts: what drafting does, if there is any.
    """

    def __init__(self, about: dict[str, Any], drafts: Statistics | None = None) -> None:
        self._about, self._drafts = about, drafts
        self._texts: list[tuple[Continuation, bytearray]] = []

    def begin(self, text: Continuation) -> None:
        self._texts.append((text, bytearray()))

    def write(self, text: Continuation, data: bytes) -> None:
        self._texts[text.index][1].extend(data)

    def close(self, spent: Spent, interrupted: bool) -> None:
        reading, writing = spent.reading_seconds, spent.writing_seconds
        figures = {
            "prompt_bytes": spent.read_bytes,
            "reading_seconds": reading,
            "bytes": spent.written_bytes,
            "writing_seconds": writing,
            "bytes_per_second": spent.written_bytes / writing if writing else None,
        }
        if self._drafts is not None:
            figures |= {
                "drafted": self._drafts.drafted,
                "accepted": self._drafts.accepted,
                "speedup": self._drafts.speedup,
            }
        texts = [self._described(text, bytes(data)) for text, data in self._texts]
        print(valid_json({**self._about, "texts": texts, **figures, "interrupted": interrupted}))

    def _described(self, text: Continuation, data: bytes) -> dict[str, Any]:
        typed = text.prompt.typed if text.prompt.file is None else None
        return {
            "prompt": None if typed is None else typed.decode("utf-8", "replace"),
            "prompt_base64": None if typed is None else base64.b64encode(typed).decode(),
            "prompt_file": None if text.prompt.file is None else visible(str(text.prompt.file)),
            "prompt_bytes": text.prompt_bytes,
            "sample": text.sampler.sample,
            "text": data.decode("utf-8", "replace"),
            "text_base64": base64.b64encode(data).decode(),
            "bytes": len(data),
            "finish_reason": text.finished,
        }
