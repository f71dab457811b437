"""The steps of a migration one by one: what they refuse, repeat and leave behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from lobstertrap import lifecycle, migration
from lobstertrap.errors import (
    IntegrityError,
    InvalidInput,
    LeaseLost,
    LobsterTrapError,
    NoSpace,
    NotFound,
    Refused,
    SecretMissing,
    Unavailable,
)
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.targets.base import TargetInfo
from tests.chaos import commands
from tests.chaos.parts import FencedTarget, Process, see
from tests.chaos.world import Instance, World


@dataclass(frozen=True, slots=True)
class Odd(FencedTarget):
    """A target that is as usual except for what a test says."""

    odd: dict[str, Any] = field(default_factory=dict)

    def inspect(self) -> TargetInfo:
        """Say what it is."""
        if "inspect" in self.odd:
            raise self.odd["inspect"]
        free, identity = self.odd.get("free"), self.odd.get("identity", self.name)
        info = super(Odd, self).inspect()
        return replace(info, free_bytes=free, identity=identity)

    def stop(self, *args: Any) -> None:
        """Stop it."""
        if "stop" in self.odd:
            raise self.odd["stop"]
        if "deaf" not in self.odd:
            super(Odd, self).stop(*args)

    def remove(self, *args: Any, **kwargs: Any) -> None:
        """Remove it."""
        if "remove" in self.odd:
            raise self.odd["remove"]
        super(Odd, self).remove(*args, **kwargs)

    def run_mover(self, *args: Any) -> dict[str, Any]:
        """Move."""
        if (
            "mover" in self.odd
            and args[1].request.get("tags", {}).get("purpose") == "rolled-back"
        ):
            raise self.odd["mover"]
        return super(Odd, self).run_mover(*args) | self.odd.get("result", {})


class Odder(Process):
    """A process that sees odd targets."""

    def __init__(self, world: World, **odd: dict[str, Any]) -> None:
        super().__init__(world)
        self.odd = odd

    def handle(self, operation: str) -> AgentHandle:
        """Return what the domain's functions act through."""
        usual = super().handle(operation)
        return replace(
            usual,
            target=lambda name: Odd(
                self, self.world.places[name], self.odd.get(name, {})
            ),
        )


@pytest.fixture
def world() -> World:
    world = World.of("laptop", "server", "attic")
    commands.launch(Process(world), "laptop")
    return world


def handle_of(world: World, **odd: dict[str, Any]) -> AgentHandle:
    process = Odder(world, **odd)
    return process.handle(process.acquire("test").operation_id)


def opened(world: World, until: str = "begin", **odd: dict[str, Any]) -> AgentHandle:
    """Return a handle whose migration to `server` is as far as that step."""
    handle = handle_of(world, **odd)
    migration.begin(handle, migration.plan(handle, "server"))
    for step in ("stage", "precopy", "quiesce", "transfer", "launch"):
        if until == "begin":
            break
        getattr(migration, step)(handle)
        if step == until:
            break
    return handle


def test_an_agent_that_was_never_launched_cannot_be_moved() -> None:
    with pytest.raises(NotFound, match="has never been launched"):
        migration.plan(handle_of(World.of("laptop", "server")), "server")


def test_the_place_where_it_lives_is_no_destination(world: World) -> None:
    with pytest.raises(InvalidInput, match="already lives on 'laptop'"):
        migration.plan(handle_of(world), "laptop")


def test_two_names_of_one_place_are_refused(world: World) -> None:
    handle = handle_of(world, server={"identity": "laptop"})

    with pytest.raises(InvalidInput, match="are the same place"):
        migration.plan(handle, "server")


def test_a_plan_lists_every_problem_at_once_and_changes_nothing(world: World) -> None:
    def no_secrets() -> Any:
        raise SecretMissing("no value for TOKEN")

    gone = {"inspect": Unavailable("'server' does not answer")}
    handle = replace(handle_of(world, server=gone), secrets=no_secrets)
    world.places["laptop"].volume = None
    before = world.record()

    with pytest.raises(Unavailable) as found:
        migration.plan(handle, "server")

    for problem in ("does not answer", "TOKEN", "volume 'state'"):
        assert problem in found.value.message
    assert world.record() == before


