"""What a server meets: clients that leave, that ask for too much, and that mean no good."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable

import openai
import pytest

from mambabyte.models import MegaByteConfig
from mambabyte.serving import app
from tests.serving.conftest import NAME, Served

JSON = {"Content-Type": "application/json"}


def exchange(served: Served, request: bytes) -> bytes:
    """The answer to bytes on a connection of their own."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def get(served: Served, path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Connection: close", *headers]
    return exchange(served, "\r\n".join([*lines, "", ""]).encode())


def test_a_client_that_leaves_a_stream_frees_its_rows(served: Served) -> None:
    stream = served.write(max_tokens=16384, n=3, stream=True)
    next(iter(stream))
    served.wait_for_load(rows=3)
    stream.close()
    served.wait_for_load(rows=0)


def test_a_client_that_leaves_before_its_answer_frees_its_rows(served: Served) -> None:
    body = json.dumps({"model": NAME, "prompt": "a", "max_tokens": 16384}).encode()
    host, port = served.url.removeprefix("http://").split(":")
    served.gate.clear()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        lines = ["POST /v1/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
        connection.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        served.wait_for_load(rows=1)
    served.gate.set()
    served.wait_for_load(rows=0)


def test_a_busy_server_says_when_to_try_again(serving: Callable) -> None:
    with serving(max_rows=2, max_queue=1) as server:
        server.gate.clear()
        done: list[str] = []
        clients = [
            threading.Thread(target=lambda n=n: done.append(server.text(n=n, max_tokens=4))) for n in (2, 1)
        ]
        for client, load in zip(clients, ((2, 0), (2, 1)), strict=True):
            client.start()
            server.wait_for_load(*load)
        with pytest.raises(openai.RateLimitError, match="busy") as refusal:
            server.write()
        assert refusal.value.response.headers["retry-after"] == "1"
        assert server.http.get("/health").json() == {"status": "ok", "rows": 2, "waiting": 1}
        server.gate.set()
        for client in clients:
            client.join(30)
        assert len(done) == 2


def test_a_models_own_limit_is_a_requests(serving: Callable) -> None:
    small = {"d_model": 16, "n_head": 2, "local_d_model": 16, "local_n_head": 1, "n_layer": 1}
    model = MegaByteConfig(patch_size=4, max_length=64, **small).build().eval()
    with serving(model=model, max_length=64) as server:
        assert server.write("a" * 40, max_tokens=24).usage.completion_tokens == 24
        with pytest.raises(openai.BadRequestError, match="at most 64 together"):
            server.write("a" * 40, max_tokens=25)


def test_the_end_of_the_server_is_told_to_those_who_wait(serving: Callable) -> None:
    with serving() as server:
        stream = server.write(max_tokens=16384, stream=True)
        next(iter(stream))
        server.engine.close()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            server.write()
        assert server.http.get("/health").status_code == 503


def test_a_body_that_does_not_arrive_is_not_waited_for(served: Served, monkeypatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.05)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert (
        b" 408 "
        in exchange(served, head + b"Connection: close\r\nContent-Length: 100\r\n\r\n{").splitlines()[0]
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"n": NaN}', b'{"n": 1e999}', b'{"n": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "latin", "deep", "nan", "infinite", "long-number"],
)
def test_bodies_that_are_no_json(served: Served, body: bytes) -> None:
    answer = served.http.post("/v1/completions", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [[], "a", 3, [{}]])
def test_bodies_that_are_no_object(served: Served, body: object) -> None:
    answer = served.http.post("/v1/completions", json=body)
    assert answer.status_code == 400 and "JSON object" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_forms_of_other_sites_are_refused(served: Served, kind: str) -> None:
    answer = served.http.post("/v1/completions", content=b'{"model":"tiny"}', headers={"Content-Type": kind})
    assert answer.status_code == 415
    asked_first = served.http.options("/v1/completions", headers={"Origin": "http://evil.example"})
    assert asked_first.status_code == 405
    assert not [name for name in asked_first.headers if name.startswith("access-control")]


def test_large_bodies_are_refused_by_what_they_say_and_by_what_they_are(serving: Callable) -> None:
    with serving(max_body_bytes=1000) as server:
        content = b'{"model": "tiny", "prompt": "' + b"a" * 2000 + b'"}'
        for body in (content, iter([content])):  # with a length, and in chunks
            answer = server.http.post("/v1/completions", content=body, headers=JSON)
            assert answer.status_code == 413 and "1,000 bytes" in answer.json()["error"]["message"]
        with pytest.raises(openai.APIStatusError, match="1,000 bytes"):
            server.write("a" * 2000)
        claimed = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        answer = exchange(server, f"{claimed}Content-Length: {10**15}\r\nConnection: close\r\n\r\n".encode())
        assert b" 413 " in answer.splitlines()[0]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:1", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("our.name:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("localhost@evil.example", 403),
        ("evil.example/localhost", 403),
        ("", 403),
    ],
)
def test_names_that_are_not_the_servers_are_refused(served: Served, host: str, status: int) -> None:
    for path in ("/", "/health", "/v1/models"):
        answer = get(served, path, f"Host: {host}")
        assert f" {status} ".encode() in answer.splitlines()[0], answer[:200]
    assert b" 200 " not in get(served, "/health").splitlines()[0]
    assert b" 200 " not in get(served, "/health", "Host: localhost", f"Host: {host}").splitlines()[0]


@pytest.mark.parametrize(
    "path", ["/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.html", "//etc/passwd"]
)
def test_no_files_are_served(served: Served, path: str) -> None:
    answer = get(served, path, "Host: localhost")
    assert b" 404 " in answer.splitlines()[0] and b"nothing at this address" in answer
    assert b" 404 " in get(served, f"/v1/models{path}", "Host: localhost").splitlines()[0]


def test_other_methods_are_refused(served: Served) -> None:
    for method, path in (("GET", "/v1/completions"), ("DELETE", "/v1/models/tiny"), ("POST", "/")):
        answer = served.http.request(method, path)
        assert answer.status_code == 405 and answer.json()["error"]["message"]


def test_every_answer_forbids_other_sites_to_use_it(served: Served) -> None:
    for path in ("/", "/health", "/nothing"):
        headers = served.http.get(path, headers={"Origin": "http://evil.example"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
    policy = served.http.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


def test_a_key_is_asked_for_where_one_is_set(serving: Callable) -> None:
    with serving(key="sesame") as server:
        assert server.text(max_tokens=4)
        for wrong in ("wrong", "sesame2"):
            with pytest.raises(openai.AuthenticationError, match="API key"):
                server.client.with_options(api_key=wrong).models.list()
        assert server.http.get("/v1/models").status_code == 401
        assert (
            b" 401 "
            in get(server, "/v1/models", "Host: localhost", "Authorization: Bearer é").splitlines()[0]
        )
        assert server.http.get("/").status_code == server.http.get("/health").status_code == 200
