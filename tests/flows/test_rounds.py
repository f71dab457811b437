"""What is done to all agents by a schedule: snapshots, upkeep, and a look around."""

import json

import pytest
from prefect.client.orchestration import get_client

from flows.launch_agent import launch_agent
from flows.maintain_repository import maintain_repository
from flows.snapshot_agent import snapshot_agent
from flows.watch_agents import watch_agents
from lobstertrap.errors import IntegrityError, Permanent
from lobstertrap.repository.format import PACK_PREFIX
from tasks.step import load_config

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.s3,
    pytest.mark.usefixtures("prefect_api"),
]


def page(key: str):
    """Return what the newest artifact with this key shows."""
    with get_client(sync_client=True) as client:
        found = client.request(
            "POST",
            "/artifacts/latest/filter",
            json={"artifacts": {"key": {"any_": [key]}}},
        ).json()
    return found[0]["data"]


@pytest.fixture(scope="module")
def world(shared_world):
    """Return a world with two agents, added by a directory each and nothing else."""
    launch_agent(agent="tally", on="laptop")
    first, other = (shared_world.directory / "agents" / n for n in ("tally", "twin"))
    other.mkdir()
    (other / "tally.py").write_bytes((first / "tally.py").read_bytes())
    spec = (first / "agent.yaml").read_text("utf-8")
    (other / "agent.yaml").write_text(spec.replace("name: tally", "name: twin"))
    launch_agent(agent="twin", on="laptop")
    yield shared_world
    twin = shared_world.config.agent("twin")
    shared_world.config.target("laptop").stop(twin)
    shared_world.config.target("laptop").remove(twin, volumes=True)


def test_a_round_takes_a_snapshot_of_every_agent_and_says_what_changed(world):
    first = snapshot_agent(mode="live")
    world.tally("laptop").say("something new")
    second = snapshot_agent()

    assert [row["agent"] for row in first["agents"]] == ["tally", "twin"]
    assert second["taken"] == 2
    receipt = page("snapshot-tally")
    assert f"since {first['agents'][0]['snapshot']}: " in receipt
    assert "| M | `state/transcript.jsonl` |" in receipt


def test_what_fails_or_is_held_stops_no_other_and_is_named(world):
    spec = world.directory / "agents" / "tally" / "agent.yaml"
    whole = spec.read_text("utf-8")
    spec.write_text(f"{whole}\nimago: x\n", "utf-8")

    with pytest.raises(Permanent, match="1 of 2 agents were taken") as failed:
        snapshot_agent(mode="live")
    spec.write_text(whole, "utf-8")
    with load_config().hold("tally", "migrate"):
        skipped = snapshot_agent(mode="live")

    assert "tally: failed: " in failed.value.message
    assert [row["agent"] for row in skipped["agents"]] == ["twin"]


def test_a_look_around_finds_drift_and_what_has_no_fresh_snapshot(world):
    snapshot_agent(agent="tally", mode="live")

    good = watch_agents()["agents"][0]
    world.config.target("laptop").stop(world.config.agent("tally"))
    bad = watch_agents(fresh_hours=1e-6)["agents"][0]
    launch_agent(agent="tally", on="laptop")

    assert (good["where"], good["drift"], good["stale"]) == ("laptop", "", False)
    assert "should be running" in bad["drift"]
    assert bad["stale"]
    row = json.loads(page("agents"))[0]
    assert (row["agent"], row["where"], row["stale"]) == ("tally", "laptop", "yes")
    assert "should be running" in row["drift and notes"]
    assert json.loads(page("snapshots"))[0]["agent"] == "tally"


def test_upkeep_forgets_frees_and_finds_damage(world):
    for _ in range(2):
        snapshot_agent(agent="tally", mode="live")
    rules = dict.fromkeys(("keep_daily", "keep_weekly", "keep_monthly"), 0)

    done = maintain_repository(keep_hourly=1, sample_percent=100, **rules)

    (tally,) = (row for row in done["forgotten"] if row["agent"] == "tally")
    assert tally["forgotten"] >= 1
    assert 1 <= tally["kept"] <= 2  # an hour may have ended in between
    assert done["checked"]["ok"]
    assert done["checked"]["packs_read"] == done["checked"]["packs"] > 0
    assert "every snapshot can be restored" in page("repository")

    store = world.config.open_store()
    for info in [*store.list(PACK_PREFIX)]:
        store.delete(info.key)
    with pytest.raises(IntegrityError, match="is damaged"):
        maintain_repository()
