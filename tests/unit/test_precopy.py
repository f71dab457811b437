"""Pre-copy: the running source is copied again as long as the difference shrinks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lobstertrap import lifecycle, migration
from lobstertrap.agent import AgentSpec
from lobstertrap.lease import hold
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.stores.memory import MemoryStore
from lobstertrap.targets.fake import FakeTarget, World

AGENT = AgentSpec.model_validate(
    {
        "name": "crab",
        "image": "none",
        "volumes": [{"name": "state", "path": "/state"}],
    }
)
MB = 1 << 20


def moved(new: int, written: int = 0) -> dict[str, Any]:
    return {"snapshot": {"new_bytes": new}, "restore": {"bytes_written": written}}


class Mover:
    """Answers as a mover does whose source changes by `changes` in every round."""

    def __init__(self, changes: list[int]) -> None:
        self.changes = changes
        self.commands: list[str] = []

    def run(self, request: str, on_progress: object) -> dict[str, Any]:
        """Answer one request."""
        command = str(json.loads(request)["command"])
        self.commands.append(command)
        number = self.commands.count("snapshot") - 1
        size = self.changes[min(number, len(self.changes) - 1)]
        return {
            "snapshot": f"{number:032x}",
            "tree_digest": "0" * 64,
            "bytes": size,
            "new_bytes": size,
            "bytes_written": size,
            "verified": True,
        }


@pytest.fixture
def mover() -> Mover:
    return Mover([])


@pytest.fixture
def handle(tmp_path: Path, mover: Mover) -> Iterator[AgentHandle]:
    world = World()
    targets = {
        name: FakeTarget(name, tmp_path / name, world=world, mover=mover.run)
        for name in ("laptop", "server")
    }
    with hold(MemoryStore(), "crab", "test") as lease:
        found = AgentHandle(
            spec=AGENT,
            lease=lease,
            target=targets.__getitem__,
            secrets=dict,
            mover_request=dict,
        )
        lifecycle.launch(found, "laptop")
        migration.begin(found, migration.plan(found, "server"))
        yield found


def test_a_difference_that_shrinks_is_copied_again() -> None:
    assert migration.helps_again([moved(3000 * MB)], 40)
    assert migration.helps_again([moved(3000 * MB), moved(30 * MB)], 42)


def test_a_difference_that_stays_is_left_to_the_cutover() -> None:
    rounds = [moved(3000 * MB), moved(30 * MB), moved(30 * MB)]

    assert not migration.helps_again(rounds, 44)


def test_a_file_that_is_written_anew_each_time_counts_as_a_difference() -> None:
    rounds = [moved(3000 * MB, 3000 * MB), moved(1, 2900 * MB)]

    assert not migration.helps_again(rounds, 80)


def test_a_small_difference_is_enough() -> None:
    assert not migration.helps_again([moved(migration.PRECOPY_ENOUGH)], 1)


def test_rounds_and_time_are_bounded() -> None:
    halves = [moved(3000 * MB >> n) for n in range(migration.PRECOPY_ROUNDS)]

    assert migration.helps_again(halves[:-1], 0)
    assert not migration.helps_again(halves, 0)
    assert not migration.helps_again(halves[:-1], migration.PRECOPY_SECONDS)


def test_precopy_goes_on_until_the_difference_no_longer_shrinks(handle, mover) -> None:
    mover.changes = [3000 * MB, 300 * MB, 30 * MB, 29 * MB, 0]

    rounds = migration.precopy(handle)

    sizes = [each["snapshot"]["new_bytes"] // MB for each in rounds]
    assert sizes == [3000, 300, 30, 29]
    assert mover.commands == ["snapshot", "restore"] * 4


def test_a_stopped_source_is_not_copied_twice(handle, mover) -> None:
    mover.changes = [3000 * MB]
    migration.quiesce(handle)

    assert migration.precopy(handle) == []
