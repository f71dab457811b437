"""A restore in place: large files are patched, and one that was cut short shows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lobstertrap.errors import Unavailable
from lobstertrap.repository import Repository, Snapshot, filling, restore
from lobstertrap.repository.placer import Target
from lobstertrap.repository.restorer import RestoreResult
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.repositories import fill, snap
from tests.fixtures.trees import OWNERS, describe, new_repository

SIZE = 4 << 20


class Moved:
    """A volume, its older copy elsewhere, and a snapshot of what it holds now."""

    def __init__(self, tmp_path: Path, change: Callable[[Path], object]) -> None:
        self.source, self.copy = tmp_path / "in", tmp_path / "out"
        self.repo: Repository = new_repository(MemoryStore())
        fill(self.source, {"large.bin": SIZE, "other.bin": SIZE, "small": 1000})
        self.before = self.take()
        self.restore(self.before, in_place=False)
        change(self.source)
        self.after = self.take()

    def take(self) -> Snapshot:
        """Snapshot the volume."""
        return snap(self.repo, self.source)

    def restore(self, snapshot: Snapshot, *, in_place: bool = True) -> RestoreResult:
        """Restore onto the copy."""
        return restore(
            self.repo,
            snapshot,
            roots={"state": self.copy},
            owners=OWNERS,
            delete_extra=True,
            in_place=in_place,
        )

    @property
    def same(self) -> bool:
        """Whether the copy is what the volume is."""
        return describe(self.copy) == describe(self.source)


def overwrite(root: Path, place: int = 1 << 20, count: int = 100_000) -> None:
    with (root / "large.bin").open("r+b") as file:
        file.seek(place)
        file.write(os.urandom(count))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(os.urandom(300_000))


@pytest.mark.parametrize(
    "change",
    [
        overwrite,
        lambda root: os.truncate(root / "large.bin", SIZE // 2),
        lambda root: append(root / "large.bin"),
        lambda root: (root / "large.bin").write_bytes(os.urandom(SIZE)),
        lambda root: (root / "large.bin").chmod(0o640),
        lambda root: os.utime(root / "large.bin", ns=(0, 0)),
        lambda root: (overwrite(root), os.utime(root / "large.bin", ns=(0, 0))),
        lambda root: os.setxattr(root / "large.bin", "user.a", b"b"),
    ],
)
def test_what_changed_is_there_and_the_file_is_still_the_same_one(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    moved = Moved(tmp_path, change)
    inode = (moved.copy / "large.bin").stat().st_ino

    moved.restore(moved.after)

    assert moved.same
    assert (moved.copy / "large.bin").stat().st_ino == inode


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    moved = Moved(tmp_path, overwrite)

    result = moved.restore(moved.after)

    assert result.files_written == 1
    assert 100_000 <= result.bytes_written < 1_000_000
    assert result.fetched_bytes < 2_000_000


def test_without_it_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    moved = Moved(tmp_path, overwrite)
    inode = (moved.copy / "large.bin").stat().st_ino

    result = moved.restore(moved.after, in_place=False)

    assert moved.same
    assert (moved.copy / "large.bin").stat().st_ino != inode
    assert result.bytes_written == SIZE


@pytest.mark.parametrize(
    "change",
    [
        lambda root: os.truncate(root / "large.bin", 10 * SIZE),  # a hole at its end
        lambda root: (root / "large.bin").write_bytes(os.urandom(100)),
        lambda root: ((root / "large.bin").unlink(), (root / "large.bin").mkdir()),
        lambda root: os.link(root / "other.bin", root / "large.bin.link"),
    ],
)
def test_what_cannot_be_patched_is_written_anew(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    moved = Moved(tmp_path, change)

    moved.restore(moved.after)

    assert moved.same


def test_another_name_of_the_old_file_keeps_what_it_held(tmp_path: Path) -> None:
    moved = Moved(tmp_path, overwrite)
    old = (moved.copy / "large.bin").read_bytes()
    os.link(moved.copy / "large.bin", tmp_path / "elsewhere")

    moved.restore(moved.after)

    assert moved.same
    assert (tmp_path / "elsewhere").read_bytes() == old


@pytest.mark.parametrize("pieces", [0, 1, 2])
@pytest.mark.parametrize("wanted", ["before", "after"])
def test_one_that_was_cut_short_is_finished_or_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int, wanted: str
) -> None:
    def change(root: Path) -> None:
        for place in range(3):
            overwrite(root, place << 20, 200_000)

    moved = Moved(tmp_path, change)
    left = pieces
    write = Target.write

    def fail(self: Target, data: memoryview, offset: int) -> None:
        nonlocal left
        if left == 0:
            write(self, data[: len(data) // 2], offset)
            raise Unavailable("the power is gone")
        left -= 1
        write(self, data, offset)

    with monkeypatch.context() as broken:
        broken.setattr(Target, "write", fail)
        with pytest.raises(Unavailable):
            moved.restore(moved.after)
    torn = (moved.copy / "large.bin").read_bytes()
    time = (moved.copy / "large.bin").stat().st_mtime_ns
    snapshot = getattr(moved, wanted)
    moved.restore(snapshot)

    assert torn != (moved.source / "large.bin").read_bytes()
    assert time != (moved.source / "large.bin").stat().st_mtime_ns
    assert snap(moved.repo, moved.copy).tree_digest == snapshot.tree_digest


def test_a_file_is_marked_on_the_disk_before_a_byte_of_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Moved(tmp_path, overwrite)
    path = moved.copy / "large.bin"
    old = path.read_bytes()
    seen = []
    write = Target.write

    def sync(handle: int) -> None:
        os.fsync(handle)
        seen.append(("synced", path.stat().st_mtime_ns, path.read_bytes() == old))

    def note(self: Target, data: memoryview, offset: int) -> None:
        seen.append(("written", 0, True))
        write(self, data, offset)

    monkeypatch.setattr(filling, "sync_file_system", sync)
    monkeypatch.setattr(Target, "write", note)

    moved.restore(moved.after)

    assert seen[0] == ("synced", 0, True)
    assert {what for what, *_ in seen[1:]} == {"written"}
    assert moved.same