def test_a_copy_that_runs_at_the_destination_is_refused(world: World) -> None:
    stray = see(Process(world), "server")
    world.violations.clear()
    stray.place.volume = stray.place.volume or world.places["laptop"].volume
    stray._launch(1)

    with pytest.raises(Refused, match=r"already runs on 'server' \(epoch 1\)"):
        migration.plan(handle_of(world), "server")


def test_another_destination_is_refused_while_a_migration_is_open(
    world: World,
) -> None:
    handle = opened(world)

    with pytest.raises(Refused, match="from 'laptop' to 'server' is open") as found:
        migration.plan(handle, "attic")
    assert "--abort" in (found.value.hint or "")


def test_a_plan_of_an_open_migration_says_where_it_goes_on(world: World) -> None:
    for step, journal in (("begin", "staging"), ("quiesce", "cutover")):
        handle = opened(world, step)

        assert migration.plan(handle, "server").resumes == journal
        assert migration.plan(handle, "server").was_running


def test_a_plan_that_fails_in_an_open_cutover_says_how_to_go_back(
    world: World,
) -> None:
    server: dict[str, Any] = {}
    handle = opened(world, "quiesce", server=server)
    server["inspect"] = Unavailable("'server' does not answer")

    with pytest.raises(Unavailable) as found:
        migration.plan(handle, "server")

    assert "go back to 'laptop': lobstertrap migrate" in (found.value.hint or "")


@pytest.mark.parametrize(
    "step",
    [
        migration.stage,
        migration.precopy,
        migration.quiesce,
        migration.transfer,
        migration.launch,
        migration.await_healthy,
        lambda handle: migration.commit(handle, "server"),
    ],
)
def test_no_step_goes_forward_without_a_journal_or_during_a_rollback(
    world: World, step: Callable[[AgentHandle], object]
) -> None:
    handle = handle_of(world)
    with pytest.raises(Refused, match="no migration of agent 'ada' is open"):
        step(handle)

    stuck = {"stop": Unavailable("'server' does not answer")}
    handle = opened(world, "launch", server={})
    broken = replace(
        handle,
        target=lambda name: Odd(
            Process(world), world.places[name], stuck if name == "server" else {}
        ),
    )
    with pytest.raises(Unavailable):
        migration.rollback(broken)
    before = (world.record(), world.places["server"].instance)

    with pytest.raises(Refused, match="is being rolled back"):
        step(handle)
    assert (world.record(), world.places["server"].instance) == before


def test_a_destination_that_cannot_be_shown_stopped_keeps_the_source_stopped(
    world: World,
) -> None:
    handle = opened(world, "launch", server={})
    stuck = Odder(world, server={"stop": Unavailable("'server' does not answer")})

    with pytest.raises(Unavailable):
        migration.rollback(stuck.handle(handle.lease.operation_id))

    assert not world.places["laptop"].running
    assert world.record().migration.step == "rolling-back"
    assert migration.rollback(handle) == "laptop"
    assert world.places["laptop"].running
    assert not world.places["server"].running
    assert world.violations == []


def stuck_at(handle: AgentHandle, world: World, place: str) -> AgentHandle:
    """Return a handle of the same operation for which nothing can be stopped there."""
    stuck = {place: {"stop": Unavailable(f"'{place}' does not answer")}}
    return Odder(world, **stuck).handle(handle.lease.operation_id)


def test_the_journal_says_that_the_source_stops_before_it_is_stopped(
    world: World,
) -> None:
    handle = opened(world, "precopy")

    with pytest.raises(Unavailable):
        migration.quiesce(stuck_at(handle, world, "laptop"))

    assert world.record().migration.step == "cutover"
    assert migration.rollback(handle) == "laptop"  # it may have been told to stop
    assert world.places["laptop"].instance == Instance(epoch=2)
    assert world.violations == []


def test_a_source_that_does_not_end_is_not_left_for_stopped(world: World) -> None:
    handle = opened(world, "precopy", laptop={"deaf": True})

    with pytest.raises(Refused, match="'ada' still runs on 'laptop'"):
        migration.quiesce(handle)


