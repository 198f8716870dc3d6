"""Listening: a socket, uvicorn on it, and an end by signal."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from mambabyte.errors import UserError
from mambabyte.runtime.signals import exit_at_once
from mambabyte.serving.engine import Engine

_GRACE = 5  # seconds that connections have to close in
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one.

    Raises:
        UserError: the port is taken or not allowed, or the host is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"host={host} is no address or name of this machine") from error
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} is taken: choose another by port=, or a free one by port=0"
        elif error.errno == errno.EACCES:
            message = f"port {port} is not allowed for this user: choose one above 1023"
        else:
            message = f"host={host} is no address or name of this machine"
        raise UserError(message) from error
    return listener


def url(listener: socket.socket) -> str:
    """Where a browser on this machine finds the socket."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches the socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


class Server(uvicorn.Server):
    """uvicorn around an engine: a signal ends what is being written, and is no failure."""

    def __init__(self, app: ASGIApp, engine: Engine) -> None:
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
        super().__init__(config)
        self._engine = engine

    def stop(self) -> None:
        """End: no new requests, and those that are on their way fail. From any thread."""
        self._engine.close()
        self.should_exit = True

    def serve_on(self, listener: socket.socket) -> None:
        """Serve until `stop`, or a signal in the main thread."""
        self._engine.start()
        try:
            self.run(sockets=[listener])
        finally:
            self._engine.close()
            self._engine.join()

    def _stop_by_signal(self, number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, exit_at_once)  # the second one
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but signals are not raised once more at the end."""
        try:
            previous = {number: signal.signal(number, self._stop_by_signal) for number in _SIGNALS}
        except ValueError:  # not in the main thread
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
