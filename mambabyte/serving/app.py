"""The routes, and what stands before them: who may ask, and how much."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mambabyte.runtime.terminal import visible
from mambabyte.serving.completions import Completion, respond
from mambabyte.serving.engine import Engine
from mambabyte.serving.errors import ApiError
from mambabyte.serving.limits import Limits
from mambabyte.serving.request import CompletionRequest

BODY_SECONDS = 30  # a client has to send its request
_log = logging.getLogger("mambabyte")
PAGE = Path(__file__).with_name("page.html")
_NOTHING = "there is nothing at this address: the API is /v1/completions and /v1/models, the page is /"
# No other site may read, embed or script what is served here.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def build_app(
    engine: Engine,
    limits: Limits,
    name: str,
    parameters: int,
    hosts: Collection[str] = (),
    api_key: str | None = None,
) -> ASGIApp:
    """The application.

    Args:
        name: the model's, by which requests must call it.
        parameters: their number, told with the model.
        hosts: names beside localhost and addresses under which the server may be reached.
        api_key: what requests to /v1 must carry as a bearer token, if anything.
    """
    model = {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "mambabyte",
        "parameters": parameters,
        "max_prompt_bytes": limits.max_prompt_bytes,
        "max_completion_bytes": limits.max_completion_bytes,
    }
    page = PAGE.read_text(encoding="utf-8")
    policy = {"Content-Security-Policy": content_security_policy(page)}

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=policy)

    async def show_health(request: Request) -> Response:
        rows, waiting = engine.load()
        alive = engine.is_alive()
        told = {"status": "ok" if alive else "stopped", "rows": rows, "waiting": waiting}
        return JSONResponse(told, 200 if alive else 503)

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    def check_name(asked: str) -> None:
        if asked != name:
            message = f"there is no model '{asked[:80]}' here: this server has '{name}'"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def show_model(request: Request) -> Response:
        check_name(request.path_params["name"])
        return JSONResponse(model)

    async def complete(request: Request) -> Response:
        body = await _json_body(request, limits.max_body_bytes)
        asked = CompletionRequest.parse(body, limits)
        if not asked.model:
            raise ApiError(400, f"model is missing: this server has '{name}'", param="model")
        check_name(asked.model)
        return await respond(request, Completion(asked, engine, name), asked.stream)

    def only_with_key(endpoint: Callable[[Request], Awaitable[Response]]) -> Any:
        async def checked(request: Request) -> Response:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), (api_key or "").encode())
            if api_key is not None and not (right and scheme.lower() == "bearer"):
                raise ApiError(401, "this server needs its API key", code="invalid_api_key")
            return await endpoint(request)

        return checked

    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/health", show_health),
            Route("/v1/models", only_with_key(list_models)),
            Route("/v1/models/{name:path}", only_with_key(show_model)),
            Route("/v1/completions", only_with_key(complete), methods=["POST"]),
        ],
        exception_handlers={
            ApiError: _log_refusal,
            HTTPException: lambda request, error: _refusal(_of_http(error)),
            ClientDisconnect: lambda request, error: Response(status_code=499),
            Exception: lambda request, error: _refusal(ApiError(500, "the server failed: its log says why")),
        },
    )
    return Guard(app, {"localhost", *(host.lower() for host in hosts)})


class Guard:
    """Refuses requests under a name that is not this server's, and says in each answer who may use it.

    A page of another site can have its own name point to this machine, and then counts as of the same
    origin (DNS rebinding); it cannot do so with an address, or a name that is not its own.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(key.lower().encode(), value.encode()) for key, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        given = [value for key, value in scope["headers"] if key == b"host"]
        if len(given) == 1 and self._is_known(given[0].decode("latin-1")):
            await self._app(scope, receive, send_with_headers)
            return
        message = "this server is not known by that name: use its address, or start it with allowed_hosts="
        await _refusal(ApiError(403, message, code="unknown_host"))(scope, receive, send_with_headers)

    def _is_known(self, host: str) -> bool:
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:@/\[\]]+)(:\d{1,5})?", host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return True


async def _json_body(request: Request, most: int) -> Any:
    """Raises ApiError: it is no JSON, too large, or not sent in time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which no form of another site can send
        raise ApiError(415, "the body must be JSON, with Content-Type: application/json")
    too_large = ApiError(413, f"the body is larger than {most:,} bytes", code="body_too_large")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise too_large

    async def read() -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise too_large
        return bytes(body)

    try:
        return json.loads(await asyncio.wait_for(read(), BODY_SECONDS), parse_constant=_no_number)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"the body did not arrive within {BODY_SECONDS} seconds") from error
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is no valid JSON", code="invalid_json") from error


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON")


def _log_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    _log.info("refused (%s): %s", error.status, visible(str(error), keep=""))
    return _refusal(error)


def _refusal(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers=error.headers)


def _of_http(error: Exception) -> ApiError:
    assert isinstance(error, HTTPException)
    sentences = {404: _NOTHING, 405: "this address does not take that method"}
    return ApiError(error.status_code, sentences.get(error.status_code, error.detail), headers=error.headers)


def content_security_policy(page: str) -> str:
    """Only the page's own script and style run, and they speak to this server alone."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
