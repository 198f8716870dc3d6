"""Stop strings: where a text ends that is written byte by byte."""

from __future__ import annotations

from collections.abc import Sequence

from mambabyte.errors import UserError


class Stops:
    """Passes bytes on as soon as they cannot be part of a stop string, which itself is never passed on.

    Raises:
        UserError: one of the strings is empty.
    """

    def __init__(self, strings: Sequence[bytes] = ()) -> None:
        if not all(strings):
            raise UserError(
                "a stop string must have a byte or more: an empty one would end every text at once"
            )
        self._strings = sorted(map(bytes, strings), key=len, reverse=True)
        self._held = b""
        self.found = False

    def push(self, byte: int) -> bytes:
        """What may be shown now that ``byte`` has come; ``found`` says whether it ended a stop string."""
        if not self._strings:
            return bytes([byte])
        held = self._held + bytes([byte])
        for string in self._strings:
            if held.endswith(string):
                self.found, self._held = True, b""
                return held[: -len(string)]
        kept = next(k for k in range(len(held) + 1) if self._may_begin(held[k:]))
        self._held = held[kept:]
        return held[:kept]

    def rest(self) -> bytes:
        """What was held back, once no more bytes come."""
        held, self._held = self._held, b""
        return held

    def _may_begin(self, end: bytes) -> bool:
        return not end or any(string.startswith(end) for string in self._strings)
