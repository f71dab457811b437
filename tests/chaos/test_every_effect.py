"""One migration, struck at every single one of its effects, in memory.

The flows' and tasks' own code runs (tests/chaos/commands.py), so the order that is
tested is the order that is shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import cache

import pytest

from lobstertrap.errors import InvalidInput, LobsterTrapError, Refused, Unavailable
from tests.chaos import commands
from tests.chaos.parts import Fault, Killed, Process
from tests.chaos.world import World
from tests.fixtures.rounds import dice

LOOKS = ("get", "head", "status", "inspect")


def launched(*, running: bool = True) -> World:
    """Return a world in which the agent lives on `laptop` and has written something."""
    world = World.of("laptop", "server")
    commands.launch(Process(world), "laptop")
    if not running:
        commands.stop(Process(world))
    return world


def effects_of(command: Callable[[Process], object], world: World) -> list[str]:
    """Return every effect of a command that nothing disturbs."""
    process = Process(world)
    command(process)
    return process.effects


def to_server(process: Process) -> object:
    """Migrate; an agent that has arrived already is as good as one that arrives."""
    try:
        return commands.migrate(process, "server")
    except InvalidInput:
        return None


def killed(world: World, command: Callable[[Process], object], fault: int) -> bool:
    """Run `command`, kill it before that effect, and say whether it lived so long."""
    process = Process(world, {fault: Fault("before", Killed)})
    try:
        command(process)
    except Killed:
        return True
    except LobsterTrapError:
        return process.dead
    return process.dead


def assert_settled(world: World) -> None:
    """Check that nobody works on the agent, and that what is there should be."""
    record = world.record()
    assert world.violations == []
    assert record is not None
    assert record.migration is None
    running = {name: place for name, place in world.places.items() if place.running}
    assert list(running) == ([record.target] if record.state == "running" else [])
    for place in running.values():
        assert place.instance
        assert place.instance.epoch == record.epoch
    home = world.places[record.target or ""].volume
    assert home
    assert not home.torn
    assert home.messages[: len(world.kept)] == world.kept
    epochs = [epoch for epoch, _ in home.messages]
    assert epochs == sorted(epochs)


@cache
def migration() -> tuple[str, ...]:
    """Return every effect of a migration that nothing disturbs, in order."""
    return tuple(effects_of(lambda it: commands.migrate(it, "server"), launched()))


def test_a_migration_has_the_effects_that_this_suite_believes_it_has() -> None:
    for effect in (
        "laptop.snapshot",
        "server.restore",
        "laptop.stop",
        "server.launch",
        "laptop.remove",
    ):
        assert effect in migration()
    assert migration().count("put") >= 9
    assert migration().count("server.restore") == 3  # two of them while it runs
    assert len(migration()) > 60


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("then", ["again", "abort", "abort, again"])
def test_killed_anywhere_it_ends_committed_or_rolled_back(
    running: bool, then: str
) -> None:
    count = len(effects_of(to_server, launched(running=running)))

    for fault in range(count):
        world = launched(running=running)
        assert killed(world, to_server, fault)
        committed = world.home == "server"
        if then != "again":
            commands.abort(Process(world))
            assert_settled(world)
            assert world.home == ("server" if committed else "laptop")
        if then != "abort":
            to_server(Process(world))
            assert world.home == "server"
            assert world.places["laptop"].instance is None
        assert_settled(world)
        assert world.record().operation is None
    assert not killed(launched(running=running), to_server, count)


OTHERS: dict[str, Callable[[Process], object]] = {
    "launch": lambda it: commands.launch(it, "laptop"),
    "snapshot": commands.snapshot,
    "restore": lambda it: commands.restore(it, "laptop", first_snapshot(it.world)),
    "stop": commands.stop,
    "remove": lambda it: commands.remove(it, "laptop"),
}


def first_snapshot(world: World) -> str:
    """Return the oldest snapshot's id."""
    return next(iter(world.snapshots))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("error", [Killed, Unavailable, Refused, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_every_other_command_struck_anywhere_is_finished_by_the_same_command(
    name: str, error: type[BaseException], when: str
) -> None:
    def prepared() -> World:
        world = launched(running=name not in ("launch", "remove"))
        commands.snapshot(Process(world))
        return world

    for fault in range(len(effects_of(OTHERS[name], prepared()))):
        world = prepared()
        process = Process(world, {fault: Fault(when, error)})
        with suppress(error, LobsterTrapError):
            OTHERS[name](process)
        OTHERS[name](Process(world))
        assert_settled(world)
        assert world.record().restoring is None
        assert any(it.running for it in world.places.values()) == (
            name not in ("stop", "remove")
        ), f"{process.effects[fault]} ({fault})"


def test_killed_in_the_middle_of_a_restore_it_ends_committed_or_rolled_back() -> None:
    restores = [
        at for at, effect in enumerate(migration()) if effect == "server.restore"
    ]

    for fault in restores:
        for way in (to_server, commands.abort):
            world = launched()
            with pytest.raises(Killed):
                to_server(Process(world, {fault: Fault("during", Killed)}))
            assert world.places["server"].volume.torn
            way(Process(world))
            assert_settled(world)


def test_killed_twice_it_ends_committed_or_rolled_back() -> None:
    chance, rounds = dice("killed twice"), 0

    for _ in range(150):
        way = chance.choice((to_server, commands.abort))
        first, second = chance.randrange(len(migration())), chance.randrange(70)
        rounds += _kill_twice(first, way, second)
    assert rounds > 50


@pytest.mark.long
def test_killed_twice_anywhere_it_ends_committed_or_rolled_back() -> None:
    rounds = 0

    for first in _acting(migration()):
        for way in (to_server, commands.abort):
            for second in range(200):
                if not _kill_twice(first, way, second):
                    break
                rounds += 1
    assert rounds > 500


def _kill_twice(first: int, way: Callable[[Process], object], second: int) -> bool:
    world = launched()
    killed(world, to_server, first)
    twice = killed(world, way, second)
    to_server(Process(world))
    assert_settled(world)
    assert world.home == "server"
    return twice


@pytest.mark.parametrize("error", [Unavailable, Refused, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_an_error_anywhere_is_compensated_by_the_same_run(
    error: type[BaseException], when: str
) -> None:
    for fault in range(len(migration())):
        world = launched()
        process = Process(world, {fault: Fault(when, error)})
        try:
            commands.migrate(process, "server")
        except error:
            # One that may pass is tried again by every step: only taking the lease not.
            assert error is not Unavailable or fault < 2
        else:
            assert world.home == "server"
        assert_settled(world)
        to_server(Process(world))
        assert_settled(world)
        assert world.home == "server"


@pytest.mark.parametrize("part", ["server", "laptop", "store"])
def test_when_a_part_is_gone_for_good_nothing_is_lost_and_its_return_mends_it(
    part: str,
) -> None:
    for start in range(len(migration())):
        for way in (to_server, commands.abort):
            world = launched()
            with pytest.raises(Unavailable) if start < _last(part) else nullcontext():
                commands.migrate(_Cut(world, part=part, start=start), "server")
            assert world.violations == []
            way(Process(world))
            assert_settled(world)
            assert world.home == "server" or way is commands.abort


def test_a_source_that_goes_away_while_staging_does_not_keep_the_migration_open() -> (
    None
):
    start = migration().index("laptop.snapshot")
    world = launched()

    with pytest.raises(Unavailable):
        commands.migrate(_Cut(world, part="laptop", start=start), "server")

    assert_settled(world)
    assert world.home == "laptop"


def test_an_unhealthy_destination_is_rolled_back_wherever_the_rollback_is_killed() -> (
    None
):
    def migrate_to_ill(process: Process) -> None:
        process.world.places["server"].healthy = False
        commands.migrate(process, "server")

    world, process = launched(), None
    process = Process(world)
    with pytest.raises(LobsterTrapError, match="not ready"):
        migrate_to_ill(process)
    assert_settled(world)
    assert world.home == "laptop"

    for fault in range(len(process.effects)):
        for way in (to_server, commands.abort):
            world = launched()
            assert killed(world, migrate_to_ill, fault)
            world.places["server"].healthy = True
            way(Process(world))
            assert_settled(world)


def test_an_ill_source_does_not_keep_its_migration_open() -> None:
    world = launched()
    for place in world.places.values():
        place.healthy = False

    with pytest.raises(LobsterTrapError, match="not ready"):
        commands.migrate(Process(world), "server")

    assert_settled(world)
    assert world.home == "laptop"


class _Cut(Process):
    def __init__(self, world: World, *, part: str, start: int) -> None:
        super().__init__(world)
        self._part, self._start = part, start

    def _next(self, label: str) -> Fault | None:
        found = super()._next(label)
        if len(self.effects) > self._start and _part_of(label) == self._part:
            return Fault("before", Unavailable)
        return found


def _part_of(label: str) -> str:
    return label.partition(".")[0] if "." in label else "store"


def _last(part: str) -> int:
    """Return the last effect whose failure fails the run: the rest only tidies up."""
    retire = migration().index("laptop.remove")
    commit = max(at for at in range(retire) if migration()[at] == "put")
    return max(at for at in range(commit + 1) if _part_of(migration()[at]) == part) + 1


def _acting(effects: Sequence[str]) -> Iterator[int]:
    for at, effect in enumerate(effects):
        if effect.rpartition(".")[2] not in LOOKS:
            yield at
