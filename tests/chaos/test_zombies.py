"""A process that is suspended, loses its lease, and wakes up: it must do no harm."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lobstertrap.errors import InvalidInput, LeaseLost, Refused, Unavailable
from tests.chaos import commands
from tests.chaos.operators import Operator, operators
from tests.chaos.parts import Process
from tests.chaos.world import World
from tests.fixtures.rounds import dice

Command = Callable[[Process], object]


def migrate(to: str) -> Command:
    """Return the command that moves the agent there, if it is not there yet."""

    def command(process: Process) -> None:
        try:
            commands.migrate(process, to)
        except InvalidInput as error:  # as good as one that arrives
            process.world.expect("already lives" in error.message, str(error))

    return command


def launch_at_home(process: Process) -> None:
    """Launch the agent where it lives."""
    record = process.world.record()
    commands.launch(process, record.target if record and record.target else "laptop")


def all_of(*several: Command) -> Command:
    """Return the command that does them all."""

    def command(process: Process) -> None:
        for each in several:
            each(process)

    return command


THERE, BACK = migrate("server"), migrate("laptop")
RIVALS = {
    "again": THERE,
    "abort": commands.abort,
    "abort, again": all_of(commands.abort, THERE),
    "there and back": all_of(THERE, BACK),
    "there, back and there": all_of(THERE, BACK, THERE),
    "there and stopped": all_of(THERE, commands.stop),
    "abort and stopped": all_of(commands.abort, commands.stop),
    "abort and removed": all_of(
        commands.abort, commands.stop, lambda it: commands.remove(it, "laptop")
    ),
}


def world_at(home: str = "laptop", *, fences: bool = True) -> World:
    """Return a world in which the agent runs at `home`."""
    world = World.of("laptop", "server", fences=fences)
    commands.launch(Process(world), home)
    return world


def suspended_before(world: World, command: Command, effect: int) -> Operator | None:
    """Return a process that sleeps before that effect; None when it has fewer."""
    zombie, _ = operators(world, "zombie", "rival")
    zombie.start(command)
    zombie.suspended = True
    return zombie if zombie.advance(effect) else None


def haunt(zombie: Operator, rival: Command) -> list[str]:
    """Let `rival` act while the zombie sleeps, wake it, and return what went wrong."""
    world = zombie.world
    other = zombie.neighbours[1]
    assert isinstance(other, Operator)
    other.start(rival).finish()
    # Refused while the zombie's own mover still holds a volume.
    assert other.outcome is None or isinstance(other.outcome, Refused | Unavailable)
    zombie.finish()
    assert world.record().migration is None
    return world.violations


@pytest.mark.parametrize("rival", RIVALS)
def test_a_zombie_migration_does_no_harm_wherever_it_slept(rival: str) -> None:
    effect = 0

    while True:
        world = world_at()
        zombie = suspended_before(world, THERE, effect)
        if zombie is None:
            break
        assert haunt(zombie, RIVALS[rival]) == [], f"before effect {effect}"
        wanted = world.record().state == "running"
        launch_at_home(Process(world))
        assert world.violations == []
        assert [place.name for place in world.places.values() if place.running] == [
            world.record().target
        ]
        assert wanted or "stopped" in rival or "removed" in rival
        effect += 1
    assert effect > 60


MENDERS = pytest.mark.parametrize(
    "command", [commands.abort, THERE], ids=["abort", "again"]
)


@MENDERS
def test_a_zombie_that_mends_a_killed_migration_does_no_harm(command: Command) -> None:
    chance = dice("a zombie mends")

    for rival in (commands.abort, THERE, all_of(THERE, BACK)):
        for _ in range(12):
            _mend_and_sleep(command, rival, chance.randrange(90), chance.randrange(70))


@MENDERS
@pytest.mark.parametrize("progress", range(10, 80, 4))
@pytest.mark.long
def test_a_zombie_that_mends_a_migration_killed_anywhere_does_no_harm(
    command: Command, progress: int
) -> None:
    for rival in (commands.abort, THERE, all_of(THERE, BACK)):
        for effect in range(200):
            if not _mend_and_sleep(command, rival, progress, effect):
                break


def _mend_and_sleep(
    command: Command, rival: Command, progress: int, effect: int
) -> bool:
    world = world_at()
    killed = Operator(world, name="killed")
    killed.start(THERE).advance(progress)
    killed.kill()
    zombie = suspended_before(world, command, effect)
    if zombie is not None:
        told = f"killed after {progress}, suspended before {effect}"
        assert haunt(zombie, rival) == [], told
    return zombie is not None


def test_a_zombie_launch_does_no_harm_wherever_it_slept() -> None:
    for rival in (THERE, all_of(launch_at_home, THERE), all_of(THERE, BACK)):
        for effect in range(100):
            world = world_at()
            commands.stop(Process(world))
            zombie = suspended_before(world, launch_at_home, effect)
            if zombie is None:
                break
            assert haunt(zombie, rival) == [], f"before effect {effect}"


@pytest.mark.parametrize("then", ["running", "stopped"])
def test_a_zombie_restore_does_not_write_over_what_came_later(then: str) -> None:
    for effect in range(100):
        world = world_at()
        old = commands.snapshot(Process(world))["snapshot"]
        newer = commands.snapshot(Process(world))["snapshot"]

        def zombie_restore(process: Process, snapshot: str = old) -> None:
            commands.restore(process, "laptop", snapshot)

        def rival(process: Process, snapshot: str = newer) -> None:
            commands.restore(process, "laptop", snapshot)
            if then == "stopped":
                commands.stop(process)

        zombie = suspended_before(world, zombie_restore, effect)
        if zombie is None:
            break
        assert haunt(zombie, rival) == [], f"before effect {effect}"
        commands.restore(Process(world), "laptop", newer)
        assert world.record().restoring is None
        assert world.violations == []
    assert effect > 20


def test_a_zombie_snapshot_is_not_taken_from_under_a_running_agent() -> None:
    for effect in range(100):
        world = world_at()
        commands.stop(Process(world))
        zombie = suspended_before(world, commands.snapshot, effect)
        if zombie is None:
            break
        assert haunt(zombie, launch_at_home) == [], f"before effect {effect}"
    assert effect > 8


def test_without_a_fence_a_zombie_starts_a_second_copy() -> None:
    found = set()

    for effect in range(100):
        zombie = suspended_before(world_at(fences=False), THERE, effect)
        if zombie is None:
            break
        found.update(haunt(zombie, commands.abort))

    assert "two copies run: ['laptop', 'server']" in found


def test_a_zombie_is_told_that_it_lost_its_lease() -> None:
    world = world_at()
    zombie = suspended_before(world, THERE, 30)
    assert zombie

    haunt(zombie, commands.abort)

    assert isinstance(zombie.outcome, LeaseLost)