def test_a_restore_bars_the_movers_of_who_held_the_agent_before(world: World) -> None:
    opened(world, "precopy")

    assert world.places["server"].turn_barred == world.record().turn


def test_nothing_is_restored_under_an_agent_that_runs(world: World) -> None:
    process = Process(world)
    handle = process.handle(process.acquire("test").operation_id)

    with pytest.raises(Refused, match="'ada' runs on 'laptop'"):
        lifecycle.restore(handle, "laptop", snapshot="any")

    assert "laptop.restore" not in process.effects


def test_the_journal_stays_until_the_source_runs_again(world: World) -> None:
    handle = opened(world, "transfer")

    with pytest.raises(Unavailable):
        migration.rollback(stuck_at(handle, world, "laptop"))

    assert world.record().migration.step == "rolling-back"
    assert migration.rollback(handle) == "laptop"
    assert world.places["laptop"].running


def test_a_copy_at_the_destination_is_stopped_before_it_is_written_to(
    world: World,
) -> None:
    handle = opened(world, "quiesce")
    world.places["server"].instance = Instance(epoch=1)  # somebody's, by hand

    migration.transfer(handle)

    assert not world.places["server"].running
    assert world.places["server"].volume == world.places["laptop"].volume


def test_a_source_that_was_started_by_hand_is_stopped_before_the_launch(
    world: World,
) -> None:
    handle = opened(world, "transfer")
    world.places["laptop"].instance = Instance(epoch=1)

    migration.launch(handle)

    assert [place.name for place in world.places.values() if place.running] == [
        "server"
    ]
    assert not any("two copies" in broken for broken in world.violations)


def test_an_agent_that_was_stopped_is_not_started_by_a_rollback(world: World) -> None:
    commands.stop(Process(world))

    migration.rollback(opened(world, "transfer"))

    assert not any(place.running for place in world.places.values())


def test_a_rollback_leaves_the_destinations_volume_and_bars_its_epoch(
    world: World,
) -> None:
    handle = opened(world, "launch")
    epoch = world.record().epoch

    migration.rollback(handle)

    server = world.places["server"]
    assert server.volume
    assert server.instance is None
    with pytest.raises(Refused, match="too late"):
        see(Process(world), "server")._launch(epoch)


