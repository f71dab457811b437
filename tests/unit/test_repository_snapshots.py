"""Snapshot and restore, end to end on a real file system and a store in memory."""

import json
import os
import shutil
import socket
import stat as st
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from lobstertrap.errors import (
    AccessDenied,
    Conflict,
    InvalidInput,
    NotFound,
)
from lobstertrap.job import Progress
from lobstertrap.repository import (
    Owners,
    Repository,
    Snapshot,
    restore,
    system,
    take_snapshot,
    verify,
)
from lobstertrap.repository.directories import temporary_name
from lobstertrap.repository.reading import FileReader
from lobstertrap.repository.reading_back import ReadingBack
from lobstertrap.repository.snapshot import SnapshotName
from lobstertrap.repository.tree import read_entries
from lobstertrap.repository.tree_digest import tree_digest
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.trees import (
    OWNERS,
    BrokenStore,
    Tree,
    describe,
    later,
    make_everything,
    new_repository,
    write_tree,
)


@pytest.fixture
def repo() -> Repository:
    return new_repository(MemoryStore())


def snap(repo: Repository, root: Path, **more: object) -> Snapshot:
    options = {"agent": "ada", "roots": {"state": root}, "owners": OWNERS, "now": later}
    return take_snapshot(repo, **(options | more))  # type: ignore[arg-type]


def bring_back(repo: Repository, snapshot: Snapshot, root: Path, **more: object):
    options = {"roots": {"state": root}, "owners": OWNERS}
    return restore(repo, snapshot, **(options | more))  # type: ignore[arg-type]


def test_everything_comes_back_as_it_was(repo: Repository, tmp_path: Path) -> None:
    make_everything(tmp_path / "in")

    snapshot = snap(repo, tmp_path / "in")
    result = bring_back(repo, snapshot, tmp_path / "out")

    assert describe(tmp_path / "out") == describe(tmp_path / "in")
    assert (snapshot.status, snapshot.warnings) == ("complete", ())
    assert result.tree_digest == snapshot.tree_digest
    assert result.tree_digest == tree_digest({"state": tmp_path / "out"}, OWNERS)
    assert result.warnings == ()


