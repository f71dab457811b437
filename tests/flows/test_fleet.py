"""Emptying a target: every agent moves, and one that cannot stops no other."""

import pytest

from flows.launch_agent import launch_agent
from flows.migrate_fleet import migrate_fleet
from lobstertrap.errors import InvalidInput, Permanent
from lobstertrap.lease import read_record

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
]
NAMES = ("tally", "tally-b", "tally-c")


@pytest.fixture
def fleet(world):
    """Return a world with three tallies; they are stopped at the end."""
    first = world.directory / "agents" / "tally"
    for name in NAMES[1:]:
        other = world.directory / "agents" / name
        other.mkdir()
        (other / "tally.py").write_bytes((first / "tally.py").read_bytes())
        text = (first / "agent.yaml").read_text("utf-8")
        named = text.replace("name: tally", f"name: {name}\nlabels: [letters]")
        (other / "agent.yaml").write_text(named)
    for name in NAMES:
        launch_agent(agent=name, on="laptop")
    yield world
    for name in NAMES[1:]:
        for target in ("laptop", "server"):
            spec = world.config.agent(name)
            world.config.target(target).stop(spec)
            world.config.target(target).remove(spec, volumes=True)


def homes(world):
    store = world.config.open_store()
    return {name: read_record(store, name).target for name in NAMES}


def test_one_that_cannot_move_stays_and_stops_no_other(fleet):
    program = fleet.directory / "agents" / "tally-b" / "tally.py"
    whole = program.read_text("utf-8")
    sign = "from __future__ import annotations\n"
    broken = 'import os\nif "/server/" in os.environ["TALLY_STATE"]: os._exit(9)\n'
    program.write_text(whole.replace(sign, sign + broken, 1), "utf-8")

    with pytest.raises(Permanent, match="2 of 3 agents moved") as failed:
        migrate_fleet(source="laptop", to="server")

    assert "tally-b: failed" in failed.value.message
    assert homes(fleet) == {"tally": "server", "tally-b": "laptop", "tally-c": "server"}
    laptop = fleet.config.target("laptop")
    assert laptop.status(fleet.config.agent("tally-b")).phase == "running"

    program.write_text(whole, "utf-8")
    again = migrate_fleet(source="laptop", to="server")

    assert [row["agent"] for row in again["agents"]] == ["tally-b"]
    assert set(homes(fleet).values()) == {"server"}

    back = migrate_fleet(to="laptop", label="letters")

    assert [row["agent"] for row in back["agents"]] == ["tally-b", "tally-c"]
    assert homes(fleet)["tally"] == "server"


def test_a_fleet_is_a_source_or_a_label(world):
    with pytest.raises(InvalidInput, match="which agents"):
        migrate_fleet(to="laptop")


def test_a_target_is_not_emptied_onto_itself(world):
    with pytest.raises(InvalidInput, match="onto itself"):
        migrate_fleet(source="laptop", to="laptop")
