"""The automations that deployments/automations.py makes, on a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect import tags
from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.states import Running

from deployments.automations import remove_others
from flows.launch_agent import launch_agent
from flows.maintain_repository import maintain_repository
from flows.migrate_agent import migrate_agent
from flows.snapshot_agent import snapshot_agent
from flows.watch_agents import watch_agents
from lobstertrap.cli.checkout import find_checkout
from lobstertrap.errors import IntegrityError, NotFound
from lobstertrap.repository.format import PACK_PREFIX

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.timeout(2400),
]
AGENT = "lobstertrap.agent.tally"


@pytest.fixture
def client():
    """Return a client of the server, whose automations are gone afterwards."""
    with get_client(sync_client=True) as made:
        yield made
        list(remove_others(made, set()))


@pytest.fixture
def heard() -> Iterator[list[dict[str, str]]]:
    """Listen at a webhook; `HOOK` in the environment is its address."""
    told: list[dict[str, str]] = []

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers["Content-Length"])
            told.append(json.loads(self.rfile.read(size)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Ear) as ear, pytest.MonkeyPatch.context() as env:
        env.setenv("HOOK", f"http://127.0.0.1:{ear.server_port}/hook")
        listening = threading.Thread(target=ear.serve_forever)
        listening.start()
        yield told
        ear.shutdown()
        listening.join()


def automate(*arguments: str) -> list[str]:
    """Run the script as a person does; return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "deployments/automations.py", *arguments],
        cwd=find_checkout(),
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def send(client, event: str, resource: str, **payload: object) -> None:
    """Send an event as a flow run does."""
    about = {"prefect.resource.id": resource, "prefect.resource.name": "tally"}
    told = Event(event=event, resource=about, payload=payload)
    client.request("POST", "/events", json=[told.model_dump(mode="json")])


def wait_until(condition) -> None:
    # Fifteen minutes is how long the server holds an event back that overtook another.
    deadline = time.monotonic() + 1000
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.2)


@pytest.mark.s3
@pytest.mark.slow
def test_what_really_fails_reaches_the_webhook(client, heard, world):
    launch_agent(agent="tally", on="laptop")
    snapshot_agent(agent="tally", mode="live")
    automate("--webhook", os.environ["HOOK"], "--unseen", "0.0034")
    world.config.target("laptop").stop(world.config.agent("tally"))

    watch_agents(fresh_hours=1e-9)  # and nobody looks for 12 seconds afterwards
    with tags("snapshot"), pytest.raises(NotFound):
        snapshot_agent(agent="ghost")
    with tags("migrate"), pytest.raises(NotFound):
        migrate_agent(agent="tally", to="nowhere")
    store = world.config.open_store()
    for info in [*store.list(PACK_PREFIX)]:
        store.delete(info.key)
    with tags("maintain"), pytest.raises(IntegrityError):
        maintain_repository()
    subjects = {
        *("tally is not as it should be", "tally has no fresh snapshot"),
        *("A snapshot failed", "A migration failed"),
        *("The check of the repository failed", "Nobody looks at the agents any more"),
    }
    wait_until(lambda: subjects <= {one["subject"] for one in heard})

    said = {one["subject"]: one["text"] for one in heard}
    assert said.keys() == subjects
    assert "ghost" in said["A snapshot failed"]
    assert "nowhere" in said["A migration failed"]
    assert "damaged" in said["The check of the repository failed"]
    assert "should be running" in said["tally is not as it should be"]


def test_problems_reach_a_webhook_once_and_dead_runs_end(client, heard):
    hook = ("--webhook", os.environ["HOOK"])
    made = automate(*hook, "--dead-after", "0.2")
    dead = client.create_flow_run(migrate_agent, state=Running())
    send(client, "prefect.flow-run.heartbeat", f"prefect.flow-run.{dead.id}")
    for _ in range(2):
        send(client, "lobstertrap.agent.drifted", AGENT, where="a", drift='"gone"')
    send(client, "lobstertrap.agent.stale", AGENT, age_hours=7)

    wait_until(lambda: len(heard) >= 2)
    wait_until(lambda: client.read_flow_run(dead.id).state.name == "Crashed")
    kept = automate(*hook)

    assert {one["subject"]: one["text"] for one in heard} == {
        "tally is not as it should be": 'On a: "gone"',
        "tally has no fresh snapshot": "The last one is 7 hours old.",
    }
    assert len(heard) == 2
    assert len(made) == 7
    assert all(line.startswith("made: ") for line in made)
    assert kept == [line.replace("made: ", "kept: ") for line in made]
