"""Trying again when a network lets us down: how long to wait, how often, and what the user is told."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from mambabyte.errors import UserError
from mambabyte.runtime.secrets import redact

T = TypeVar("T")

_LONGEST_WAIT = 60.0  # seconds, between our own tries
_LONGEST_REQUESTED_WAIT = 600.0  # seconds, that a server may ask for
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
# By name: the HTTP client, and with it the class of its errors, changes with the hub's releases.
_PASSING_ERRORS = {"TransportError", "ConnectionError", "TimeoutError", "TimeoutException"}


class Backoff:
    """Counts the failures in a row of one thing that is fetched; waits 1, 2, 4, ... up to 60 seconds between
    tries, or what the server asks for in Retry-After.

    what: how the thing is called in messages. limit: tries after the first, before it gives up.
    """

    def __init__(self, what: str, limit: int) -> None:
        self.what, self.limit = what, limit
        self.failures = 0

    def failed(self, error: Exception) -> None:
        """Say so on stderr and wait. Raises the error itself if trying again cannot help, UserError when it
        was the last try."""
        if not _is_passing(error):
            raise error
        self.failures += 1
        reason = _reason(error)
        if self.failures > self.limit:
            raise UserError(
                f"gave up on {self.what} after {self.failures} tries: {reason}; repeat the command when the "
                "network and the hub are well again: a run goes on from its last checkpoint"
            ) from error
        seconds = _requested_wait(error)
        if seconds is None:
            seconds = min(2.0 ** (self.failures - 1), _LONGEST_WAIT)
        print(
            f"mambabyte: {self.what}: {reason}; trying again in {seconds:g} s "
            f"({self.failures} of {self.limit})",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(seconds)

    def succeeded(self) -> None:
        self.failures = 0


def retried(action: Callable[[], T], what: str, limit: int) -> T:
    """The action's result, tried again while its errors are of the kind that passes."""
    backoff = Backoff(what, limit)
    while True:
        try:
            return action()
        except Exception as error:
            backoff.failed(error)


def _is_passing(error: Exception) -> bool:
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in PASSING_STATUS
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(_PASSING_ERRORS & names) and "OfflineModeIsEnabled" not in names


def _reason(error: Exception) -> str:
    response: Any = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code} {response.reason_phrase}".strip()
    return redact((str(error).splitlines() or [""])[0]) or type(error).__name__


def _requested_wait(error: Exception) -> float | None:
    """Seconds of the answer's Retry-After, which is a number or a date (RFC 9110, section 10.2.3)."""
    response: Any = getattr(error, "response", None)
    text = response.headers.get("Retry-After") if response is not None else None
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_REQUESTED_WAIT)
