"""Prompts: text that was typed, or files of any bytes and any length."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mambabyte.errors import UserError
from mambabyte.generation.context import CHUNK, Context, read_pieces
from mambabyte.models import ByteLM
from mambabyte.runtime.progress import Progress
from mambabyte.runtime.terminal import visible

STANDARD_INPUT = Path("-")
_SHOWN = 40  # characters of a typed prompt in its name


@dataclass(frozen=True)
class Prompt:
    """What a text begins with.

    typed: the bytes themselves, where a user typed them; those of a file are not kept.
    file: where to read it otherwise; "-" for standard input.
    """

    typed: bytes = b""
    file: Path | None = None

    @property
    def name(self) -> str:
        """One line by which a reader knows it."""
        if self.file == STANDARD_INPUT:
            return "standard input"
        if self.file is not None:
            return visible(str(self.file), keep="")
        if not self.typed:
            return "no prompt"
        text = self.typed.decode("utf-8", "replace")
        return visible(f"'{text}'" if len(text) <= _SHOWN else f"'{text[:_SHOWN]}…'", keep="")

    @property
    def length(self) -> int | None:
        """Its bytes; None of what is no regular file, whose end is not known before it is read."""
        if self.file is None:
            return len(self.typed)
        regular = self.file != STANDARD_INPUT and self.file.is_file()
        return self.file.stat().st_size if regular else None

    def check(self) -> None:
        """Refuse what can be seen not to be readable, without reading.

        Raises:
            UserError: there is no such file, it is a folder, or may not be read.
        """
        if self.file is None or self.file == STANDARD_INPUT:
            return
        if self.file.is_dir():
            raise UserError(f"'{self.file}' is a folder: name a file with the prompt")
        if not self.file.exists():
            raise UserError(f"there is no file '{self.file}' with a prompt")
        if not os.access(self.file, os.R_OK):
            raise UserError(f"'{self.file}' cannot be read: change its permissions")

    def read(self, model: ByteLM, context: Context | None = None) -> Iterator[Context]:
        """Have the model read it after a context, and yield the context after each piece, of which there may
        be none. A recurrent model's memory does not grow with the length; a bar on stderr shows where it is.

        Raises:
            UserError: the file cannot be read.
        """
        if self.file is None:
            pieces = iter([self.typed[i : i + CHUNK] for i in range(0, len(self.typed), CHUNK)])
            yield from self._read(model, context, pieces, len(self.typed))
            return
        try:
            with _opened(self.file) as file:
                status = os.fstat(file.fileno())
                total = status.st_size if stat.S_ISREG(status.st_mode) else None
                yield from self._read(model, context, iter(lambda: file.read(CHUNK), b""), total)
        except OSError as error:
            raise UserError(f"'{self.name}' cannot be read: {error.strerror}") from error

    def _read(
        self, model: ByteLM, context: Context | None, pieces: Iterator[bytes], total: int | None
    ) -> Iterator[Context]:
        before = 0 if context is None else context.length
        bar = Progress(f"reading {self.name}", total)
        try:
            for after in read_pieces(model, pieces, context):
                bar.show(after.length - before)
                yield after
        finally:
            bar.close()  # so that what is said next begins a line


def _opened(file: Path) -> BinaryIO:
    if file == STANDARD_INPUT:
        return open(0, "rb", closefd=False)
    return open(file, "rb")


def input_is_redirected() -> bool:
    """Whether standard input is a pipe or a file, and neither a terminal nor /dev/null."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # it is closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
