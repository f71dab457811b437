"""Crashes, faults and races: whatever happens, what is visible restores."""

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lobstertrap.errors import IntegrityError, LobsterTrapError, Unavailable
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import (
    Repository,
    archiver,
    reading,
    restore,
    take_snapshot,
)
from lobstertrap.repository.scan import Run
from lobstertrap.repository.tree_digest import tree_digest
from lobstertrap.stores.base import StoredObject
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.trees import (
    CHEAP,
    KEY,
    OWNERS,
    BrokenStore,
    Crash,
    describe,
    later,
    make_everything,
    new_repository,
)


def snap(repo, root, **more):
    options = {"agent": "ada", "roots": {"state": root}, "owners": OWNERS, "now": later}
    return take_snapshot(repo, **(options | more))


def bring_back(repo, snapshot, root, **more):
    options = {"roots": {"state": root}, "owners": OWNERS}
    return restore(repo, snapshot, **(options | more))


def by_a_writer() -> bool:
    """Say whether this thread writes files of a restore."""
    return threading.current_thread().name.startswith("restore")


def test_a_crash_at_any_store_operation_of_a_snapshot_leaves_all_well(
    tmp_path: Path,
) -> None:
    root = tmp_path / "in"
    make_everything(root)
    store = BrokenStore(MemoryStore())
    repo = new_repository(store)
    first = snap(repo, root)
    before = describe(root)
    (root / "large.bin").write_bytes(os.urandom(500_000))
    store.calls = 0
    snap(new_repository(store), root, agent="counting")
    operations = store.calls

    for crash_at in range(1, operations + 1):

        def die(_method: str, _key: str, number: int, at: int = crash_at) -> None:
            if number == at:
                raise Crash

        (root / "large.bin").write_bytes(os.urandom(300_000))
        store.calls, store.hook = 0, die
        with pytest.raises(Crash):
            snap(Repository.open(store, SecretValue(KEY)), root)
        store.hook = lambda _method, _key, _number: None

        found = Repository.open(store, SecretValue(KEY)).snapshots("ada")
        assert [s.id for s in found] == [first.id]
    bring_back(repo, first, tmp_path / "old")
    after = snap(repo, root)
    bring_back(repo, after, tmp_path / "new")
    assert describe(tmp_path / "old") == before
    assert describe(tmp_path / "new") == describe(root)


