"""A real tally moves while its store, a disk, an engine, a clock or a rival misbehaves.

Somebody talks to it all the time; `Place.assert_sound` looks from outside.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from lobstertrap import lifecycle, takeover
from lobstertrap.errors import Refused
from tests.chaos.conftest import (
    Driver,
    Ended,
    Place,
    Weather,
    wait_for_messages,
    wait_until,
)
from tests.chaos.driver import AWAY, STEPS
from tests.fixtures.rounds import dice, rounds, some
from tests.fixtures.tally import TallyClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ILL = [
    (500, "InternalError"),
    (503, "SlowDown"),
    "reset",
    "reset-after-doing",
    "truncate",
    "slow",
    "html",
]
"""What a bad store does to a request."""
CUTOVER = ("stop_source", "transfer_state", "launch_destination", "commit_migration")


def there(home: str) -> str:
    """Return the other target."""
    return "server" if home == "laptop" else "laptop"


def settle(place: Place, ended: Ended, to: str) -> None:
    """Run the same command again if it failed; it is there, and whole, then."""
    if ended.status != 0 and place.record.target != to:
        ended = place.driver.migrate(to)
        assert ended.status == 0, place.driver.errors()
    wait_for_messages(place.talker)
    place.assert_sound(to)


def test_a_store_that_is_away_for_a_while_delays_a_migration(
    flaky_place: tuple[Place, Weather],
) -> None:
    _away_in_each(*flaky_place, some(CUTOVER, 1, "away"), seconds=3)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_store_that_is_away_in_any_phase_delays_a_migration(
    flaky_place: tuple[Place, Weather],
) -> None:
    _away_in_each(*flaky_place, STEPS, seconds=20)


def _away_in_each(
    place: Place, weather: Weather, steps: Iterable[str], *, seconds: float
) -> None:
    home = "laptop"
    weather.now = lambda: "reset" if 0 < place.driver.marked() < seconds else None
    for step in steps:
        wait_for_messages(place.talker)
        ended = place.driver.migrate(there(home), mark=step)
        wait_until(lambda: place.driver.marked() >= seconds)
        settle(place, ended, there(home))
        home = there(home)


def test_a_store_that_answers_badly_does_no_harm(
    flaky_place: tuple[Place, Weather],
) -> None:
    _move_in_bad_weather(*flaky_place, [dice("weather")])


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_store_that_answers_badly_for_long_does_no_harm(
    flaky_place: tuple[Place, Weather],
) -> None:
    _move_in_bad_weather(*flaky_place, rounds("weather", share=0.2))


def _move_in_bad_weather(
    place: Place, weather: Weather, chances: Iterable[random.Random]
) -> None:
    home = "laptop"
    for chance in chances:
        wait_for_messages(place.talker)
        badness = chance.choice((0.05, 0.15, 0.4))
        weather.now = lambda chance=chance, badness=badness: (
            chance.choice(ILL) if chance.random() < badness else None
        )
        ended = place.driver.migrate(there(home))
        weather.now = lambda: None
        settle(place, ended, there(home))
        home = there(home)


def test_a_full_disk_at_the_destination_leaves_the_agent_where_it_was(
    small_place: tuple[Place, Path],
) -> None:
    place, disk = small_place
    assert place.driver.migrate("server").status == 0, place.driver.errors()
    assert place.driver.migrate("laptop").status == 0, place.driver.errors()
    filler = (
        disk / "filler"
    )  # a copy is there already, so that only the rest needs room
    filler.write_bytes(bytes(20 << 20))
    grow(place, "laptop", megabytes=8)

    full = place.driver.migrate("server")
    wait_for_messages(place.talker)

    assert full.status != 0
    place.assert_sound("laptop")

    filler.unlink()
    settle(place, place.driver.migrate("server"), "server")


def grow(place: Place, home: str, *, megabytes: int) -> None:
    """Let tally's state grow."""
    loaded = place.talker.loaded
    status = loaded.target(home).status(loaded.agent("tally"))
    client = TallyClient(address=status.addresses["http"])
    client.post("/grow", {"megabytes": megabytes})


