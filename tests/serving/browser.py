"""Headless Chromium, driven by its DevTools protocol over two pipes, which needs no library."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

FAULTS = ("Runtime.exceptionThrown", "Log.entryAdded")


class Browser:
    """One page. `close` it.

    Attributes:
        faults: the exceptions and complaints that the page has caused, refusals of its policy among them.
    """

    def __init__(self, executable: str, folder: Path) -> None:
        (commands, write), (read, answers) = os.pipe(), os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe"
        command = f'exec "$0" {flags} --user-data-dir="$1" about:blank 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, executable, str(folder)],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._write, self._read = os.fdopen(write, "wb", buffering=0), os.fdopen(read, "rb")
        self._numbers, self._session = count(1), {}
        self._pending = b""
        self.faults: list[Any] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command of the protocol."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params, **self._session}
        self._write.write(json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("method") in FAULTS:
                self.faults.append(message["params"])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            part = self._read.read1(65536)
            assert part, "the browser has ended"
            self._pending += part
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        again = f"Date.now() < end ? setTimeout(look, 10) : fail(new Error({json.dumps(condition)}))"
        look = f"const end = Date.now() + 60000, look = () => ({condition}) ? done() : {again}; look();"
        self.run(f"new Promise((done, fail) => {{ {look} }})")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def look(self, width: int, height: int, scheme: str) -> None:
        """Have a window of this size, in light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self) -> bytes:
        """A PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._write.close()
        self._read.close()