def test_a_crash_at_any_store_operation_of_a_restore_is_gone_with_the_next(
    tmp_path: Path,
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    make_everything(root)
    store = BrokenStore(MemoryStore())
    repo = new_repository(store)
    snapshot = snap(repo, root)
    store.calls = 0
    bring_back(repo, snapshot, tmp_path / "count")
    operations, crashes = store.calls, 0

    for crash_at in range(1, operations + 1):

        def die(_method: str, _key: str, number: int, at: int = crash_at) -> None:
            if number == at:
                raise Crash

        store.calls, store.hook = 0, die
        try:
            bring_back(repo, snapshot, out)
        except Crash:
            crashes += 1
    store.hook = lambda _method, _key, _number: None

    bring_back(repo, snapshot, out)

    assert crashes > 3
    assert describe(out) == describe(root)


def test_a_restore_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lobstertrap.repository.filling.WINDOW_PIECES", 3)
    # Several ask for a segment twice or once, as they happen to meet.
    monkeypatch.setattr("lobstertrap.repository.filling.WRITERS", 1)
    root, out = tmp_path / "in", tmp_path / "out"
    make_everything(root / "new directory")
    store = BrokenStore(MemoryStore())
    repo = new_repository(store)
    snapshot = snap(repo, root)
    reads = 0

    def count(method: str, _key: str, _number: int) -> None:
        nonlocal reads
        reads += method == "get_range" and by_a_writer()

    def die_at_the_last(method: str, _key: str, _number: int) -> None:
        nonlocal reads
        if method == "get_range" and by_a_writer():
            reads -= 1
            if reads == 0:
                raise Crash

    store.hook = count
    whole = bring_back(repo, snapshot, tmp_path / "count")
    store.hook = die_at_the_last
    with pytest.raises(Crash):
        bring_back(repo, snapshot, out)
    store.hook = lambda _method, _key, _number: None
    seen = [path.name for path in out.iterdir()]
    again = bring_back(repo, snapshot, out)

    assert len(seen) == 1
    assert seen[0].startswith(".lobstertrap-tmp-")
    assert again.files_written < whole.files_written
    assert describe(out) == describe(root)


def test_work_of_an_interrupted_snapshot_is_used_again_once_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lobstertrap.repository.writer.INDEX_PACKS", 1)
    monkeypatch.setattr("lobstertrap.repository.writer.PACK_SIZE", 1 << 20)
    root = tmp_path / "in"
    root.mkdir()
    (root / "random").write_bytes(os.urandom(4 << 20))
    store = BrokenStore(MemoryStore())
    repo = new_repository(store)

    def die_at_the_end(method: str, key: str, _: int) -> None:
        if method == "put" and "snapshots" in key:
            raise Crash

    store.hook = die_at_the_end
    with pytest.raises(Crash):
        snap(repo, root)
    store.hook = lambda _method, _key, _number: None

    assert snap(repo, root).new_bytes == 0


def test_what_was_uploaded_before_a_kill_needs_an_index_to_be_found(
    tmp_path: Path,
) -> None:
    root = tmp_path / "in"
    make_everything(root)
    store = BrokenStore(MemoryStore())
    repo = new_repository(store)
    snap(repo, root)
    methods = [key.split("/")[1] for method, key in store.log if method == "put"]

    order = ["packs", "index", "snapshots"]
    assert [m for m in dict.fromkeys(methods) if m != "config"] == order


def test_two_writers_at_once_both_succeed(tmp_path: Path) -> None:
    store = MemoryStore()
    new_repository(store)
    roots = [tmp_path / f"in{n}" for n in range(4)]
    for root in roots:
        make_everything(root)
        (root / "own").write_text(root.name)
    results: list[object] = []

    def write(root: Path) -> None:
        repo = Repository.open(store, SecretValue(KEY))
        results.append((root, snap(repo, root, agent=root.name)))

    threads = [threading.Thread(target=write, args=(root,)) for root in roots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    repo = Repository.open(store, SecretValue(KEY))
    assert len(repo.snapshots()) == 4
    for root, snapshot in results:
        bring_back(repo, snapshot, tmp_path / "out" / root.name)
        assert describe(tmp_path / "out" / root.name) == describe(root)


def test_creating_at_once_makes_one_repository() -> None:
    store = MemoryStore()
    barrier = threading.Barrier(6)
    ids: list[str] = []

    def create() -> None:
        barrier.wait()
        ids.append(Repository.create(store, SecretValue(KEY), cost=CHEAP).id)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ids) == 6
    assert len(set(ids)) == 1


class Damaging(MemoryStore):
    """A store that hands out one object damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.damage = lambda _key, data: data

    def get(self, key: str) -> StoredObject:  # noqa: D102 - the contract says it
        found = super().get(key)
        return StoredObject(data=self.damage(key, found.data), etag=found.etag)

    def get_range(self, key: str, start: int, length: int) -> bytes:  # noqa: D102
        whole = self.damage(key, super().get(key).data)
        if len(whole) < start + length:
            raise IntegrityError("too short")
        return whole[start : start + length]


@pytest.mark.parametrize("kind", ["config", "index", "snapshots", "packs"])
def test_no_damage_goes_unnoticed(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for number in range(20):
        (root / f"{number}").write_bytes(os.urandom(3000))
    store = Damaging()
    new_repository(store)
    snap(Repository.open(store, SecretValue(KEY)), root)
    like = describe(root)
    chance = random.Random(kind)  # noqa: S311 - a test
    outcomes = set()

    for attempt in range(60):
        mode = chance.choice(["flip", "cut", "grow", "empty"])
        where = chance.random()

        def damage(key: str, data: bytes, mode=mode, where=where) -> bytes:
            if f"/{kind}" not in key:
                return data
            at = int(where * len(data))
            if mode == "flip":
                return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            if mode == "cut":
                return data[:at]
            return b"" if mode == "empty" else data + b"x"

        store.damage = damage
        out = tmp_path / f"out{attempt}"
        try:
            repo = Repository.open(store, SecretValue(KEY))
            bring_back(repo, repo.find("latest"), out)
        except LobsterTrapError as error:
            outcomes.add(type(error).__name__)
        else:
            assert describe(out) == like
            outcomes.add("read all the same")  # a byte that nobody needs

    assert outcomes & {"IntegrityError", "AccessDenied", "InvalidInput"}
    assert outcomes <= {
        "IntegrityError",
        "AccessDenied",
        "InvalidInput",
        "read all the same",
    }


def test_an_object_in_another_ones_place_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "in"
    make_everything(root)
    store = Damaging()
    repo = new_repository(store)
    one = snap(repo, root)
    two = snap(repo, root, agent="bob")
    names = {n.id: n.key for n in repo.snapshot_names()}
    store.damage = lambda key, data: (
        MemoryStore.get(store, names[two.id]).data if key == names[one.id] else data
    )

    with pytest.raises(IntegrityError):
        repo.find(one.id)


def test_a_file_that_changes_while_it_is_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "restless").write_bytes(b"x" * 100_000)
    (root / "calm").write_bytes(b"x")
    real = reading.read_xattrs

    def touch(handle: int):
        os.utime(root / "restless")
        return real(handle)

    monkeypatch.setattr(reading, "read_xattrs", touch)

    snapshot = snap(new_repository(MemoryStore()), root)

    assert snapshot.status == "complete_with_warnings"
    assert snapshot.warnings == ("'state/restless' changed while it was read",)


def test_a_file_that_changes_once_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "file").write_bytes(b"old" * 50_000)
    real, times = reading.read_xattrs, []

    def change_once(handle: int):
        if not times:
            times.append(1)
            (root / "file").write_bytes(b"new")
        return real(handle)

    monkeypatch.setattr(reading, "read_xattrs", change_once)
    repo = new_repository(MemoryStore())

    snapshot = snap(repo, root)

    assert snapshot.status == "complete"
    assert snapshot.tree_digest == tree_digest({"state": root}, OWNERS)


@pytest.mark.parametrize("becomes", ["nothing", "a directory", "a link", "a fifo"])
def test_a_file_that_is_replaced_under_the_walk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    real = archiver.walk_runs

    def racing(*arguments: object):
        for found in real(*arguments):
            if isinstance(found, Run) and b"state/a" in found.paths:
                (root / "a").unlink()
                if becomes == "a directory":
                    (root / "a").mkdir()
                elif becomes == "a link":
                    (root / "a").symlink_to("/etc/passwd")
                elif becomes == "a fifo":
                    os.mkfifo(root / "a")
            yield found

    monkeypatch.setattr(archiver, "walk_runs", racing)
    repo = new_repository(MemoryStore())

    snapshot = snap(repo, root)

    assert snapshot.files == 1
    assert snapshot.warnings == ("'state/a' vanished while it was read",)
    bring_back(repo, snapshot, tmp_path / "out")


WRITER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=" + sys.argv[2])
db.execute("PRAGMA synchronous=OFF")
db.execute("PRAGMA wal_autocheckpoint=20")
db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, copy INTEGER, fill TEXT)")
n = 0
while True:
    n += 1
    db.execute("BEGIN")
    for _ in range(3):
        db.execute("INSERT INTO t VALUES (NULL, ?, ?)", (n, "x" * 500))
    db.execute("UPDATE t SET copy = ?", (n,))
    db.execute("COMMIT")
    if n % 50 == 0:
        db.execute("DELETE FROM t")
        time.sleep(0.05)  # or no snapshot ever sees it hold still
    print(n, flush=True)
"""


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_database_in_use_is_restored_whole_or_named(
    tmp_path: Path, mode: str
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    repo = new_repository(MemoryStore())
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, root / "state.sqlite", mode],
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        try:
            writer.stdout.readline()
            threading.Thread(target=writer.stdout.read, daemon=True).start()
            whole = 0
            for number in range(15):
                snapshot = snap(repo, root, consistency="live", now=time.time)
                out = tmp_path / f"out{number}"
                bring_back(repo, snapshot, out)
                if any("state.sqlite'" in line for line in snapshot.warnings):
                    continue
                whole += 1
                database = sqlite3.connect(out / "state.sqlite")
                checked = database.execute("PRAGMA integrity_check").fetchall()
                copies = database.execute("SELECT DISTINCT copy FROM t").fetchall()
                database.close()

                assert checked == [("ok",)]
                assert len(copies) <= 1  # no half transaction
        finally:
            writer.kill()

    assert whole > 0 or mode == "DELETE"


def test_a_store_that_fails_makes_the_snapshot_fail_with_its_error(
    tmp_path: Path,
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "big").write_bytes(os.urandom(40 << 20))
    store = BrokenStore(MemoryStore())
    repo = new_repository(store)

    def fail(method: str, key: str, _: int) -> None:
        if method == "put" and "packs" in key:
            raise Unavailable("the store does not answer")

    store.hook = fail

    with pytest.raises(Unavailable, match="does not answer"):
        snap(repo, root)
    assert threading.active_count() < 8