@pytest.mark.parametrize("second", ["the same", "an abort"])
def test_two_machines_at_the_same_moment_move_it_once(
    place: Place, second: str
) -> None:
    wait_for_messages(place.talker)
    with closing(Driver(place.directory, log="rival.log")) as rival:
        threads = [
            threading.Thread(
                target=driver.migrate,
                args=("server",),
                kwargs={"machine": machine, "abort": abort},
            )
            for driver, machine, abort in (
                (place.driver, "one", False),
                (rival, "another", second == "an abort"),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
        told = place.driver.errors() + rival.errors()

    assert place.talker.two_running == 0
    settle(place, Ended(status=1, receipt=None), "server")
    refused = "is held: migrate by" in told or "already lives" in told
    assert refused or "Traceback" not in told


def socket_of(place: Place, name: str) -> Path:
    """Return the path where the target's engine answers."""
    return Path(place.engines[name].url.removeprefix("unix://"))


@contextmanager
def out_of_reach(socket: Path, *, hidden: bool = False) -> Iterator[None]:
    """Let nobody reach the engine until the end, whoever hides its socket."""
    away = Path(f"{socket}{AWAY}")
    if not hidden:
        socket.rename(away)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            away.rename(socket)


@pytest.mark.podman
def test_a_source_that_is_out_of_reach_at_the_cutover_keeps_its_agent(
    podman_place: Place,
) -> None:
    place, socket = podman_place, socket_of(podman_place, "laptop")
    wait_for_messages(place.talker)

    with out_of_reach(socket, hidden=True):
        ended = place.driver.migrate("server", mark="stop_source", hide=socket)
        assert not socket.exists()
        assert ended.status != 0
        assert "no podman answers" in place.driver.errors()
        assert place.record.target == "laptop"
        assert place.record.migration.step == "rolling-back"

    wait_for_messages(place.talker)
    assert place.running() == [("laptop", place.record.epoch)]
    settle(place, place.driver.migrate("server"), "server")


@pytest.mark.podman
def test_an_engine_that_returns_after_a_takeover_starts_nothing_by_itself(
    podman_place: Place,
) -> None:
    talker, loaded = podman_place.talker, podman_place.talker.loaded
    engine, spec = podman_place.engines["laptop"], loaded.agent("tally")
    wait_for_messages(talker)
    talker.stop()
    with loaded.hold("tally", "snapshot") as handle:
        taken = lifecycle.take_snapshot(handle, "laptop", consistency="live")

    with (
        out_of_reach(socket_of(podman_place, "laptop")),
        loaded.hold("tally", "restore") as handle,
    ):
        found = takeover.take_over(handle, "server", taken["snapshot"])
        lifecycle.restore_home(handle, "server", snapshot=found)
        lifecycle.resume(handle, "server")
    returned = loaded.target("laptop").status(spec)
    with loaded.hold("tally", "test") as handle:
        with pytest.raises(Refused, match="lives on 'server'"):
            lifecycle.launch(handle, "laptop")
        assert takeover.stop_old_copy(handle, "laptop") == returned.epoch
    engine.run("start", "--all", "--filter", "restart-policy=always")  # a boot does

    assert returned.phase == "running"  # which is what a takeover accepts
    assert podman_place.running() == [("server", podman_place.record.epoch)]
    assert (returned.epoch or 0) < podman_place.record.epoch


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_jumps_by_an_hour_changes_nothing(
    place: Place, hours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = tmp_path / "clock"
    (tmp_path / "seam").mkdir()
    (tmp_path / "seam" / "sitecustomize.py").write_text(SEAM.format(clock=str(clock)))
    step = some(STEPS[2:6], 1, f"clock {hours}")[0]
    wait_for_messages(place.talker)
    driver = Driver(tmp_path, log="jumping.log", path=tmp_path / "seam")

    def jump() -> bool:
        if driver.marked():
            clock.write_text(str(hours * 3600))
        return False  # nobody is killed

    with closing(driver):
        ended = driver.migrate("server", mark=step, kill_when=jump)
        assert clock.exists()
        assert ended.status == 0, driver.errors()

    settle(place, ended, "server")


SEAM = """
import time
_real = time.time
def _jumping():
    try:
        with open({clock!r}) as file:
            return _real() + float(file.read() or 0)
    except OSError:
        return _real()
time.time = _jumping
"""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_machine_with_another_clock_goes_on_where_a_killed_one_stopped(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "seam").mkdir()
    (tmp_path / "clock").write_text("-3600")
    seam = SEAM.format(clock=str(tmp_path / "clock"))
    (tmp_path / "seam" / "sitecustomize.py").write_text(seam)
    home = "laptop"
    with closing(Driver(tmp_path, log="late.log", path=tmp_path / "seam")) as late:
        for step in CUTOVER[:3]:
            wait_for_messages(place.talker)
            place.driver.migrate(there(home), machine="one", kill=(step, "after"))
            began = time.monotonic()
            ended = late.migrate(there(home), machine="another")
            assert ended.status == 0, late.errors()
            assert time.monotonic() - began > 25, "it did not watch for the holder"
            home = there(home)
            settle(place, ended, home)
