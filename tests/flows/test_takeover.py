"""A laptop is lost: its agent lives on from the last snapshot, on a real target."""

import json

import pytest

from flows.launch_agent import launch_agent
from flows.migrate_agent import migrate_agent
from flows.restore_agent import restore_agent
from flows.snapshot_agent import snapshot_agent
from flows.watch_agents import watch_agents
from lobstertrap.errors import Refused

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.s3,
    pytest.mark.usefixtures("prefect_api"),
]


@pytest.fixture
def lost(world, monkeypatch):
    """Return a world whose laptop, where tally runs, does not answer any more."""
    launch_agent(agent="tally", on="laptop")
    world.tally("laptop").say("in the snapshot")
    snapshot_agent(agent="tally")
    world.tally("laptop").say("after it")
    file = world.directory / "lobstertrap.toml"
    whole = file.read_text("utf-8")
    gone = 'kind = "podman"\nurl = "unix:///nowhere/at/all.sock"'
    file.write_text(whole.replace('kind = "host"\nroot = "laptop"', gone), "utf-8")
    yield world, lambda: file.write_text(whole, "utf-8")
    file.write_text(whole, "utf-8")


def test_an_agent_lives_on_and_its_old_copy_is_shown_when_it_returns(lost):
    world, bring_back = lost
    asked = ("restore", "tally", "--to", "server", "--takeover")
    _, said = world.start(*asked).communicate(timeout=120)

    assert "lost: everything that 'tally' did after snapshot" in said
    assert "--yes" in said
    assert world.record.target == "laptop"

    restored = restore_agent(agent="tally", to="server", takeover=True)

    assert restored["phase"] == "running"
    assert world.tally("server").get("/state")["messages"] == 1
    assert world.record.target == "server"

    bring_back()
    out, _ = world.start("status", "--json").communicate(timeout=60)
    rows = {row["target"]: row for row in json.loads(out)["agents"]}
    assert rows["laptop"]["state"] == "running"
    assert rows["laptop"]["epoch"] < rows["server"]["epoch"]
    assert "must not run here" in rows["laptop"]["notes"][0]
    with pytest.raises(Refused, match="lives on 'server'"):
        launch_agent(agent="tally", on="laptop")
    with pytest.raises(Refused, match="already runs on 'laptop'"):
        migrate_agent(agent="tally", to="laptop")

    left_alone = {r["where"]: r for r in watch_agents(stop_old_copies=False)["agents"]}
    assert left_alone["laptop"]["old_copy"]
    assert world.status("laptop").phase == "running"
    watch_agents()
    assert world.status("laptop").phase == "stopped"
    assert world.status("server").phase == "running"
