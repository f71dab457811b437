"""A real tally on host targets is moved by processes that are killed, while in use."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from lobstertrap import config
from tests.chaos.conftest import Driver, Place, wait_for_messages, wait_until
from tests.chaos.driver import STEPS
from tests.fixtures.rounds import dice, rounds, some
from tests.fixtures.tally import TallyClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def there(home: str) -> str:
    """Return the other target."""
    return "server" if home == "laptop" else "laptop"


DANGEROUS = ("stop_source", "transfer_state", "launch_destination", "commit_migration")


def test_killed_at_a_boundary_the_same_command_moves_it_whole(place: Place) -> None:
    _kill_after_each(place, some(DANGEROUS, 3, "boundaries"))


@pytest.mark.long
def test_killed_at_every_boundary_the_same_command_moves_it_whole(
    place: Place,
) -> None:
    _kill_after_each(place, STEPS)


@pytest.mark.podman
def test_killed_between_podman_engines_the_same_command_moves_it_whole(
    podman_place: Place,
) -> None:
    _kill_after_each(podman_place, some(DANGEROUS[:3], 2, "between engines"))


@pytest.mark.podman
@pytest.mark.long
def test_killed_at_every_boundary_between_podman_engines_it_moves_whole(
    podman_place: Place,
) -> None:
    _kill_after_each(podman_place, STEPS)


@pytest.mark.podman
@pytest.mark.kubernetes
def test_killed_on_the_way_to_a_cluster_the_same_command_moves_it_whole(
    cluster_place: Place,
) -> None:
    _kill_after_each(cluster_place, some(DANGEROUS[:3], 1, "to a cluster"))


@pytest.mark.podman
@pytest.mark.kubernetes
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_at_every_boundary_on_the_way_to_a_cluster_it_moves_whole(
    cluster_place: Place,
) -> None:
    _kill_after_each(cluster_place, STEPS)


def _kill_after_each(place: Place, steps: Sequence[str]) -> None:
    home = "laptop"
    for step in steps:
        home = _killed_after(place, step, home)
        place.assert_sound(home)


def _killed_after(place: Place, step: str, home: str) -> str:
    wait_for_messages(place.talker)
    killed = place.driver.migrate(there(home), kill=(step, "after"))
    assert killed.status == -signal.SIGKILL, place.driver.errors()
    if place.record.target == home:
        ended = place.driver.migrate(there(home))
        assert ended.status == 0, place.driver.errors()
    wait_for_messages(place.talker)
    return there(home)


def test_killed_at_any_moment_the_same_command_moves_it_whole(place: Place) -> None:
    chance = dice("any moment")

    _kill_at_any_moment(place, [chance] * 3)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "kind",
    [
        "place",
        pytest.param("podman_place", marks=pytest.mark.podman),
        pytest.param(
            "cluster_place", marks=[pytest.mark.podman, pytest.mark.kubernetes]
        ),
    ],
)
def test_killed_again_and_again_at_any_moment_it_moves_whole(
    kind: str, request: pytest.FixtureRequest
) -> None:
    _kill_at_any_moment(request.getfixturevalue(kind), rounds(kind, share=0.2))


def _kill_at_any_moment(place: Place, chances: Iterable[random.Random]) -> None:
    began = time.monotonic()
    assert place.driver.migrate("server").status == 0, place.driver.errors()
    took = time.monotonic() - began

    home = "server"
    for chance in chances:
        wait_for_messages(place.talker)
        moment = time.monotonic() + chance.uniform(0, took)
        place.driver.migrate(
            there(home), kill_when=lambda moment=moment: time.monotonic() > moment
        )
        if place.record.target == home:
            ended = place.driver.migrate(there(home))
            assert ended.status == 0, place.driver.errors()
        home = there(home)
        wait_for_messages(place.talker)
        place.assert_sound(home)


def test_an_abort_that_is_killed_is_finished_by_the_same_command(
    place: Place,
) -> None:
    moments = dice("a killed abort")

    for step in ("transfer_state", "launch_destination"):
        wait_for_messages(place.talker)
        place.driver.migrate("server", kill=(step, "after"))
        journal, epoch = place.record.migration, place.record.epoch
        moment = time.monotonic() + moments.uniform(0, 1.5)
        place.driver.migrate(
            "server",
            abort=True,
            kill_when=lambda moment=moment: time.monotonic() > moment,
        )
        ended = place.driver.migrate("server", abort=True)
        assert ended.status == 0, place.driver.errors()
        if journal.launched:  # not yet its home: docs/migration.md, "not yet so"
            place.talker.forget(epoch)
        wait_for_messages(place.talker)
        place.assert_sound("laptop")


def test_a_process_that_sleeps_before_its_launch_does_not_start_a_second_copy(
    place: Place,
) -> None:
    told = _sleep_before_launch_until_rolled_back(place)

    assert "is fenced off" in told


@pytest.mark.podman
def test_a_process_that_sleeps_with_its_container_made_does_not_start_it(
    podman_place: Place,
) -> None:
    told = _sleep_before_launch_until_rolled_back(podman_place)

    assert "no container" in told


def _sleep_before_launch_until_rolled_back(place: Place) -> str:
    """Return what the sleeper was told when it woke up, the promises being kept."""
    wait_for_messages(place.talker)
    zombie, pids = Driver(place.directory, log="zombie.log"), list[int]()
    sleeper = threading.Thread(
        target=zombie.migrate,
        args=("server",),
        kwargs={"suspend": True, "started": pids.append},
    )
    try:
        sleeper.start()
        wait_until(lambda: bool(pids) and is_suspended(pids[0]), seconds=120)
        assert place.record.migration.launched
        assert place.running() == []

        ended = place.driver.migrate("server", abort=True)  # watches for 30 s
        assert ended.status == 0, place.driver.errors()
        place.assert_sound("laptop")
        os.kill(pids[0], signal.SIGCONT)
        sleeper.join(120)

        wait_for_messages(place.talker)
        place.assert_sound("laptop")
        return zombie.errors()
    finally:
        if sleeper.is_alive():
            os.kill(pids[0], signal.SIGKILL)
        sleeper.join(60)
        zombie.close()


def is_suspended(pid: int) -> bool:
    """Say whether the process is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("again", ["again", "abort"])
def test_killed_while_it_restores_the_mover_that_is_left_does_no_harm(
    place: Place, again: str
) -> None:
    wait_for_messages(place.talker)
    address = place.talker.loaded.target("laptop").status(
        place.talker.loaded.agent("tally")
    )
    TallyClient(address=address.addresses["http"]).post("/grow", {"megabytes": 96})
    archive = place.state("server") / "archive"

    def is_restoring() -> bool:
        return archive.exists() and any(archive.iterdir())

    killed = place.driver.migrate("server", kill_when=is_restoring)
    assert killed.status == -signal.SIGKILL
    ended = place.driver.migrate("server", abort=again == "abort")

    assert ended.status == 0, place.driver.errors()
    wait_for_messages(place.talker)
    place.assert_sound("laptop" if again == "abort" else "server")
    wait_until(lambda: movers(place.directory) == [])


def movers(directory: Path) -> list[int]:
    """Return every mover that still runs under this lobstertrap.toml."""
    found, mark = [], f"{config.VARIABLE}={directory / config.FILE_NAME}".encode()
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if b"lobstertrap.mover" not in (process / "cmdline").read_bytes():
                continue
            if mark in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found
