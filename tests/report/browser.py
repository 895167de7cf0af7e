"""A headless Chromium, driven over DevTools' pipe: no driver program and no package in between."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Chromium reads commands from the first and writes answers to the second.
COMMANDS, ANSWERS = 3, 4
PATIENCE_SECONDS = 60.0


def find_browser() -> str | None:
    """The browser's path, or None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in a browser; a context manager.

    Attributes:
        complaints: What the console said as an error or warning, and exceptions that nobody caught.
        requests: Addresses that the page asked for.
    """

    def __init__(self, path: str, profile: Path) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._buffer = b""
        command_read, self._command = os.pipe()
        self._answer, answer_write = os.pipe()
        # The child's ends are moved out of the way of the numbers that they shall have.
        high_read, high_write = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (command_read, answer_write))
        os.close(command_read)
        os.close(answer_write)

        def place() -> None:
            os.dup2(high_read, COMMANDS)
            os.dup2(high_write, ANSWERS)

        switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        switches += ["--disable-background-networking", "--disable-extensions", "--hide-scrollbars"]
        self._process = subprocess.Popen(
            [path, *switches, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=place,  # noqa: PLW1509 - numbers of descriptors can be set in no other way
            close_fds=False,
        )
        os.close(high_read)
        os.close(high_write)
        self._session: str | None = None

    def __enter__(self) -> Browser:
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._command)
        os.close(self._answer)

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._command, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._answer, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser has ended")
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.complaints.append(str([a.get("value", a.get("description")) for a in parameters["args"]]))
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(parameters["exceptionDetails"])[:2000])
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.complaints.append(json.dumps(parameters["entry"])[:2000])
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
        return message

    def window(self, width: int, height: int, dark: bool, phone: bool = False) -> None:
        """Sets the window's size in CSS pixels and the colour scheme that the user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self._send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page: Path) -> None:
        """Loads a file and waits until it has loaded."""
        self._send("Page.navigate", url=page.absolute().as_uri())
        self.wait_for(f"document.readyState === 'complete' && location.href.startsWith('{page.absolute().as_uri()}')")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self._send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Waits until a JavaScript condition holds."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.ask(condition):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.05)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Writes a PNG file of the window, or of the whole page."""
        shot = self._send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
