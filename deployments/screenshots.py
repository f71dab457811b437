"""Take the pictures in docs/images: Prefect's UI after the demo has migrated an agent.

It needs Chromium, and the project's own Python, in a checkout where `make demo` works:

    .venv/bin/python deployments/screenshots.py docs/images
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from lobstertrap.cli.demo import Report, perform
from lobstertrap.cli.demo_stage import Stage

WIDTH, HEIGHT = 1440, 900
SHOWN = {"flow-run": 580, "receipt": 730}
"""How much of each page, from the top: below it stand paths of this machine."""

SETTLE_SECONDS = 8.0
"""Real time: the UI draws its timeline and its Markdown in workers."""


def main() -> int:
    """Play the demo with host targets, then take one picture of each page."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or not sys.argv[1:]:
        print("usage: screenshots.py DIRECTORY (and Chromium has to be installed)")
        return 2
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        Stage(Path(scratch) / "demo", "host") as stage,
    ):
        perform(stage, Report())
        with browser(chromium) as page:
            for name, path in pages().items():
                take(page, f"{stage.server.url}{path}", target / f"{name}.png")
    return 0


def pages() -> dict[str, str]:
    """Return the paths of the pages by the name of their picture."""
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - see Stage

    with get_client(sync_client=True) as client:
        there = next(r for r in client.read_flow_runs() if r.name.endswith("-> server"))
        receipts = client.request(
            "POST",
            "/artifacts/filter",
            json={"artifacts": {"key": {"any_": ["migration-tally"]}}},
        ).json()
        receipt = next(r for r in receipts if r["flow_run_id"] == str(there.id))
    return {
        "flow-run": f"/runs/flow-run/{there.id}",
        "receipt": f"/artifacts/artifact/{receipt['id']}",
    }


def take(page: ClientConnection, url: str, picture: Path) -> None:
    """Draw the page, wait until it has settled, and save what is seen."""
    ask(page, "Page.navigate", url=url)
    time.sleep(SETTLE_SECONDS)
    area = {"x": 0, "y": 0, "width": WIDTH, "height": SHOWN[picture.stem], "scale": 1}
    drawn = ask(page, "Page.captureScreenshot", format="png", clip=area)
    picture.write_bytes(base64.b64decode(drawn["data"]))
    print(picture, picture.stat().st_size)


def ask(page: ClientConnection, method: str, **params: Any) -> dict[str, Any]:
    """Send one command of the DevTools protocol and return its result."""
    page.send(json.dumps({"id": 1, "method": method, "params": params}))
    while True:
        answer = json.loads(page.recv(timeout=30))
        if answer.get("id") == 1:
            return dict(answer["result"])


@contextmanager
def browser(chromium: str) -> Iterator[ClientConnection]:
    """Run a headless Chromium with a profile of its own; yield its page."""
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, "--headless", "--disable-gpu", "--disable-quic"]
        command += ["--no-first-run", "--disable-background-networking"]
        command += ["--disable-component-update", "--disable-sync"]
        command += ["--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        command += [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        process = subprocess.Popen([*command, "about:blank"], stderr=subprocess.DEVNULL)
        try:
            with connect(page_address(Path(profile)), max_size=None) as page:
                yield page
        finally:
            process.terminate()
            process.wait()


def page_address(profile: Path) -> str:
    """Return the DevTools address of the first page, once Chromium has written it."""
    import urllib.request  # noqa: PLC0415 - only here

    note = profile / "DevToolsActivePort"
    deadline = time.monotonic() + 30
    while not note.exists() or not note.read_text():
        if time.monotonic() > deadline:
            raise TimeoutError("Chromium does not start")
        time.sleep(0.1)
    port = note.read_text().splitlines()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
        pages = json.load(answer)
    return str(next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page"))


if __name__ == "__main__":
    sys.exit(main())
