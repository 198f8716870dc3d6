"""A text that a user and a model write in turns, in a terminal or through pipes."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from mambabyte.generation.context import Context
from mambabyte.generation.continuations import Continuation, Spent, written_together
from mambabyte.generation.outputs import ShownText
from mambabyte.generation.prompts import Prompt
from mambabyte.generation.writing import Writing
from mambabyte.runtime.signals import interrupt_noted

HELP = (
    "type text, and the model goes on from it; an empty line goes on further, and a \\ at the end of a line "
    "puts a line feed there; /again draws another continuation, /undo takes the last one and its text back; "
    "Ctrl-C stops a continuation, Ctrl-D ends"
)
_TURNS_KEPT = 16  # that /undo can take back


class Conversation:
    """The turns, each a text that is read and its continuation. Nothing is read twice.

    Args:
        writing: how each continuation is written.
        context: what the model has read before the first turn.

    Attributes:
        context: what it has read now, continuations included; None before the first turn.
    """

    def __init__(self, writing: Writing, context: Context | None, spent: Spent) -> None:
        self.context = context
        self._writing, self._spent, self._batch = writing, spent, writing.batch()
        self._drawn = 0  # continuations, of which each draws with its own noise
        # What it had read before and after each text that was typed.
        self._turns: deque[tuple[Context | None, Context]] = deque(maxlen=_TURNS_KEPT)

    def turn(self, typed: bytes) -> None:
        """Read what was typed, and write on."""
        before = self.context
        after = before
        if typed or after is None:
            after, _ = self._spent.read(self._writing.model, Prompt(typed), before)
        self._turns.append((before, after))
        self._write(after)

    def again(self) -> bool:
        """Write another continuation instead of the last one; False if there is none."""
        if self._turns:
            self._write(self._turns[-1][1])
        return bool(self._turns)

    def undo(self) -> bool:
        """Go back to before the last text that was typed; False if there is none."""
        if not self._turns:
            return False
        self.context, _ = self._turns.pop()
        return True

    def _write(self, context: Context) -> None:
        length, stop = self._writing.length, self._writing.stop
        sampler = replace(self._writing.sampler, sample=self._drawn)
        row = Continuation(0, Prompt(), 0, sampler, length, stop, keep_context=True)
        self._drawn += 1
        shown = ShownText(headings=False)
        shown.begin(row)
        with interrupt_noted(insisting=False) as interrupted:  # the batch serves the next turn too
            written = written_together(self._batch, [(context, row)], 1, interrupted)
            for text, data in self._spent.writing(written):
                shown.write(text, data)
        self._spent.written_bytes += row.drawn
        self.context = row.context


def converse(conversation: Conversation) -> None:
    """Take the turns of the user at standard input, until it ends."""
    terminal = os.isatty(0) and sys.stdout.isatty()
    if terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  (from now on input() edits its line)
        _say(HELP)
    for typed in _texts(_typed_line if terminal else _piped_lines()):
        if typed == b"/undo":
            if not conversation.undo():
                _say("there is nothing to take back")
            elif terminal:
                _say(f"taken back; {_where(conversation.context)}")
        elif typed == b"/again":
            if not conversation.again():
                _say("nothing was written yet")
        else:
            try:
                conversation.turn(typed)
            except KeyboardInterrupt:  # while it read
                if not terminal:
                    raise
                _say("stopped before all of it was read: type it again")


class _Dropped(Exception):
    """The user does not want what was typed."""


def _where(context: Context | None) -> str:
    if context is None:
        return "nothing is left"
    return f"the text ends with {context.tail.decode('utf-8', 'replace')!r}"


def _texts(line: Callable[[bool], bytes]) -> Iterator[bytes]:
    """What is typed, of several lines where one ends in a backslash."""
    begun = b""
    while True:
        try:
            typed = line(bool(begun))
        except EOFError:
            if begun:
                yield begun
            return
        except _Dropped:
            begun = b""
            continue
        if (len(typed) - len(typed.rstrip(b"\\"))) % 2:
            begun += typed[:-1] + b"\n"
        else:
            yield begun + typed
            begun = b""


def _typed_line(begun: bool) -> bytes:
    """A line from the terminal."""
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        return input("| " if begun else "> ").encode(sys.stdin.encoding, "surrogateescape")
    except EOFError:
        print(flush=True)  # what comes begins a line
        raise
    except KeyboardInterrupt:  # drops what is typed, as shells do
        print(flush=True)
        raise _Dropped from None


def _piped_lines() -> Callable[[bool], bytes]:
    """What gives the next line of a pipe or a file, whatever its bytes."""
    file = open(0, "rb", closefd=False)  # noqa: SIM115  (it stays open until the program ends)

    def line(begun: bool) -> bytes:
        if not (read := file.readline()):
            raise EOFError
        return read.removesuffix(b"\n")

    return line


def _say(message: str) -> None:
    print(f"mambabyte: {message}", file=sys.stderr, flush=True)