@pytest.mark.parametrize("limit", ["BYTES", "PIECES", "HANDLES"])
def test_windows_of_any_size_give_the_same(
    repo: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    make_everything(tmp_path / "in")
    snapshot = snap(repo, tmp_path / "in")
    monkeypatch.setattr(f"lobstertrap.repository.filling.WINDOW_{limit}", 2)
    progress: list[Progress] = []

    bring_back(repo, snapshot, tmp_path / "out", on_progress=progress.append)

    assert describe(tmp_path / "out") == describe(tmp_path / "in")
    assert progress[-1].done_files <= snapshot.files
    assert sum(p.phase == "verify" and p.done_files == 0 for p in progress) == 1


def test_holes_stay_holes(repo: Repository, tmp_path: Path) -> None:
    make_everything(tmp_path / "in")

    bring_back(repo, snap(repo, tmp_path / "in"), tmp_path / "out")

    assert (tmp_path / "out" / "hole").stat().st_blocks == 0
    assert (tmp_path / "out" / "sparse").stat().st_blocks * 512 < 500_000


def test_a_file_of_50_gb_that_is_nearly_all_holes_comes_back(
    repo: Repository, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    size, places = 50 * 10**9, (0, 2**32 - 5, 37 * 10**9, 50 * 10**9 - 7)
    with (tmp_path / "in" / "image").open("wb") as file:
        file.truncate(size)
        for place in places:
            file.seek(place)
            file.write(b"island!")

    snapshot = snap(repo, tmp_path / "in")
    bring_back(repo, snapshot, tmp_path / "out")

    found = tmp_path / "out" / "image"
    assert (snapshot.bytes, found.stat().st_size) == (size, size)
    assert found.stat().st_blocks * 512 < 10_000_000
    assert snapshot.new_bytes < 10_000_000
    with found.open("rb") as file:
        for place in places:
            file.seek(place)
            assert file.read(7) == b"island!"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices and owners")
def test_owners_and_devices_come_back_when_root_restores(
    repo: Repository, tmp_path: Path
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    (root / "theirs").write_text("x")
    os.chown(root / "theirs", 1234, 4321)
    (root / "theirs").chmod(0o6755)

    bring_back(repo, snap(repo, root), tmp_path / "out")

    assert describe(tmp_path / "out") == describe(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_agents_owner_is_swapped_from_target_to_target(
    repo: Repository, tmp_path: Path
) -> None:
    here = Owners(local=(2001, 2002), canonical=(1000, 1000))
    there = Owners(local=(3001, 3002), canonical=(1000, 1000))
    root = tmp_path / "in"
    root.mkdir()
    for name, owner in (("own", 2001), ("canonical", 1000), ("other", 77)):
        (root / name).write_text(name)
        os.chown(root / name, owner, 2002)

    snapshot = snap(repo, root, owners=here)
    bring_back(repo, snapshot, tmp_path / "out", owners=there)

    assert (tmp_path / "out" / "own").stat().st_uid == 3001
    assert (tmp_path / "out" / "own").stat().st_gid == 3002
    assert (tmp_path / "out" / "canonical").stat().st_uid == 2001
    assert (tmp_path / "out" / "other").stat().st_uid == 77
    assert tree_digest({"state": tmp_path / "out"}, there) == snapshot.tree_digest


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="setfacl is not here")
def test_acls_come_back(repo: Repository, tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_text("x")
    subprocess.run(["setfacl", "-m", "u:1234:rw", root / "file"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "g:77:rx", root / "dir"], check=True)

    bring_back(repo, snap(repo, root), tmp_path / "out")

    assert describe(tmp_path / "out") == describe(root)
    assert "system.posix_acl_access" in os.listxattr(tmp_path / "out" / "file")


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="setfacl is not here")
def test_acls_that_the_destination_hands_down_do_not_stay(
    repo: Repository, tmp_path: Path
) -> None:
    make_everything(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", out], check=True)

    bring_back(repo, snap(repo, tmp_path / "in"), out)

    assert describe(out) == describe(tmp_path / "in")


def test_a_socket_is_left_out_and_named(repo: Repository, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "control.sock"))

        snapshot = snap(repo, root)

    assert snapshot.status == "complete_with_warnings"
    assert "control.sock' is a socket" in snapshot.warnings[0]
    bring_back(repo, snapshot, tmp_path / "out")


def test_an_unchanged_tree_adds_nothing(tmp_path: Path) -> None:
    store = BrokenStore(MemoryStore())
    repo = new_repository(store)
    make_everything(tmp_path / "in")
    first = snap(repo, tmp_path / "in")
    os.utime(tmp_path / "in" / "db.sqlite", ns=(1, 1))

    second = snap(repo, tmp_path / "in")

    assert second.new_bytes == 0
    assert second.uploaded_bytes < 20_000
    assert second.tree_digest != first.tree_digest
    assert second.tree_digest == tree_digest({"state": tmp_path / "in"}, OWNERS)


def test_a_change_that_keeps_size_and_mtime_is_seen(
    repo: Repository, tmp_path: Path
) -> None:
    make_everything(tmp_path / "in")
    snap(repo, tmp_path / "in")
    path = tmp_path / "in" / "small.txt"
    stamp = path.stat().st_mtime_ns
    path.write_bytes(b"HELLO\n")
    os.utime(path, ns=(stamp, stamp))

    snapshot = snap(repo, tmp_path / "in")

    assert snapshot.tree_digest == tree_digest({"state": tmp_path / "in"}, OWNERS)


def test_a_file_written_just_now_is_not_trusted_next_time(
    repo: Repository, tmp_path: Path
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "fresh").write_text("one")
    first = snap(repo, root, now=time.time)
    known = [k.stat for k in _entries(repo, first)]

    assert {ctime for ctime, _ in known} == {0}


def _entries(repo: Repository, snapshot: Snapshot):
    reader = repo.blob_reader(repo.load_index())
    return list(read_entries(reader, snapshot.branches, stats=True))


def test_a_copy_elsewhere_is_read_but_not_sent_again(
    repo: Repository, tmp_path: Path
) -> None:
    make_everything(tmp_path / "in")
    first = snap(repo, tmp_path / "in")
    bring_back(repo, first, tmp_path / "copy")

    second = snap(repo, tmp_path / "copy")

    assert second.tree_digest == first.tree_digest
    assert second.new_bytes == 0
    assert second.places != first.places


def test_the_cache_only_makes_it_faster(repo: Repository, tmp_path: Path) -> None:
    make_everything(tmp_path / "in")
    cache = tmp_path / "cache"
    first = snap(repo, tmp_path / "in", cache_dir=cache)
    second = snap(repo, tmp_path / "in", cache_dir=cache)
    objects = [path for path in cache.rglob("*") if path.is_file()]
    for path in objects:
        path.write_bytes(path.read_bytes()[:-1] + b"?")

    third = snap(repo, tmp_path / "in", cache_dir=cache)

    assert objects
    assert first.tree_digest == second.tree_digest == third.tree_digest
    assert third.new_bytes == 0
    bring_back(repo, third, tmp_path / "out")


def test_the_cache_does_not_grow_for_ever(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lobstertrap.repository.cache.CROWDED", 4)
    root = tmp_path / "in"
    root.mkdir()
    for number in range(6):
        (root / "file").write_text(str(number))
        taken = snap(repo, root, cache_dir=tmp_path / "cache")
        for name in repo.snapshot_names():
            if name.id != taken.id:
                repo.store.delete(name.key)

    kept = [p.name for p in (tmp_path / "cache").rglob("*") if "snapshots" in p.name]
    assert len(kept) == 2  # the last, and the one before: gone since


def test_only_what_changed_is_read_among_what_did_not(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        (tmp_path / f"{number:03}").write_text(f"{number}")
    snap(repo, tmp_path)
    (tmp_path / "150").write_text("changed")
    (tmp_path / "150 new").write_text("new")
    (tmp_path / "zz").write_text("behind all that was there")
    one, several, read = FileReader.read, FileReader.read_together, []
    monkeypatch.setattr(
        FileReader,
        "read",
        lambda self, found, **more: read.append(found.path) or one(self, found, **more),
    )
    monkeypatch.setattr(
        FileReader,
        "read_together",
        lambda self, run, start, stop: (
            read.extend(run.paths[start:stop]) or several(self, run, start, stop)
        ),
    )

    second = snap(repo, tmp_path)

    assert read == [b"state/150", b"state/150 new", b"state/zz"]
    assert second.files == 302


def test_a_restore_is_on_the_disk_when_it_returns(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_everything(tmp_path / "in")
    snapshot = snap(repo, tmp_path / "in")
    real, synced = system.sync_file_system, []

    def sync(handle: int) -> None:
        real(handle)
        synced.append(describe(tmp_path / "out"))

    monkeypatch.setattr(system, "sync_file_system", sync)

    bring_back(repo, snapshot, tmp_path / "out")

    assert synced == [describe(tmp_path / "in")]  # after all was written


@pytest.mark.parametrize("cache", ["cache", None])
def test_what_landed_here_is_not_read_again(
    repo: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: str | None,
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    make_everything(root)
    repo.use_cache(tmp_path / cache if cache else None)
    bring_back(repo, snap(repo, root), out, now=later)
    (root / "small.txt").write_text("A")
    second = snap(repo, root)
    stamp = (out / "secret").stat().st_mtime_ns
    (out / "secret").write_text("y")  # somebody was here, and hid it
    os.utime(out / "secret", ns=(stamp, stamp))
    alone, together, read = verify.disk_row, ReadingBack.begin, []
    monkeypatch.setattr(
        verify,
        "disk_row",
        lambda found, *more: (
            read.append((found.path, found.stat)) or alone(found, *more)
        ),
    )
    monkeypatch.setattr(
        ReadingBack,
        "begin",
        lambda self, run, places: (
            read.extend((run.paths[place], run.stats[place]) for place in places)
            or together(self, run, places)
        ),
    )

    bring_back(repo, second, out, now=later)
    files = {path for path, status in read if st.S_ISREG(status.st_mode)}
    third = snap(repo, out)

    assert describe(out) == describe(root)
    linked = {b"state/a/second name", b"state/first name", b"state/third name"}
    assert files == {b"state/small.txt", b"state/secret"} | linked
    assert third.tree_digest == second.tree_digest
    assert third.uploaded_bytes < 30_000


@pytest.mark.parametrize("damage", [b"", b"?" * 20, b"?" * 200])
def test_a_damaged_landing_only_costs_time(
    repo: Repository, tmp_path: Path, damage: bytes
) -> None:
    make_everything(tmp_path / "in")
    snapshot = snap(repo, tmp_path / "in")
    bring_back(repo, snapshot, tmp_path / "out", now=later)
    (landing,) = repo.store.list("repository/landings/")
    repo.store.put(landing.key, damage)

    bring_back(repo, snapshot, tmp_path / "out", now=later)

    assert repo.store.get(landing.key).data != damage


def test_excluded_files_do_not_travel_and_are_not_deleted(
    repo: Repository, tmp_path: Path
) -> None:
    root = tmp_path / "in"
    for name in ("cache/x", "keep/cache/y", "log.tmp", "keep/log"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    out = tmp_path / "out"
    (out / "cache").mkdir(parents=True)
    (out / "cache" / "mine").write_text("regenerated here")
    (out / "extra").write_text("x")

    snapshot = snap(repo, root, exclude={"state": ["/cache/", "*.tmp"]})
    result = bring_back(repo, snapshot, out, delete_extra=True)

    names = {str(p.relative_to(out)) for p in out.rglob("*")}
    assert names == {
        "cache",
        "cache/mine",
        "keep",
        "keep/cache",
        "keep/cache/y",
        "keep/log",
    }
    assert result.deleted == 1


def test_only_differences_are_written(repo: Repository, tmp_path: Path) -> None:
    make_everything(tmp_path / "in")
    bring_back(repo, snap(repo, tmp_path / "in"), tmp_path / "out")
    with (tmp_path / "in" / "large.bin").open("r+b") as file:
        file.seek(500_000)
        file.write(b"changed")
    (tmp_path / "in" / "new").write_text("new")
    (tmp_path / "in" / "exec.sh").chmod(0o700)
    kept = (tmp_path / "out" / "db.sqlite").stat().st_ino

    result = bring_back(repo, snap(repo, tmp_path / "in"), tmp_path / "out")

    assert describe(tmp_path / "out") == describe(tmp_path / "in")
    assert result.files_written == 2
    assert result.fetched_bytes < 500_000
    assert (tmp_path / "out" / "db.sqlite").stat().st_ino == kept


def test_damage_with_the_right_size_and_time_is_mended(
    repo: Repository, tmp_path: Path
) -> None:
    make_everything(tmp_path / "in")
    snapshot = snap(repo, tmp_path / "in")
    bring_back(repo, snapshot, tmp_path / "out")
    for name in ("small.txt", "large.bin"):
        path = tmp_path / "out" / name
        stamp = path.stat().st_mtime_ns
        with path.open("r+b") as file:
            file.write(b"J")
        os.utime(path, ns=(stamp, stamp))
    os.setxattr(tmp_path / "out" / "empty", "user.extra", b"x")

    result = bring_back(repo, snapshot, tmp_path / "out")

    assert describe(tmp_path / "out") == describe(tmp_path / "in")
    assert result.files_written == 3


def test_extra_files_stay_unless_they_shall_go(
    repo: Repository, tmp_path: Path
) -> None:
    make_everything(tmp_path / "in")
    snapshot = snap(repo, tmp_path / "in")
    out = tmp_path / "out"
    (out / "a" / "extra").mkdir(parents=True)
    (out / "a" / "extra" / "file").write_text("x")

    bring_back(repo, snapshot, out)
    assert (out / "a" / "extra" / "file").exists()
    result = bring_back(repo, snapshot, out, delete_extra=True)

    assert describe(out) == describe(tmp_path / "in")
    assert result.deleted == 2


def test_things_of_another_kind_are_replaced_only_when_asked(
    repo: Repository, tmp_path: Path
) -> None:
    make_everything(tmp_path / "in")
    snapshot = snap(repo, tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    (out / "small.txt").mkdir()
    (out / "small.txt" / "precious").write_text("x")
    (out / "a").symlink_to(tmp_path)
    (out / "link").write_text("x")
    (out / "fifo").mkdir()
    (out / "third name").mkdir()

    with pytest.raises(Conflict):
        bring_back(repo, snapshot, out)
    assert (out / "small.txt" / "precious").exists()
    bring_back(repo, snapshot, out, delete_extra=True)

    assert describe(out) == describe(tmp_path / "in")
    assert not (tmp_path / "b").exists()  # the link was not followed


def test_links_between_files_are_made_and_undone(
    repo: Repository, tmp_path: Path
) -> None:
    linked, apart = tmp_path / "linked", tmp_path / "apart"
    for root in (linked, apart):
        root.mkdir()
        (root / "a").write_text("same")
    (linked / "b").hardlink_to(linked / "a")
    (apart / "b").write_text("same")
    for root in (linked, apart):
        for name in ("a", "b", "."):
            os.utime(root / name, ns=(5, 5))
    one, two = snap(repo, linked), snap(repo, apart)

    out = tmp_path / "out"
    for snapshot, like in ((one, linked), (two, apart), (one, linked)):
        bring_back(repo, snapshot, out)

        assert describe(out) == describe(like)


def test_what_a_killed_restore_left_is_swept(repo: Repository, tmp_path: Path) -> None:
    make_everything(tmp_path / "in")
    snapshot = snap(repo, tmp_path / "in")
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / temporary_name()).write_text("half")
    (out / "a" / temporary_name()).symlink_to("x")

    bring_back(repo, snapshot, out)

    assert describe(out) == describe(tmp_path / "in")


def test_several_volumes_travel_together(repo: Repository, tmp_path: Path) -> None:
    roots = {"state": tmp_path / "s", "a-logs": tmp_path / "l", "z": tmp_path / "z"}
    for number, root in enumerate(roots.values()):
        root.mkdir(mode=0o700 + number)
        (root / "file").write_text(root.name)
    out = {name: tmp_path / "out" / name for name in roots}

    snapshot = snap(repo, tmp_path, roots=roots)
    bring_back(repo, snapshot, tmp_path, roots=out)

    assert snapshot.volumes == ("a-logs", "state", "z")
    for name, root in roots.items():
        assert describe(out[name]) == describe(root)
    with pytest.raises(InvalidInput, match="a-logs"):
        bring_back(repo, snapshot, tmp_path, roots={"state": out["state"]})


def test_an_empty_volume_is_fine_but_a_missing_one_is_not(
    repo: Repository, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()

    assert snap(repo, tmp_path / "in").files == 0
    with pytest.raises(NotFound, match="state"):
        snap(repo, tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="not a directory"):
        snap(repo, tmp_path / "file")


def test_a_failed_snapshot_is_not_visible(tmp_path: Path) -> None:
    store = BrokenStore(MemoryStore())
    repo = new_repository(store)
    make_everything(tmp_path / "in")

    def full(method: str, key: str, _: int) -> None:
        if method == "put" and "packs" in key:
            raise AccessDenied("no")

    store.hook = full
    with pytest.raises(AccessDenied):
        snap(repo, tmp_path / "in")

    assert repo.snapshots() == []


def test_snapshots_are_found_by_agent_and_by_prefix(
    repo: Repository, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    ada = [snap(repo, tmp_path / "in", now=lambda t=t: 1000.0 + t) for t in (1, 0)]
    bob = snap(repo, tmp_path / "in", agent="bob", now=lambda: 5000.0)

    assert [s.id for s in repo.snapshots("ada")] == [ada[1].id, ada[0].id]
    assert len(repo.snapshots()) == 3
    assert repo.find("latest", "ada") == ada[0]
    assert repo.find("latest").id == bob.id
    assert repo.find(bob.id[:10].upper()).agent == "bob"
    with pytest.raises(NotFound, match="of agent 'ada'"):
        repo.find(bob.id[:10], "ada")
    with pytest.raises(InvalidInput, match="too short"):
        repo.find("abc")
    with pytest.raises(NotFound):
        new_repository(MemoryStore()).find("latest")


def test_an_ambiguous_prefix_lists_the_candidates(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        SnapshotName(milliseconds=n, tag="00000000", id="abcd" + f"{n:028x}")
        for n in (1, 2)
    ]
    monkeypatch.setattr(repo, "snapshot_names", lambda _agent: names)

    with pytest.raises(InvalidInput, match="abcd00000000, abcd00000000"):
        repo.find("abcd")


def test_deep_directories_come_back(repo: Repository, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _ in range(200):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)

    snapshot = snap(repo, root)
    bring_back(repo, snapshot, tmp_path / "out")

    assert snapshot.files == 1
    assert tree_digest({"state": tmp_path / "out"}, OWNERS) == snapshot.tree_digest


NAMES = some.binary(min_size=1, max_size=12).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
FILES = some.one_of(
    some.binary(max_size=40),
    some.integers(0, 2**32).map(lambda n: n.to_bytes(5, "big") * 40_000),
    some.integers(60_000, 300_000).map(bytes),
)
TREES = some.recursive(
    some.dictionaries(NAMES, some.one_of(FILES, some.just("../a link")), max_size=4),
    lambda below: some.dictionaries(NAMES, some.one_of(below, FILES), max_size=5),
    max_leaves=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(TREES, TREES)
def test_restore_undoes_snapshot(
    tmp_path_factory: pytest.TempPathFactory, one: Tree, two: Tree
) -> None:
    base = tmp_path_factory.mktemp("trees")
    repo = new_repository(MemoryStore())
    write_tree(base / "one", one)
    write_tree(base / "two", two)

    for name in ("one", "two", "one"):  # into an empty and into a populated directory
        snapshot = snap(repo, base / name)
        bring_back(repo, snapshot, base / "out", delete_extra=True)

        assert describe(base / "out") == describe(base / name)
    shutil.rmtree(base)


def as_user(
    uid: int, work: Callable[[], list[str]], groups: Sequence[int] = ()
) -> list[str]:
    """Run `work` in a forked child under another user; its lines, or its error."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            lines = work()
        except BaseException as error:
            lines = [f"{type(error).__name__} {error}"]
        os.write(writer, json.dumps(lines).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        lines = json.loads(answers.read())
    os.waitpid(child, 0)
    return list(lines)


@pytest.fixture
def shared_path(tmp_path: Path) -> Path:
    """A directory that every user may enter and write."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    tmp_path.chmod(0o777)
    return tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_restore_as_another_user_does_what_it_may_and_says_the_rest_once(
    repo: Repository, shared_path: Path
) -> None:
    root, out = shared_path / "in", shared_path / "out"
    make_everything(root)
    os.chown(root / "small.txt", 55, 55)
    os.chown(root / "large.bin", 56, 56)
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    snapshot = snap(repo, root)
    me = Owners(local=(4242, 4242), canonical=(1000, 1000))

    warnings = as_user(
        4242, lambda: list(bring_back(repo, snapshot, out, owners=me).warnings)
    )

    assert sorted(line.split()[0] for line in warnings) == ["device", "owners"]
    assert (out / "small.txt").read_bytes() == b"hello\n"
    assert (out / "small.txt").stat().st_uid == 4242
    assert (out / "setuid").stat().st_mode & 0o7777 == 0o4755


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_volume_that_belongs_to_a_group_is_filled_by_its_member(
    repo: Repository, shared_path: Path
) -> None:
    root, out = shared_path / "in", shared_path / "out"
    (root / "below").mkdir(parents=True)
    for name in ("file", "below/file"):
        (root / name).write_text(name)
    (root / "link").symlink_to("file")
    for path in (root, *root.rglob("*")):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    out.mkdir()  # as Kubernetes prepares a volume with fsGroup
    os.chown(out, 0, 7777)
    out.chmod(0o2775)
    (out / "file").write_text("somebody else's")
    snapshot = snap(repo, root, owners=Owners(local=(5, 5), canonical=(5, 5)))
    me = Owners(local=(4242, 4242), canonical=(1000, 1000))

    warnings = as_user(
        4242,
        lambda: list(bring_back(repo, snapshot, out, owners=me).warnings),
        groups=[7777],
    )

    assert sorted(line.split()[0] for line in warnings) == ["modes", "owners"]
    for name in ("file", "below", "below/file", "link"):
        status = (out / name).lstat()
        assert (status.st_uid, status.st_gid) == (4242, 4242)
    assert (out / "file").read_text() == "file"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_an_unreadable_directory_is_an_error_and_not_left_out(
    repo: Repository, shared_path: Path
) -> None:
    root = shared_path / "in"
    (root / "closed").mkdir(parents=True)
    (root / "closed").chmod(0o700)

    lines = as_user(4242, lambda: [snap(repo, root).status])

    assert lines == ["AccessDenied 'state/closed' is not readable"]
