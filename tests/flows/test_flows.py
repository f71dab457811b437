"""The flows against a real Prefect server, a real S3 store, and a real tally."""

import pytest

from flows.launch_agent import launch_agent
from flows.migrate_agent import migrate_agent
from flows.restore_agent import restore_agent
from flows.snapshot_agent import snapshot_agent
from lobstertrap.errors import InvalidInput, NotFound, SecretMissing, Unhealthy

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.s3,
    pytest.mark.usefixtures("prefect_api"),
]


def test_an_agent_moves_with_its_state_and_back(world):
    launch_agent(agent="tally", on="laptop")
    world.tally("laptop").say("hello")
    transcript = world.tally("laptop").get("/state")["transcript_sha256"]

    there = migrate_agent(agent="tally", to="server")

    assert world.running() == ["server"]
    assert world.tally("server").get("/state")["transcript_sha256"] == transcript
    assert world.tally("server").say("and on") == 2
    assert there["digest_equal"]
    assert there["kinds"] == ["host", "host"]
    assert there["bytes_uploaded"] > 0
    assert 0 < there["downtime_seconds"] < there["seconds"]

    back = migrate_agent(agent="tally", to="laptop")

    assert world.running() == ["laptop"]
    assert world.tally("laptop").say("home again") == 3
    assert back["epoch"] > there["epoch"]
    assert world.tally("laptop").get("/state")["epochs"] == [
        *(1, there["epoch"], back["epoch"])
    ]


def test_names_may_be_left_out_where_there_is_only_one(world):
    launch_agent(on="laptop")

    receipt = migrate_agent()

    assert (receipt["agent"], receipt["destination"]) == ("tally", "server")


def test_a_snapshot_is_restored_and_the_agent_runs_again(world):
    launch_agent(agent="tally", on="laptop")
    world.tally("laptop").say("keep this")
    taken = snapshot_agent(agent="tally")
    world.tally("laptop").say("forget this")

    restored = restore_agent(agent="tally", to="laptop", snapshot=taken["snapshot"][:8])

    assert world.running() == ["laptop"]
    assert world.tally("laptop").get("/state")["messages"] == 1
    assert restored["tree_digest"] == taken["tree_digest"]


def test_a_live_snapshot_does_not_stop_the_agent(world):
    launch_agent(agent="tally", on="laptop")
    pid = world.tally("laptop").get("/state")["pid"]

    taken = snapshot_agent(agent="tally", mode="live")

    assert world.tally("laptop").get("/state")["pid"] == pid
    assert taken["files"] > 0


def test_an_unhealthy_destination_leaves_the_source_running_with_its_state(world):
    launch_agent(agent="tally", on="laptop")
    world.tally("laptop").say("do not lose me")
    world.break_tally_on("server")

    with pytest.raises(Unhealthy):
        migrate_agent(agent="tally", to="server")

    assert world.running() == ["laptop"]
    assert world.record.target == "laptop"
    assert world.tally("laptop").get("/state")["messages"] == 1


def test_a_missing_secret_is_found_before_the_source_is_stopped(world, monkeypatch):
    launch_agent(agent="tally", on="laptop")
    pid = world.tally("laptop").get("/state")["pid"]
    monkeypatch.delenv("TALLY_TOKEN")

    with pytest.raises(SecretMissing, match="TALLY_TOKEN"):
        migrate_agent(agent="tally", to="server")

    assert world.tally("laptop").get("/state")["pid"] == pid
    assert world.record.migration is None


def test_a_name_that_does_not_exist_is_named_with_those_that_do(world):
    with pytest.raises(NotFound, match="laptop, server"):
        launch_agent(agent="tally", on="nowhere")


def test_migrating_to_where_it_is_is_refused(world):
    launch_agent(agent="tally", on="laptop")

    with pytest.raises(InvalidInput, match="already lives"):
        migrate_agent(agent="tally", to="laptop")

    assert world.running() == ["laptop"]
