"""POST /v1/completions: from a request to the engine, and from what it tells to JSON or a stream of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mambabyte.errors import UserError, is_out_of_memory
from mambabyte.runtime.valid_json import valid_json
from mambabyte.serving.choices import Choice
from mambabyte.serving.engine import Ended, Engine, Event, Failed, Job, PromptRead, Written
from mambabyte.serving.errors import ApiError
from mambabyte.serving.request import CompletionRequest

# Seconds between two chunks of a stream: a fast model's bytes arrive some at a time, which looks smooth and
# costs little.
INTERVAL = 0.02

_log = logging.getLogger("mambabyte")


class Inbox:
    """Carries what the engine's thread tells to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._any, self._ended = asyncio.Event(), asyncio.Event()
        self._woken = False
        self._next = 0.0

    def put(self, event: Event) -> None:
        """From any thread."""
        self._events.append(event)
        if isinstance(event, (Ended, Failed)):
            self._call(self._ended.set)
        if not self._woken:
            self._woken = True
            self._call(self._any.set)

    def _call(self, function: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function)

    async def take(self) -> list[Event]:
        """What was told since the last call: at once at the end, else after INTERVAL."""
        wait = self._next - self._loop.time()
        if wait > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), wait)
        await self._any.wait()
        self._next = self._loop.time() + INTERVAL
        self._any.clear()
        self._ended.clear()
        self._woken = False  # before the events are taken, so that none is left without a call
        return [self._events.popleft() for _ in range(len(self._events))]


class Completion:
    """One request on its way.

    Raises:
        ApiError: there is no room for it.
    """

    def __init__(self, request: CompletionRequest, engine: Engine, model: str) -> None:
        self._request, self._engine, self._model = request, engine, model
        self._inbox = Inbox()
        prompts = [(prompt, request.rows()) for prompt in request.prompts()]
        self._choices = [Choice(i, request.logprobs) for i in range(len(prompts) * request.n)]
        self._open, self._failed = len(self._choices), False
        self._read = sum(len(prompt) for prompt, _ in prompts)
        self._begin = time.monotonic()
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        wants = request.logprobs is not None
        self._job = Job(prompts, self._inbox.put, echo=request.echo, logits=wants)
        engine.submit(self._job)

    def close(self) -> None:
        """Give up what is not written yet, and write the line of the log."""
        self._engine.cancel(self._job)
        seconds = max(time.monotonic() - self._begin, 1e-9)
        written = sum(choice.drawn for choice in self._choices)
        end = "; failed" if self._failed else "; the client left" if self._open else ""
        rate = f"{written / seconds:,.0f} bytes/s"
        _log.info("%s bytes read, %s written, %s%s", f"{self._read:,}", f"{written:,}", rate, end)

    async def _hear(self) -> None:
        """Take what was told.

        Raises:
            ApiError: the request has failed.
        """
        for event in await self._inbox.take():
            if isinstance(event, Written):
                self._choices[event.choice].draw(event.byte, event.text, event.logits)
            elif isinstance(event, Ended):
                self._choices[event.choice].end(event.reason)
                self._open -= 1
            elif isinstance(event, PromptRead):
                n = self._request.n
                for choice in self._choices[event.prompt * n : (event.prompt + 1) * n]:
                    choice.echo(event.piece, event.logits)
            else:
                self._open, self._failed = 0, True
                raise _explained(event.fault)

    def _usage(self) -> dict[str, int]:
        written = sum(choice.drawn for choice in self._choices)
        return {
            "prompt_tokens": self._read,
            "completion_tokens": written,
            "total_tokens": self._read + written,
        }

    async def whole(self) -> dict[str, Any]:
        """The answer, once all is written.

        Raises:
            ApiError: the request has failed.
        """
        while self._open:
            await self._hear()
        choices = [choice.take() for choice in self._choices]
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[str]:
        """The server-sent events of a stream, to its end or to the error that ends it."""
        usage: dict[str, Any] = {"usage": None} if self._request.include_usage else {}
        try:
            while self._open:
                await self._hear()
                taken = filter(None, [choice.take() for choice in self._choices])
                if events := [_event({**self._head, "choices": [each], **usage}) for each in taken]:
                    yield "".join(events)
        except ApiError as error:
            yield _event(error.body())
            return
        if usage:
            yield _event({**self._head, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"


class CompletionStream(StreamingResponse):
    """A completion as server-sent events. One whose client has left is given up."""

    def __init__(self, completion: Completion) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(completion.chunks(), media_type="text/event-stream", headers=headers)
        self._completion = completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._completion.close()


async def respond(request: Request, completion: Completion, stream: bool) -> Response:
    """The answer to a request.

    Raises:
        ApiError: it has failed.
    """
    if stream:
        return CompletionStream(completion)
    writing = asyncio.ensure_future(completion.whole())
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(await writing) if writing.done() else Response(status_code=499)
    finally:
        writing.cancel()
        leaving.cancel()
        completion.close()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(value: dict[str, Any]) -> str:
    return f"data: {valid_json(value)}\n\n"


def _explained(fault: Exception) -> ApiError:
    """A fault of the engine's as the client may see it; one of the program's own goes to the log."""
    if isinstance(fault, ApiError):
        return fault
    if isinstance(fault, UserError):
        return ApiError(500, str(fault))
    if is_out_of_memory(fault):
        return ApiError(503, "the server has too little memory for this request: ask for less", code="memory")
    _log.error("a request failed", exc_info=fault)
    return ApiError(500, "the server failed at this request: its log says why")