def test_what_a_destination_wrote_is_in_a_snapshot_that_is_not_the_agents_last(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    handle = opened(world, "launch")
    written = world.written
    handle.record()  # it writes a message after every effect
    last = world.record().snapshot

    migration.rollback(handle)

    accepted = world.places["server"].volume
    assert accepted
    assert world.written > written
    (kept,) = [s for s, held in world.snapshots.items() if held == accepted.messages]
    assert kept != last
    assert world.record().snapshot == last
    assert f"'server' is in snapshot {kept[:8]}" in caplog.text
    assert world.places["laptop"].running


def test_a_snapshot_that_cannot_be_taken_does_not_hold_up_a_rollback(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    handle = opened(world, "launch", server={"mover": NoSpace("the store is full")})

    assert migration.rollback(handle) == "laptop"
    assert world.places["laptop"].running
    assert world.record().migration is None
    assert "only in its volumes there: the store is full" in caplog.text


def test_a_destination_where_nothing_ever_ran_has_written_nothing(
    world: World,
) -> None:
    handle = opened(world, "transfer")
    world.places["server"].mover = "somebody's"
    with pytest.raises(Refused, match="a mover is at work"):
        migration.launch(handle)
    before = {*world.snapshots}

    migration.rollback(handle)

    assert {*world.snapshots} == before


def test_rolling_back_nothing_does_nothing(world: World) -> None:
    before = world.record()
    handle = handle_of(world)

    assert migration.rollback(handle) is None
    assert world.record().epoch == before.epoch


def test_a_full_destination_is_noticed_before_the_source_is_stopped(
    world: World,
) -> None:
    process = Odder(world, server={"free": 3})

    with pytest.raises(NoSpace, match="'server' has 3 bytes free"):
        commands.migrate(process, "server")

    assert "laptop.stop" not in process.effects
    assert world.places["laptop"].running


def test_a_destination_with_an_older_copy_needs_room_for_the_rest_only(
    world: World,
) -> None:
    commands.migrate(Process(world), "server")

    commands.migrate(Odder(world, laptop={"free": 3}), "laptop")

    assert world.home == "laptop"


@pytest.mark.parametrize(
    ("odd", "error"),
    [
        ({"tree_digest": "another"}, IntegrityError),
        ({"verified": False}, IntegrityError),
    ],
)
def test_a_copy_that_differs_is_never_launched(
    world: World, odd: dict[str, Any], error: type[LobsterTrapError]
) -> None:
    with pytest.raises(error):
        commands.migrate(Odder(world, server={"result": odd}), "server")

    assert world.places["server"].instance is None
    assert world.places["laptop"].running
    assert world.record().migration is None


def test_a_stopped_agent_moves_and_stays_stopped(world: World) -> None:
    commands.stop(Process(world))

    process = Process(world)
    commands.migrate(process, "server")

    assert not any(place.running for place in world.places.values())
    assert (world.record().target, world.record().state) == ("server", "stopped")
    assert "server.launch" not in process.effects


def test_a_commit_may_be_repeated_and_is_not_taken_for_another(world: World) -> None:
    handle = opened(world, "launch")
    first = migration.commit(handle, "server")

    assert migration.commit(handle, "server") == first
    with pytest.raises(Refused, match="no migration"):
        migration.commit(handle, "attic")


def test_what_cannot_be_tidied_up_does_not_fail_what_was_done(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    gone = Unavailable("'laptop' does not answer")

    commands.migrate(Odder(world, laptop={"remove": gone}), "server")

    assert world.home == "server"
    assert "could not tidy up 'laptop'" in caplog.text
    assert world.record().leftovers == ("laptop",)


def test_what_could_not_be_tidied_up_is_when_the_command_is_run_again(
    world: World,
) -> None:
    gone = Unavailable("'laptop' does not answer")
    commands.migrate(Odder(world, laptop={"remove": gone}), "server")

    with pytest.raises(InvalidInput, match="already lives on 'server'"):
        commands.migrate(Process(world), "server")

    assert world.places["laptop"].instance is None
    assert world.places["laptop"].volume is not None
    assert world.record().leftovers == ()


def test_an_old_place_is_forgotten_when_it_is_the_home_again_or_in_no_file() -> None:
    world = World.of("laptop", "server")
    commands.launch(Process(world), "laptop")
    handle = handle_of(world)
    handle.lease.update(lambda now: replace(now, leftovers=("burnt", "laptop")))

    def target(name: str) -> FencedTarget:
        if name == "burnt":
            raise NotFound("no target 'burnt'")
        return handle.target(name)

    migration.retire_leftovers(replace(handle, target=target))

    assert world.record().leftovers == ()
    assert world.places["laptop"].running


def test_who_lost_the_lease_touches_nothing_in_any_step(world: World) -> None:
    handle = opened(world, "quiesce")
    process = Process(world)
    process.acquire("theft")
    before = repr(world.places)

    for step in (
        migration.stage,
        migration.precopy,
        migration.quiesce,
        migration.transfer,
        migration.launch,
        migration.rollback,
        lambda it: migration.commit(it, "server"),
    ):
        with pytest.raises(LeaseLost):
            step(handle)
    migration.retire(handle, "laptop")

    assert repr(world.places) == before


def test_a_destination_that_runs_already_is_neither_staged_nor_launched_again(
    world: World,
) -> None:
    epoch = migration.launch(opened(world, "transfer"))
    process = Process(world)
    handle = process.handle(process.acquire("again").operation_id)

    assert migration.stage(handle) == "ada:1"
    assert migration.launch(handle) == epoch
    assert "server.bind_secrets" not in process.effects
    assert "server.launch" not in process.effects
    assert migration.transfer(handle) == {}


def test_an_agent_that_lost_its_volumes_is_not_started_with_nothing(
    world: World,
) -> None:
    commands.snapshot(Process(world))
    laptop = world.places["laptop"]
    laptop.instance, laptop.volume = None, None

    for command in (commands.snapshot, lambda it: commands.launch(it, "laptop")):
        with pytest.raises(Refused, match="it would start with nothing"):
            command(Process(world))

    assert laptop.volume is None
