"""Take the pictures in docs/images: Prefect's UI while an agent lives and moves.

It needs Chromium, and the project's own Python, in a checkout where `make demo` works:

    .venv/bin/python deployments/screenshots.py docs/images
"""

from __future__ import annotations

import base64
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from deployments.chromium import Page, browser
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
            with browser(chromium, WIDTH, HEIGHT) as page:
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


def take(page: Page, url: str, picture: Path) -> None:
    """Draw the page, wait until it has settled, and save what is seen."""
    page.open(url)
    page.wait_for(WORDS[picture.stem])
    time.sleep(SETTLE_SECONDS)
    area = {"x": 0, "y": 0, "width": WIDTH, "height": SHOWN[picture.stem], "scale": 1}
    drawn = page.ask("Page.captureScreenshot", format="png", clip=area)
    picture.write_bytes(base64.b64decode(drawn["data"]))
    print(picture, picture.stat().st_size)


if __name__ == "__main__":
    sys.exit(main())
