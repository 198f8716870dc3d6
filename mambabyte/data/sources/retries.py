"""Repeats requests whose errors are temporary, and says so on stderr."""

from __future__ import annotations

import sys
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.error import HTTPError

from tenacity import Retrying, retry_if_exception

from mambabyte.errors import UserError
from mambabyte.runtime.secrets import redact

_LONGEST_WAIT = 60.0  # seconds, if the server asks for none
_LONGEST_REQUESTED_WAIT = 600.0  # seconds, that a server may ask for
_PATIENCE = 20.0  # seconds, for a first contact; a mistyped address or a missing network gets no better
TEMPORARY_STATUS = {408, 425, 429, 500, 502, 503, 504}
# By name: the hub's HTTP client, and with it the class of its errors, changes with the hub's releases.
_TEMPORARY_ERRORS = {
    *("TransportError", "ConnectionError", "TimeoutError", "TimeoutException"),
    *("URLError", "HTTPException", "SSLError"),
}
_ADVICE = (
    "repeat the command when the network and the hub are reachable again: a run resumes from its last "
    "checkpoint"
)


def retrying(what: str, limit: int, advice: str = _ADVICE, first_contact: bool = False) -> Retrying:
    """Attempts at a request, 1, 2, 4, ... up to 60 seconds apart, or what the server asks for in Retry-After.

    Call it with a function, or iterate over it. Errors that another attempt cannot help are raised as they
    are; after the last attempt a UserError is.

    Args:
        what: the name of what is requested, for messages.
        limit: attempts after the first.
        advice: the end of the sentence after the last attempt.
        first_contact: nothing has been read yet, so do not wait for a server that does not answer at all.
    """

    def exhausted(state: Any) -> bool:
        if state.attempt_number > limit:
            return True
        silent = first_contact and _answer(state.outcome.exception()) is None
        return silent and state.seconds_since_start + state.upcoming_sleep > _PATIENCE

    def announce(state: Any) -> None:
        again = f"trying again in {state.upcoming_sleep:g} s ({state.attempt_number} of {limit})"
        reason = _reason(state.outcome.exception())
        print(f"mambabyte: {what}: {reason}; {again}", file=sys.stderr, flush=True)

    def give_up(state: Any) -> None:
        error = state.outcome.exception()
        raise UserError(
            f"gave up on {what} after {state.attempt_number} tries: {_reason(error)}; {advice}"
        ) from error

    return Retrying(
        retry=retry_if_exception(_is_temporary),
        stop=exhausted,
        wait=_wait,
        before_sleep=announce,
        retry_error_callback=give_up,
    )


def _answer(error: BaseException) -> tuple[int, str, Any] | None:
    """Status, reason and headers, if a server has answered."""
    if isinstance(error, HTTPError):
        return error.code, error.reason, error.headers
    response: Any = getattr(error, "response", None)
    if response is None:
        return None
    return response.status_code, response.reason_phrase, response.headers


def _is_temporary(error: BaseException) -> bool:
    if answer := _answer(error):
        return answer[0] in TEMPORARY_STATUS
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(_TEMPORARY_ERRORS & names) and "OfflineModeIsEnabled" not in names


def _reason(error: BaseException) -> str:
    if answer := _answer(error):
        return f"HTTP {answer[0]} {answer[1]}".strip()
    return redact((str(error).splitlines() or [""])[0]) or type(error).__name__


def _wait(state: Any) -> float:
    answer = _answer(state.outcome.exception())
    text = answer and answer[2].get("Retry-After")  # a number or a date (RFC 9110, section 10.2.3)
    try:
        seconds = float(text or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text or "").timestamp() - time.time()
        except ValueError:
            return min(2.0 ** (state.attempt_number - 1), _LONGEST_WAIT)
    return min(max(seconds, 0.0), _LONGEST_REQUESTED_WAIT)
