"""What a restore has read back while it wrote is not read again, and still proved."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import pytest

from lobstertrap.errors import IntegrityError, Unavailable
from lobstertrap.repository import (
    Repository,
    RestoreResult,
    Snapshot,
    batch,
    fetcher,
    filling,
    placer,
    reading_back,
    restore,
    restorer,
    take_snapshot,
)
from lobstertrap.repository.batch import read_files
from lobstertrap.repository.blobs import open_info
from lobstertrap.repository.crypto import Keys
from lobstertrap.repository.format import Buffer
from lobstertrap.repository.index import SegmentInfo
from lobstertrap.repository.reading_back import ReadingBack
from lobstertrap.repository.scan import Run
from lobstertrap.repository.source import Part, digest_file
from lobstertrap.repository.status import Status
from lobstertrap.repository.verify import verify
from lobstertrap.repository.written import Written
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.needs import missing
from tests.fixtures.trees import OWNERS, describe, later, new_repository

MTIME = 1_700_000_000_123_456_789


def row(name: str, mtime: int = MTIME) -> tuple[object, ...]:
    return (name.encode(), 0, 0o644, 0, 0, mtime, None, 1, b"")


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Three files, all noted."""
    noted = Written()
    for number, name in enumerate("abc"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, ns=(MTIME, MTIME))
        noted.expect(number)
        status = (tmp_path / name).stat()
        noted.note(number, (status.st_ctime_ns, status.st_ino))
    return noted


def held(written: Written, place: Path) -> list[bool]:
    rows = [row(name) for name in "abc"]
    return written.hold(0, rows, [(place / name).stat() for name in "abc"])


def rewritten(path: Path) -> None:
    path.write_bytes(b"y")
    os.utime(path, ns=(MTIME, MTIME))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    other.replace(path)


def test_what_was_noted_is_held(written: Written, tmp_path: Path) -> None:
    assert held(written, tmp_path) == [True] * 3


