"""Removing an agent with its volumes: they stay until their state is saved."""

from __future__ import annotations

from contextlib import suppress

import pytest

from lobstertrap.errors import Refused, Unavailable
from tests.chaos import commands
from tests.chaos.parts import Fault, Killed, Process
from tests.chaos.world import AGENT, World


def stopped_at(home: str) -> World:
    """Return a world in which the agent is stopped at `home`, never snapshotted."""
    world = World.of("laptop", "server")
    commands.launch(Process(world), home)
    commands.stop(Process(world))
    return world


def remove(process: Process, on: str = "laptop") -> str | None:
    return commands.remove(process, on, volumes=True)


def test_volumes_are_snapshotted_before_they_are_removed() -> None:
    world = stopped_at("laptop")
    before = world.places["laptop"].volume.messages

    saved = remove(Process(world))

    assert world.places["laptop"].volume is None
    assert world.snapshots[saved] == before
    assert (world.record().target, world.record().snapshot) == (None, saved)
    assert world.violations == []


def test_a_removal_without_a_snapshot_removes_nothing() -> None:
    world = stopped_at("laptop")
    process = Process(world)
    at = effects_of_removal().index("laptop.snapshot")
    process.faults[at] = Fault("before", Unavailable)

    with pytest.raises(Unavailable):
        remove(process)

    assert world.places["laptop"].volume is not None
    assert world.violations == []


def effects_of_removal() -> list[str]:
    process = Process(stopped_at("laptop"))
    remove(process)
    return process.effects


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_removal_killed_anywhere_is_finished_by_the_same_command(when: str) -> None:
    for fault in range(len(effects_of_removal())):
        world = stopped_at("laptop")
        kept = world.kept
        with suppress(Killed):
            remove(Process(world, {fault: Fault(when, Killed)}))

        remove(Process(world))

        record = world.record()
        assert world.violations == []
        assert record.target is None
        assert world.snapshots[record.snapshot] == kept
        assert world.places["laptop"].volume is None


def test_a_running_agent_keeps_its_volumes_and_is_not_snapshotted() -> None:
    world = World.of("laptop", "server")
    commands.launch(Process(world), "laptop")

    with pytest.raises(Refused, match="runs on 'laptop'"):
        remove(Process(world))

    assert world.snapshots == {}


def test_a_stale_copy_goes_without_a_snapshot_of_its_own() -> None:
    world = stopped_at("laptop")
    commands.migrate(Process(world), "server")
    last = world.record().snapshot

    assert remove(Process(world), "laptop") is None

    assert world.places["laptop"].volume is None
    assert world.record().snapshot == last
    assert world.violations == []


def test_a_stale_copy_stays_while_the_home_does_not_show_its_volumes() -> None:
    world = stopped_at("laptop")
    commands.migrate(Process(world), "server")
    world.places["server"].volume = None
    world.violations.clear()

    with pytest.raises(Refused, match="may be the only copy"):
        remove(Process(world), "laptop")

    assert world.places["laptop"].volume is not None


def test_volumes_of_an_agent_without_a_record_are_saved_too() -> None:
    world = stopped_at("laptop")
    world.store.delete(f"agents/{AGENT.name}/record.json")  # its bucket was lost
    world.epoch, world.home = 0, None
    place = world.places["laptop"]
    place.epoch_barred = place.turn_barred = 0

    assert remove(Process(world)) in world.snapshots
