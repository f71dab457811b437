"""What an agent changed since its last snapshot, counted for a person."""

import os
import time
from pathlib import Path

from lobstertrap.repository import Owners, Repository, Snapshot, take_snapshot
from lobstertrap.repository.changes import TOP, Trace, changes_since_last
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.trees import later, new_repository

ME = (os.getuid(), os.getgid())


def snap(repo: Repository, root: Path, purpose: str = "asked for") -> Snapshot:
    owners = Owners(local=ME, canonical=ME)
    roots, tags = {"state": root}, {"purpose": purpose}
    now = later
    time.sleep(0.002)  # a snapshot's name has its time in milliseconds
    return take_snapshot(
        repo, agent="ada", roots=roots, owners=owners, tags=tags, now=now
    )


def test_files_are_counted_and_the_largest_come_first(tmp_path):
    repo = new_repository(MemoryStore())
    (tmp_path / "old").write_bytes(b"x" * 5000)
    (tmp_path / "same").write_bytes(b"same")
    first = snap(repo, tmp_path)
    (tmp_path / "old").unlink()
    (tmp_path / "directory").mkdir()
    for number in range(TOP + 3):
        (tmp_path / "directory" / f"{number}").write_bytes(b"y" * number)

    found = changes_since_last(repo, snap(repo, tmp_path))

    assert found.since == first.short_id
    assert (found.added, found.changed, found.removed) == (TOP + 3, 0, 1)
    assert len(found.top) == TOP
    assert found.top[0] == Trace(path="state/old", kind="removed", bytes=5000)
    assert found.top[1].path == f"state/directory/{TOP + 2}"


def test_the_first_snapshot_has_nothing_to_be_compared_with(tmp_path):
    repo = new_repository(MemoryStore())

    assert changes_since_last(repo, snap(repo, tmp_path)) is None


def test_a_pre_copy_a_moment_before_does_not_hide_what_changed(tmp_path):
    repo = new_repository(MemoryStore())
    first = snap(repo, tmp_path)
    (tmp_path / "new").write_text("new")
    snap(repo, tmp_path, "pre-copy")

    found = changes_since_last(repo, snap(repo, tmp_path))

    assert found.since == first.short_id
    assert found.added == 1
