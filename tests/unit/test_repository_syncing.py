"""When a restore says it is done, everything it wrote is on the disk."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from lobstertrap.errors import Permanent
from lobstertrap.repository import Repository, Snapshot, restorer, system
from lobstertrap.repository.verify import Verdict, verify
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.repositories import bring_back, snap
from tests.fixtures.trees import describe, new_repository

PATIENCE = 120.0


class Place:
    """A snapshot of a small tree, and where it is restored."""

    def __init__(self, base: Path) -> None:
        self.source, self.into = base / "source", base / "into"
        (self.source / "deep" / "er").mkdir(parents=True)
        (self.source / "deep" / "er" / "small.txt").write_text("small")
        (self.source / "large.bin").write_bytes(os.urandom(300_000))
        (self.source / "link").hardlink_to(self.source / "large.bin")
        self.repo: Repository = new_repository(MemoryStore())
        self.snapshot: Snapshot = snap(self.repo, self.source)

    def restore(self) -> None:
        """Restore it."""
        bring_back(self.repo, self.snapshot, self.into)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a place to restore."""
    return Place(tmp_path)


def test_the_sync_begins_when_everything_is_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        system, "sync_file_system", lambda _: seen.append(describe(place.into))
    )

    place.restore()

    assert seen == [describe(place.source)]


def test_a_restore_waits_for_the_sync_which_goes_on_while_it_reads_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_back = threading.Event()
    order = []

    def sync(_: int) -> None:
        order.append("sync" if read_back.wait(PATIENCE) else "alone")

    def verified(*args: object, **more: object) -> Verdict:
        verdict = verify(*args, **more)  # type: ignore[arg-type]
        read_back.set()
        return verdict

    monkeypatch.setattr(system, "sync_file_system", sync)
    monkeypatch.setattr(restorer, "verify", verified)

    place.restore()

    assert order == ["sync"]


def test_a_disk_that_cannot_be_written_fails_the_restore(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(system, "sync_file_system", sync)

    with pytest.raises(Permanent, match="input/output error"):
        place.restore()


def test_a_sync_that_failed_is_told_even_when_a_later_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter((OSError(errno.EIO, "lost"), None))

    def sync(_: int) -> None:
        answer = next(answers)
        if answer is not None:
            raise answer

    monkeypatch.setattr(system, "sync_file_system", sync)
    syncer = system.Syncer([0])
    syncer.start()
    syncer.start()

    with pytest.raises(OSError, match="lost"):
        syncer.wait()
    syncer.close()
