"""Take the pictures in docs/images: Prefect's UI while an agent lives and moves.

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

from lobstertrap.cli.demo_runs import run_deployment
from lobstertrap.cli.demo_stage import AGENT, DESTINATION, SOURCE, TOKEN, Stage
from lobstertrap.cli.demo_watch import Tally

WIDTH, HEIGHT = 1440, 900
SHOWN = {"flow-run": 580, "receipt": 730, "snapshot": 860, "agents": 420, "form": 860}
"""How much of each page, from the top: below it stand paths of this machine."""

WORDS = {
    "flow-run": "retire tally",
    "receipt": "Downtime",
    "snapshot": "Back to it",
    "agents": "last snapshot",
    "form": "approval",
}
"""What each page shows when it is drawn."""

SETTLE_SECONDS = 8.0
"""Real time: the UI draws its timeline and its Markdown in workers."""


def main() -> int:
    """Let an agent live between two host targets, then take a picture of each page."""
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
        try:
            migration = live()
            with browser(chromium) as page:
                for name, path in pages(migration).items():
                    take(page, f"{stage.server.url}{path}", target / f"{name}.png")
        finally:
            clear(stage)
    return 0


def live() -> str:
    """Launch, talk, snapshot, talk, snapshot, migrate; return the migration's name."""
    launched = run_deployment("launch-agent/default", agent=AGENT, on=SOURCE)
    address = next(iter(launched["addresses"].values()))
    tally = Tally(address=address, token=os.environ[TOKEN])
    for words in ("hello", "remember the lobsters"):
        tally.say(words)
        tally.grow(8)
        run_deployment("snapshot-agent/scheduled", agent=AGENT, mode="live")
    run_deployment("migrate-agent/default", agent=AGENT, to=DESTINATION)
    run_deployment("watch-agents/every-ten-minutes")
    return f"migrate {AGENT} -> {DESTINATION}"


def clear(stage: Stage) -> None:
    """Remove the agent from both targets."""
    spec = stage.config.agent(AGENT)
    for name in (SOURCE, DESTINATION):
        stage.config.target(name).stop(spec)
        stage.config.target(name).remove(spec, volumes=True)


def pages(migration: str) -> dict[str, str]:
    """Return the paths of the pages by the name of their picture."""
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - see Stage

    with get_client(sync_client=True) as client:
        moved = next(r for r in client.read_flow_runs() if r.name == migration)
        keys = {
            "receipt": f"migration-{AGENT}",
            "snapshot": f"snapshot-{AGENT}",
            "agents": "agents",
        }
        shown = {
            name: client.request(
                "POST",
                "/artifacts/latest/filter",
                json={"artifacts": {"key": {"any_": [key]}}},
            ).json()[0]["latest_id"]
            for name, key in keys.items()
        }
        form = client.read_deployment_by_name("migrate-agent/default").id
    return {
        "flow-run": f"/runs/flow-run/{moved.id}",
        "form": f"/deployments/deployment/{form}/run",
        **{name: f"/artifacts/artifact/{one}" for name, one in shown.items()},
    }


def take(page: ClientConnection, url: str, picture: Path) -> None:
    """Draw the page, wait until it has settled, and save what is seen."""
    ask(page, "Page.navigate", url=url)
    deadline = time.monotonic() + 120
    while WORDS[picture.stem] not in text_of(page):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} does not show {WORDS[picture.stem]!r}")
        time.sleep(0.5)
    time.sleep(SETTLE_SECONDS)
    area = {"x": 0, "y": 0, "width": WIDTH, "height": SHOWN[picture.stem], "scale": 1}
    drawn = ask(page, "Page.captureScreenshot", format="png", clip=area)
    picture.write_bytes(base64.b64decode(drawn["data"]))
    print(picture, picture.stat().st_size)


def text_of(page: ClientConnection) -> str:
    """Return what a person reads on the page."""
    asked = ask(page, "Runtime.evaluate", expression="document.body.innerText")
    return str(asked["result"].get("value", ""))


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
