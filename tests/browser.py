"""Drives headless Chromium over its DevTools protocol, with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed, which shows the page here")

PATIENCE = 60
"""Seconds for Chromium to start, and to answer."""


class Tab:
    """One page of a running Chromium."""

    def __init__(self, port: int, path: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.events: list[dict[str, Any]] = []
        """All that Chromium reported, in order."""
        self._number = 0
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self.socket.makefile("rb")
        assert b" 101 " in self._stream.readline()
        while self._stream.readline().strip():
            pass
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Result of one command; events that come before it are kept."""
        self._number += 1
        self._send(json.dumps({"id": self._number, "method": method, "params": parameters}).encode())
        while (message := json.loads(self._receive())).get("id") != self._number:
            self.events.append(message)
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def open(self, address: str) -> None:
        """Go there and wait until it is loaded; what was reported before is forgotten."""
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=address)
        until = time.monotonic() + PATIENCE
        while self.run("[document.readyState, location.href]") != ["complete", address]:
            assert time.monotonic() < until, f"{address} does not load"
            time.sleep(0.05)

    def run(self, expression: str) -> Any:
        """Value of a JavaScript expression, waited for if it is a promise."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, (expression, result["exceptionDetails"])
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def complaints(self) -> list[str]:
        """Exceptions, console errors and warnings, and what the page's policy refused."""
        found = []
        for event in self.events:
            method, about = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(str(about["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.append(str(about["args"]))
            elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.append(about["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Addresses asked for, pictures inside the page left out."""
        sent = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [address for address in sent if not address.startswith("data:")]

    def _send(self, data: bytes) -> None:
        """One text frame (RFC 6455, 5.2); what a client sends is masked, here with zeros."""
        size = len(data)
        if size < 126:
            length = bytes([0x80 | size])
        else:
            length = bytes([0xFE]) + struct.pack(">H", size) if size < 2**16 else b"\xff" + struct.pack(">Q", size)
        self.socket.sendall(b"\x81" + length + bytes(4) + data)

    def _receive(self) -> bytes:
        """One message, whose frames are joined."""
        message = b""
        while True:
            first, size = self._stream.read(2)
            if size >= 126:
                size = int.from_bytes(self._stream.read(2 if size == 126 else 8), "big")
            message += self._stream.read(size)
            if first & 0x80:
                return message


@contextmanager
def chromium(*flags: str) -> Iterator[Tab]:
    """Starts Chromium with one empty page, and ends it."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        process = subprocess.Popen(
            [CHROMIUM, *options, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = _port(Path(profile, "DevToolsActivePort"), process)
            tab = Tab(port, _page(port))
            with closing(tab.socket):
                yield tab
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _port(file: Path, process: subprocess.Popen) -> int:
    until = time.monotonic() + PATIENCE
    while not (file.is_file() and file.read_text().count("\n")):
        assert process.poll() is None, "Chromium ended at once"
        assert time.monotonic() < until, "Chromium does not start"
        time.sleep(0.05)
    return int(file.read_text().split()[0])


def _page(port: int) -> str:
    """Path of the WebSocket of the first page."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            connection.request("GET", "/json/list")
            targets = json.loads(connection.getresponse().read())
        for target in targets:
            if target["type"] == "page":
                return target["webSocketDebuggerUrl"].split(str(port), 1)[1]
        time.sleep(0.05)
    raise AssertionError("Chromium has no page")