@pytest.mark.parametrize(
    "change",
    [
        rewritten,
        replaced,
        lambda path: path.chmod(0o600),
        lambda path: os.utime(path, ns=(MTIME, MTIME + 1)),
        lambda path: path.with_name("second").hardlink_to(path),
    ],
    ids=["rewritten", "replaced", "mode", "time", "linked"],
)
def test_what_was_changed_is_not(
    written: Written, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    before = (tmp_path / "b").stat().st_ctime_ns
    while os.stat(tmp_path / "b").st_ctime_ns == before:  # noqa: PTH116 - as is
        change(tmp_path / "b")

    assert held(written, tmp_path) == [True, False, True]


def test_a_write_in_the_same_tick_shows_in_its_time(
    written: Written, tmp_path: Path
) -> None:
    stats = [(tmp_path / name).stat() for name in "abc"]
    rows = [row("a"), row("b", MTIME - 1), row("c")]

    assert written.hold(0, rows, stats) == [True, False, True]


def test_what_is_to_be_written_again_is_not(written: Written, tmp_path: Path) -> None:
    written.expect(1)

    assert held(written, tmp_path) == [True, False, True]


def test_what_was_never_written_is_not(written: Written, tmp_path: Path) -> None:
    stats = [(tmp_path / "a").stat()] * 3

    assert written.hold(3, [row("d")] * 3, stats) == [False] * 3
    assert written.hold(4095, [row("d")] * 3, stats) == [False] * 3
    assert Written().hold(0, [row("a")] * 3, stats) == [False] * 3


# A whole restore


@pytest.fixture
def repo() -> Repository:
    return new_repository(MemoryStore())


def snap(repo: Repository, root: Path) -> Snapshot:
    roots = {"state": root}
    return take_snapshot(repo, agent="ada", roots=roots, owners=OWNERS, now=later)


def bring_back(
    repo: Repository, snapshot: Snapshot, root: Path, *, in_place: bool = False
) -> RestoreResult:
    roots = {"state": root}
    return restore(repo, snapshot, roots=roots, owners=OWNERS, in_place=in_place)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    for number in range(300):
        path = place / f"{number % 7}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * 100)
    (place / "large").write_bytes(os.urandom(300_000))
    (place / "link").symlink_to("large")
    (place / "3" / "second").hardlink_to(place / "3" / "3")
    return place


def test_what_was_read_back_is_not_read_at_the_end(
    repo: Repository, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if batch._library is None:
        missing("batch.c was not compiled here: it takes a C compiler")
    snapshot, out = snap(repo, source), tmp_path / "out"
    read: list[bytes] = []

    def reads(parent: int, names: Sequence[bytes], *rest: object) -> object:
        read.extend(names)
        return read_files(parent, names, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(reading_back, "read_files", reads)

    bring_back(repo, snapshot, out)
    assert read == []
    (out / "1" / "1").write_bytes(b"1" * 100)  # only the time is wrong
    bring_back(repo, snapshot, out)

    assert b"1" not in read
    assert describe(out) == describe(source)


def test_what_is_changed_behind_its_back_is_found_and_mended(
    repo: Repository, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, out = snap(repo, source), tmp_path / "out"
    spoilt = ["1/1", "3/3", "6/20", "large"]

    def spoiling(*arguments: object, **more: object) -> object:
        while spoilt:
            path = out / spoilt.pop()
            status = path.stat()
            with path.open("r+b") as file:
                file.write(b"!")
            os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
        return verify(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(restorer, "verify", spoiling)

    result = bring_back(repo, snapshot, out)

    assert result.files_written >= snapshot.files + 4
    assert describe(out) == describe(source)


def test_content_that_is_not_what_its_entry_says_never_counts_as_restored(
    repo: Repository, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = snap(repo, source)

    def wrong(keys: Keys, info: SegmentInfo, stored: Buffer) -> Buffer:
        """Open a segment as a faulty index would have it: whole, but another one."""
        return bytes(byte ^ 1 for byte in bytes(open_info(keys, info, stored)))

    monkeypatch.setattr(fetcher, "open_info", wrong)

    with pytest.raises(IntegrityError, match=r"is not what .* says: 'state/0/0'"):
        bring_back(repo, snapshot, tmp_path / "out")


# Large files, window by window


def open_handles() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "WINDOW_BYTES", 2_000_000)


@pytest.fixture
def at_the_end(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Names of files that are read when all is written."""
    read: list[bytes] = []
    begin = ReadingBack.begin

    def begins(self: ReadingBack, run: Run, places: Sequence[int]) -> object:
        read.extend(run.names[place] for place in places)
        return begin(self, run, places)

    monkeypatch.setattr(ReadingBack, "begin", begins)
    return read


@pytest.fixture
def large(tmp_path: Path) -> Path:
    place = tmp_path / "large"
    place.mkdir()
    for number in range(8):
        (place / f"{number}").write_bytes(os.urandom(1_200_000))
    return place


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("in_place", [False, True])
def test_large_files_are_read_back_while_the_next_are_written(
    repo: Repository, large: Path, at_the_end: list[bytes], in_place: bool
) -> None:
    out, handles = large.with_name("out"), open_handles()
    bring_back(repo, snap(repo, large), out)
    assert at_the_end == [b"6", b"7"]  # those of the last window
    for path in large.iterdir():
        with path.open("r+b") as file:
            file.write(os.urandom(1_100_000))
    at_the_end.clear()

    bring_back(repo, snap(repo, large), out, in_place=in_place)

    assert b"7" in at_the_end
    assert {*at_the_end} <= {b"6", b"7"}
    assert open_handles() == handles
    assert describe(out) == describe(large)


def unreadable(*_: object) -> Part:
    raise OSError(errno.EIO, "the disk is broken")


def otherwise(handle: int, status: Status, buffer: memoryview) -> Part:
    part = digest_file(handle, status, buffer)
    return Part(part.size, part.digest[::-1])


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("digest", [unreadable, otherwise])
def test_one_that_does_not_read_back_is_read_once_more(
    repo: Repository,
    large: Path,
    at_the_end: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    digest: Callable[[int, Status, memoryview], Part],
) -> None:
    monkeypatch.setattr(placer, "digest_file", digest)
    out = large.with_name("out")

    result = bring_back(repo, snap(repo, large), out)

    assert len(at_the_end) == result.files_written == 8
    assert describe(out) == describe(large)


@pytest.mark.usefixtures("windows")
def test_a_restore_that_fails_leaves_no_handle_and_no_half_file(
    repo: Repository, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, out = snap(repo, large), large.with_name("out")
    slow = Event()

    def waits(handle: int, status: Status, buffer: memoryview) -> Part:
        slow.wait(0.2)
        return digest_file(handle, status, buffer)

    monkeypatch.setattr(placer, "digest_file", waits)
    opened, calls = open_info, iter(range(100))

    def fails(keys: Keys, info: SegmentInfo, stored: Buffer) -> Buffer:
        if next(calls) == 7:
            raise Unavailable("the store went away")
        return opened(keys, info, stored)

    monkeypatch.setattr(fetcher, "open_info", fails)
    handles = open_handles()

    with pytest.raises(Unavailable, match="went away"):
        bring_back(repo, snapshot, out)

    assert open_handles() == handles
    assert {path.stat().st_size for path in out.iterdir()} <= {1_200_000}
    monkeypatch.undo()
    bring_back(repo, snapshot, out)
    assert describe(out) == describe(large)


def test_an_interrupt_right_after_a_rename_is_told_as_what_it_is(
    repo: Repository, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, out = snap(repo, large), large.with_name("out")
    rename = os.rename

    def interrupted(source: object, name: object, **more: int) -> None:
        rename(source, name, **more)  # type: ignore[call-overload]
        if name == b"3":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    handles = open_handles()

    with pytest.raises(KeyboardInterrupt):
        bring_back(repo, snapshot, out)

    assert open_handles() == handles
    monkeypatch.undo()
    bring_back(repo, snapshot, out)
    assert describe(out) == describe(large)
