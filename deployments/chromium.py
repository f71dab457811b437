"""A headless Chromium, told what to do by its DevTools protocol."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_START_SECONDS = 120.0
_ANSWER_SECONDS = 60.0


class Page:
    """One page of a running browser."""

    def __init__(self, connection: ClientConnection) -> None:
        """Take the connection to the page's own DevTools address."""
        self._connection = connection
        self._asked = 0

    def open(self, url: str) -> None:
        """Go to an address; what is there is drawn some time later."""
        self.ask("Page.navigate", url=url)

    def text(self) -> str:
        """Return what a person reads on the page now."""
        words = "document.body ? document.body.innerText : ''"
        asked = self.ask("Runtime.evaluate", expression=words)
        return str(asked["result"].get("value", ""))

    def wait_for(self, words: str, seconds: float = 120.0) -> str:
        """Return the page's text when it has these words.

        Raises `TimeoutError` with what is there instead.
        """
        deadline = time.monotonic() + seconds
        while words not in (text := self.text()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the page does not show {words!r} but {text!r}")
            time.sleep(0.5)
        return text

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command of the protocol and return its result."""
        self._asked += 1
        command = {"id": self._asked, "method": method, "params": params}
        self._connection.send(json.dumps(command))
        while True:
            answer = json.loads(self._connection.recv(timeout=_ANSWER_SECONDS))
            if answer.get("id") == self._asked:
                return dict(answer["result"])


@contextmanager
def browser(chromium: str, width: int = 1440, height: int = 900) -> Iterator[Page]:
    """Run a headless Chromium with a profile of its own; yield its page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, "--headless", "--disable-gpu", "--disable-quic"]
        command += ["--no-first-run", "--disable-background-networking"]
        command += ["--disable-component-update", "--disable-sync"]
        command += ["--disable-dev-shm-usage"]  # /dev/shm is small in a container
        command += ["--hide-scrollbars", f"--window-size={width},{height}"]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        command += [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [*command, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_address(Path(profile)), max_size=None) as connection:
                yield Page(connection)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(profile: Path) -> str:
    """Return the DevTools address of the first page, once Chromium has written it."""
    note = profile / "DevToolsActivePort"
    deadline = time.monotonic() + _START_SECONDS
    while True:
        if note.exists() and note.read_text():
            port = note.read_text().splitlines()[0]
            asked = f"http://127.0.0.1:{port}/json/list"
            with urllib.request.urlopen(asked, timeout=_ANSWER_SECONDS) as answer:
                shown = json.load(answer)
            found = [p["webSocketDebuggerUrl"] for p in shown if p["type"] == "page"]
            if found:
                return str(found[0])
        if time.monotonic() > deadline:
            raise TimeoutError("Chromium does not start")
        time.sleep(0.1)
