"""A database that is written while it is read: whole, or named."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lobstertrap.repository import (
    Snapshot,
    archiver,
    batch,
    restore,
    source,
    take_snapshot,
)
from lobstertrap.repository.live import LiveFiles
from lobstertrap.repository.scan import Found, Run
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.trees import OWNERS, new_repository

NAME = "state.sqlite"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def database(root: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(root / NAME, isolation_level=None)
    with closing(connection) as opened:
        opened.execute("PRAGMA cache_size=2")  # so that a transaction soon spills
        opened.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, fill TEXT)")
        opened.executemany("INSERT INTO t (fill) VALUES (?)", [("a" * 900,)] * 60)
        yield opened


def begin(database: sqlite3.Connection) -> None:
    """Leave a transaction open, half of it in the database and half in its journal."""
    database.execute("BEGIN")
    database.execute("UPDATE t SET fill = replace(fill, 'a', 'b') WHERE n > 5")
    database.execute("DELETE FROM t WHERE n % 3 = 0")


def snapshot_and_restore(root: Path) -> tuple[Snapshot, Path]:
    repo = new_repository(MemoryStore())
    taken = take_snapshot(
        repo, agent="ada", roots={"state": root}, owners=OWNERS, consistency="live"
    )
    restore(repo, taken, roots={"state": root.parent / "out"}, owners=OWNERS)
    return taken, root.parent / "out"


def rows(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [fill[0] for (fill,) in opened.execute("SELECT fill FROM t")]


def test_an_open_transaction_is_rolled_back_by_whoever_restores(root, database):
    begin(database)

    taken, out = snapshot_and_restore(root)

    assert taken.warnings == ()
    assert rows(out / NAME) == ["a"] * 60


def test_a_journal_that_appears_after_the_listing_is_named(root, database, monkeypatch):
    real = archiver.walk_runs

    def racing(*arguments: object) -> Iterator[object]:
        for found in real(*arguments):
            if isinstance(found, Run):
                assert found.names == [NAME.encode()]
                begin(database)
            yield found

    monkeypatch.setattr(archiver, "walk_runs", racing)

    taken, _ = snapshot_and_restore(root)

    assert (root / f"{NAME}-journal").exists()
    assert [line.split(" ")[0] for line in taken.warnings] == [f"'state/{NAME}'"]


def test_a_journal_of_a_later_transaction_is_left_out(root, database, monkeypatch):
    begin(database)
    real = LiveFiles.look

    def racing(files: LiveFiles, found: Found, known: object) -> None:
        if found.name == NAME:
            database.execute("COMMIT")
        real(files, found, known)
        if found.name == NAME:
            begin(database)

    monkeypatch.setattr(LiveFiles, "look", racing)

    taken, out = snapshot_and_restore(root)

    assert taken.warnings == ()
    assert not (out / f"{NAME}-journal").exists()
    assert rows(out / NAME) == ["a"] * 4 + ["b"] * 36


def test_a_file_is_settled_when_another_write_would_show(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"one")
    written = (tmp_path / "file").stat()
    asked, settled = [], []
    for after in (0, 4_000_000, -4_000_000):  # the last: a kernel with finer times
        now = written.st_ctime_ns + after
        monkeypatch.setattr(
            time, "clock_gettime_ns", lambda c, n=now: asked.append(c) or n
        )
        settled.append(batch.settled(written.st_ctime_ns))

    assert settled == [False, True, True]
    assert set(asked) == {5}  # CLOCK_REALTIME_COARSE, linux/time.h


def test_a_file_that_was_just_written_is_read_a_tick_later(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"one")
    with (tmp_path / "file").open("rb") as file:
        written = os.fstat(file.fileno()).st_ctime_ns
        times = iter([written, written, written + 4_000_000])
        monkeypatch.setattr(time, "clock_gettime_ns", lambda _: next(times))
        slept: list[float] = []
        monkeypatch.setattr(time, "sleep", slept.append)

        source.settled_status(file.fileno())

    assert len(slept) == 2
