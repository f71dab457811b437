"""A real tally on host targets is moved by processes that are killed, while in use."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.chaos.conftest import Place, wait_for_messages
from tests.chaos.driver import STEPS

pytestmark = pytest.mark.slow


def there(home: str) -> str:
    """Return the other target."""
    return "server" if home == "laptop" else "laptop"


def test_killed_at_every_boundary_the_same_command_moves_it_whole(
    place: Place,
) -> None:
    home = "laptop"

    for step in STEPS:
        wait_for_messages(place.talker)
        killed = place.driver.migrate(there(home), kill=(step, "after"))
        assert killed.status == -signal.SIGKILL
        if place.record.target == home:
            ended = place.driver.migrate(there(home))
            assert ended.status == 0, place.driver.errors()
        home = there(home)
        wait_for_messages(place.talker)
        place.assert_sound(home)


def test_killed_at_any_moment_the_same_command_moves_it_whole(place: Place) -> None:
    moments, home = random.Random(8), "laptop"  # noqa: S311 - repeatable
    began = time.monotonic()
    assert place.driver.migrate("server").status == 0
    took = time.monotonic() - began

    home = "server"
    for _ in range(8):
        wait_for_messages(place.talker)
        moment = moments.uniform(0, took)
        place.driver.migrate(there(home), kill_after=moment)
        if place.record.target == home:
            ended = place.driver.migrate(there(home))
            assert ended.status == 0, place.driver.errors()
        home = there(home)
        wait_for_messages(place.talker)
        place.assert_sound(home)
