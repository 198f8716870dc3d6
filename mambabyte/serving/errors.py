"""Refusals in OpenAI's format, from which its client makes exceptions of its own types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RETRY_AFTER = {"Retry-After": "1"}  # seconds


class ApiError(Exception):
    """A request that is refused or has failed.

    Args:
        status: HTTP's.
        message: one sentence.
        param: the field of the request that it is about.
        code: a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def busy() -> ApiError:
    """All rows are taken, and the queue is full."""
    message = "the server is busy and its queue is full: try again in a moment"
    return ApiError(429, message, code="queue_full", headers=RETRY_AFTER)


def shutting_down() -> ApiError:
    """The server ends."""
    return ApiError(503, "the server is shutting down", code="shutting_down", headers=RETRY_AFTER)
