"""A store that was lost or put back: targets refuse it, until a person says so."""

from __future__ import annotations

from contextlib import suppress

import pytest

from lobstertrap import reclaim
from lobstertrap.errors import LobsterTrapError, NotFound, Refused, Unavailable
from lobstertrap.lease import AgentRecord, record_key
from tests.chaos import commands
from tests.chaos.parts import Fault, FencedTarget, Killed, Process
from tests.chaos.test_every_effect import assert_settled
from tests.chaos.world import AGENT, World


@pytest.fixture
def world() -> World:
    """Return a world whose agent has moved to `server` and runs there."""
    world = World.of("laptop", "server", "attic")
    commands.launch(Process(world), "laptop")
    commands.migrate(Process(world), "server")
    return world


def lose_bucket(world: World) -> None:
    world.store.delete(record_key(AGENT.name))
    world.epoch = 0


def put_back(world: World, record: AgentRecord | None) -> None:
    """Let the store have an older record again."""
    assert record
    world.store.put(record_key(AGENT.name), record.to_json())
    world.epoch, world.home = record.epoch, record.target


def reclaimed(world: World, on: str) -> AgentRecord:
    process = Process(world)
    with commands.hold(process, AGENT.name, "reclaim") as operation:
        return reclaim.reclaim(process.handle(operation), on, world.places)


def test_an_agent_that_runs_is_reclaimed_where_it_runs_and_goes_on(
    world: World,
) -> None:
    before = world.record()
    lose_bucket(world)

    record = reclaimed(world, "server")

    world.violations.clear()  # the world noticed that the record was gone
    assert (record.target, record.state) == ("server", "running")
    assert (record.epoch, record.turn) >= (before.epoch, before.turn)
    commands.snapshot(Process(world))
    commands.migrate(Process(world), "laptop")
    assert_settled(world)


def test_without_it_every_command_is_refused_and_says_what_to_do(world: World) -> None:
    lose_bucket(world)

    for command in (
        lambda it: commands.launch(it, "server"),
        lambda it: commands.launch(it, "laptop"),
        lambda it: commands.remove(it, "laptop", volumes=True),
    ):
        with pytest.raises(Refused, match="its record is older") as told:
            command(Process(world))
        assert "lobstertrap reclaim ada" in told.value.hint

    assert [place.name for place in world.places.values() if place.running] == [
        "server"
    ]
    assert world.places["laptop"].volume is not None


def test_a_store_that_was_put_back_does_not_start_the_old_copy() -> None:
    world = World.of("laptop", "server")
    commands.launch(Process(world), "laptop")
    commands.stop(Process(world))
    old = world.record()
    commands.launch(Process(world), "laptop")
    commands.migrate(Process(world), "server")
    put_back(world, old)

    with pytest.raises(Refused, match="its record is older"):
        commands.launch(Process(world), "laptop")
    assert not world.places["laptop"].running

    reclaimed(world, "server")
    world.violations.clear()  # the world noticed that the record was wrong
    commands.migrate(Process(world), "laptop")
    assert_settled(world)


def test_a_migration_that_the_record_still_has_open_is_closed(world: World) -> None:
    halfway = World.of("laptop", "server", "attic")
    commands.launch(Process(halfway), "laptop")
    with suppress(Killed):
        commands.migrate(Process(halfway, {30: Fault("before", Killed)}), "server")
    old = halfway.record()
    assert old.migration
    put_back(world, old)

    record = reclaimed(world, "server")

    assert record.migration is None
    world.violations.clear()
    assert_settled(world)


def test_it_is_reclaimed_nowhere_but_where_it_runs(world: World) -> None:
    lose_bucket(world)

    with pytest.raises(Refused, match="runs on 'server'"):
        reclaimed(world, "laptop")

    assert world.record().target is None


def test_a_target_without_its_volumes_is_no_home_if_another_has_some(
    world: World,
) -> None:
    world.places["server"].instance.running = False
    lose_bucket(world)

    with pytest.raises(NotFound, match="there are some on laptop, server"):
        reclaimed(world, "attic")


def test_a_target_that_does_not_answer_keeps_it_from_being_reclaimed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_bucket(world)
    answers = FencedTarget.status

    def status(self: FencedTarget, agent: object) -> object:
        if self.name == "attic":
            raise Unavailable("'attic' does not answer")
        return answers(self, AGENT)

    monkeypatch.setattr(FencedTarget, "status", status)

    with pytest.raises(LobsterTrapError, match=r"nobody knows .* runs on 'attic'"):
        reclaimed(world, "server")


def test_a_stopped_agent_is_reclaimed_and_can_be_launched(world: World) -> None:
    commands.stop(Process(world))
    lose_bucket(world)

    assert reclaimed(world, "server").state == "stopped"
    commands.launch(Process(world), "server")

    assert_settled(world)
