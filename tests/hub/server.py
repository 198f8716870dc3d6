"""A hub on loopback: as much of huggingface.co's protocol as `datasets` and `huggingface_hub` need to read a
data set, with faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Fault = Callable[["_Handler", bytes], None]
COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """One data set or model at one commit, which every revision but "none" names. Each request for bytes of a
    shard takes the next of `faults`; None is no fault, as is an empty list. A model can be pushed to."""

    name: str = "emozilla/pg19"
    kind: str = "datasets"
    commit: str = COMMIT
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault | None] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    refuse_pushes: int | None = None  # the status of every answer to one
    refuse_reads: int | None = None  # the status of every answer
    port: int = 0  # 0: any; a restart uses the same again

    def start(self) -> None:
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", self.port), type("Handler", (_Handler,), {"hub": self})
        )
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.port = self._server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def shard_requests(self) -> list[str]:
        return [request for request in self.requests if "GET" in request and ".parquet" in request]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def do_POST(self) -> None:
        hub, sent = self.hub, self.rfile.read(int(self.headers["Content-Length"]))
        if "/commit/" in self.path:
            hub.requests.append(f"POST {self.path}")
            self._commit([json.loads(line) for line in sent.splitlines()])
            return
        body = json.loads(sent)
        hub.requests.append(f"POST {self.path} {body}")
        if self.path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif hub.refuse_pushes:
            self.send_status(hub.refuse_pushes)
        elif self.path == "/api/repos/create":
            hub.created.append(body)
            self.send_json({"url": f"{hub.endpoint}/{hub.name}"})
        elif "/preupload/" in self.path:
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.send_json({"files": [{"path": file["path"], **modes} for file in body["files"]]})
        elif "/paths-info/" in self.path:
            known = self._tree()
            self.send_json([entry for entry in known if entry["path"] in body["paths"]])
        else:
            self.send_status(404)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "file":
                self.hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.hub.endpoint}/{self.hub.name}/commit/{self.hub.commit}"
        self.send_json({"commitUrl": url, "commitOid": self.hub.commit, "success": True})

    def _answer(self, head: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        api, content = f"/api/{hub.kind}/{hub.name}", f"/datasets/{hub.name}/resolve/"
        if hub.kind == "models":
            content = f"/{hub.name}/resolve/"
        if hub.refuse_reads:
            self.send_status(hub.refuse_reads)
        elif re.search("/(resolve|revision|tree)/none(/|$)", path):
            self.send_status(404, {"X-Error-Code": "RevisionNotFound"})
        elif path == api or re.fullmatch(re.escape(api) + r"/revision/[^/]+", path):
            siblings = [{"rfilename": name} for name in hub.files]
            self.send_json({"id": hub.name, "sha": hub.commit, "siblings": siblings, "tags": []})
        elif path.startswith(f"{api}/tree/"):
            folder = path.removeprefix(f"{api}/tree/").partition("/")[2]
            self.send_json([entry for entry in self._tree() if _inside(entry, folder, self.path)])
        elif path.startswith(content):
            name = path.removeprefix(content).partition("/")[2]
            if name not in hub.files:
                self.send_status(404, {"X-Error-Code": "EntryNotFound"})
            else:
                self._send_file(name, head)
        else:
            self.send_status(404, {"X-Error-Code": "RepoNotFound"})

    def _tree(self) -> list[dict[str, Any]]:
        folders = {"/".join(name.split("/")[:-1]) for name in self.hub.files} - {""}
        entries: list[dict[str, Any]] = [
            {"type": "directory", "oid": _hash(folder.encode()), "size": 0, "path": folder}
            for folder in folders
        ]
        for name, content in self.hub.files.items():
            entries.append({"type": "file", "oid": _hash(content), "size": len(content), "path": name})
        return entries

    def _send_file(self, name: str, head: bool) -> None:
        whole = self.hub.files[name]
        headers = {
            "ETag": f'"{_hash(whole)}"',
            "X-Repo-Commit": self.hub.commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        body, status = whole, 200
        if wanted:
            first, last = int(wanted[1]), int(wanted[2] or len(whole) - 1)
            if first >= len(whole):
                self.send_status(416, {"Content-Range": f"bytes */{len(whole)}"})
                return
            body, status = whole[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{len(whole)}"
        if name.endswith(".parquet") and not head:
            fault = self.hub.faults.pop(0) if self.hub.faults else None
            if fault is not None:
                fault(self, body)
                return
        self.send_head(status, len(body), headers)
        if not head:
            self.wfile.write(body)

    def send_head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()

    def send_status(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_head(status, 0, headers)

    def send_json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_head(200, len(body), {"Content-Type": "application/json", "X-Repo-Commit": self.hub.commit})
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _inside(entry: dict[str, Any], folder: str, url: str) -> bool:
    parent, _, _ = entry["path"].rpartition("/")
    if "recursive=true" in url.lower():
        return entry["path"].startswith(f"{folder}/" if folder else "")
    return parent == folder


def status(number: int, **headers: str) -> Fault:
    """Answer with an HTTP status."""
    named = {key.replace("_", "-"): text for key, text in headers.items()}
    return lambda handler, body: handler.send_status(number, named)


def reset(handler: _Handler, body: bytes) -> None:
    """Send half of what was asked for, then reset the connection."""
    handler.send_head(206, len(body))
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def stall(handler: _Handler, body: bytes) -> None:
    """Send only the headers, until the client closes the connection."""
    handler.send_head(206, len(body))
    handler.wfile.flush()
    handler.connection.recv(1)
    handler.close_connection = True
