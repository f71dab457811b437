"""What a directory store promises beyond the contract: kills, full disks, races."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lobstertrap.errors import (
    AccessDenied,
    Conflict,
    InvalidInput,
    NoSpace,
    NotFound,
    Unavailable,
)
from lobstertrap.stores import directory
from lobstertrap.stores.directory import DirectoryStore
from tests.fixtures.needs import missing

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from lobstertrap.stores import files
from lobstertrap.stores.directory import DirectoryStore

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "aside":
    os.fsync = die
elif sys.argv[2] == "locked":
    Path.rename = die
else:
    from lobstertrap.stores import directory
    directory.sync_directories = die
store = DirectoryStore(Path(sys.argv[1]))
store._prepare = lambda: None
store.put("key", b"new", if_match=sys.argv[3])
"""
RACER = """
import sys
from pathlib import Path
from lobstertrap.errors import Conflict
from lobstertrap.stores.directory import DirectoryStore

store, name, won, added = DirectoryStore(Path(sys.argv[1])), sys.argv[2], 0, 0
print("ready", flush=True)
sys.stdin.readline()
for n in range(40):
    try:
        store.put(f"once/{n}", name.encode(), if_absent=True)
        won += 1
    except Conflict:
        pass
while added < 10:
    found = store.get("counter")
    try:
        store.put("counter", b"%d" % (int(found.data) + 1), if_match=found.etag)
        added += 1
    except Conflict:
        pass
print(won)
"""


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def files(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("moment", "content"),
    [("aside", b"old"), ("locked", b"old"), ("renamed", b"new")],
)
def test_a_killed_writer_leaves_the_old_or_the_new_object(
    store: DirectoryStore, tmp_path: Path, moment: str, content: bytes
):
    etag = store.put("key", b"old")

    with run(KILLED_WHILE_WRITING, str(tmp_path / "store"), moment, etag) as writer:
        assert writer.wait(60) == -signal.SIGKILL

    left = files(tmp_path / "store" / "~tmp")
    assert store.get("key").data == content
    assert len(left) == (0 if moment == "renamed" else 1)
    assert [info.key for info in store.list("")] == ["key"]

    another = DirectoryStore(tmp_path / "store")
    start = time.monotonic()
    another.put("key", b"next", if_match=another.head("key").etag)

    assert time.monotonic() - start < 60, "the dead writer's lock is still held"
    assert files(tmp_path / "store") == ["key", "~lock"]


def test_a_sweep_leaves_the_files_of_living_writers(tmp_path: Path):
    slow, quick = (DirectoryStore(tmp_path) for _ in range(2))
    slow.put("other", b"makes the directories")

    with slow._written_aside([b"not yet renamed"]) as (_, aside):
        quick.put("key", b"sweeps first")

        assert aside.exists()
    assert not aside.exists()


def test_processes_that_race_win_once_each_and_lose_no_update(
    store: DirectoryStore, tmp_path: Path
):
    store.put("counter", b"0")
    racers = [run(RACER, str(tmp_path / "store"), f"racer {n}") for n in range(4)]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        won = [int(racer.communicate("go\n", timeout=120)[0]) for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()

    assert sum(won) == 40
    assert store.get("counter").data == b"40"
    assert len(list(store.list("once/"))) == 40


def test_a_stopped_holder_of_the_lock_is_named_unavailable(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
):
    store.put("key", b"old")
    monkeypatch.setattr(directory, "_LOCK_SECONDS", 0.05)

    with (
        store._locked(),
        pytest.raises(Unavailable, match="lock"),
    ):
        store.put("key", b"new")

    assert store.get("key").data == b"old"


def test_etags_differ_even_when_the_clock_stands_still(tmp_path: Path):
    store = DirectoryStore(tmp_path, now_ns=lambda: 1_000_000_000_000)

    etags = [store.put("key", data) for data in (b"A", b"B") * 20]

    assert len(set(etags)) == 40
    assert store.head("key").modified < 1000.001
    with pytest.raises(Conflict):
        store.put("key", b"C", if_match=etags[0])


def test_etags_differ_when_the_clock_goes_back(tmp_path: Path):
    store = DirectoryStore(tmp_path, now_ns=itertools.count(10**18, -1).__next__)

    etags = [store.put("key", b"same size") for _ in range(20)]

    assert len(set(etags)) == 20


def test_a_file_system_with_coarse_times_gets_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    second = 10**9
    real = os.utime

    def coarse(descriptor: int, ns: tuple[int, int]) -> None:
        real(descriptor, ns=(ns[0] // second * second,) * 2)

    monkeypatch.setattr(os, "utime", coarse)
    store = DirectoryStore(tmp_path, now_ns=lambda: 5 * second)

    times = []
    for _ in range(5):
        store.put("key", b"same size")
        times.append(store.head("key").modified)

    assert times == sorted(set(times))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EACCES, AccessDenied),
        (errno.EROFS, AccessDenied),
        (errno.EIO, Unavailable),
        (errno.ESTALE, Unavailable),
    ],
)
def test_what_the_system_refuses_is_named_and_leaves_nothing(
    store: DirectoryStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
):
    store.put("key", b"old")

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(kind, match=r"writing 'key' in file:///.*failed: "):
            store.put("key", b"new")

    assert store.get("key").data == b"old"
    assert files(tmp_path / "store") == ["key", "~lock"]


def test_a_full_disk_is_no_space_and_the_store_stays_usable(tmp_path: Path):
    mounted = subprocess.run(
        [
            *("unshare", "--mount", "--map-root-user", "sh", "-c"),
            'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1"',
            *("sh", str(tmp_path), sys.executable, _FILL),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if mounted.returncode:
        missing(f"no tmpfs of one's own here: {mounted.stderr.strip()[-80:]}")

    assert json.loads(mounted.stdout) == {
        "error": "NoSpace",
        "kept": "old",
        "left": [],
        "again": "new",
    }


_FILL = """
import json, os, sys
from pathlib import Path
from lobstertrap.errors import NoSpace
from lobstertrap.stores.directory import DirectoryStore

root = Path(sys.argv[1])
store = DirectoryStore(root)
store.put("key", b"old")
try:
    store.put("key", os.urandom(2_000_000))
    error = None
except NoSpace as caught:
    error = type(caught).__name__
kept = store.get("key").data.decode()
left = os.listdir(root / "~tmp")
store.put("key", b"new")
again = store.get("key").data.decode()
print(json.dumps({"error": error, "kept": kept, "left": left, "again": again}))
"""


def test_reading_makes_nothing(store: DirectoryStore, tmp_path: Path):
    assert list(store.list("")) == []
    store.delete("key")
    with pytest.raises(NotFound):
        store.get("key")
    assert list(tmp_path.iterdir()) == []


def test_only_its_owner_can_look_into_it(store: DirectoryStore, tmp_path: Path):
    store.put("a/b", b"x")

    for path in (tmp_path / "store").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


def test_foreign_files_are_not_listed(store: DirectoryStore, tmp_path: Path):
    store.put("dir/key", b"x")
    (tmp_path / "store" / "lost+found").mkdir()
    (tmp_path / "store" / "dir" / "with space.txt").write_text("x")
    os.mkfifo(tmp_path / "store" / "pipe")
    (tmp_path / "store" / "dangling").symlink_to("nowhere")

    assert [info.key for info in store.list("")] == ["dir/key"]


def test_an_object_below_an_object_is_refused(store: DirectoryStore):
    store.put("a", b"x")
    store.put("b/c", b"x")

    with pytest.raises(InvalidInput):
        store.put("a/below", b"x")
    with pytest.raises(InvalidInput):
        store.put("b", b"x")
    assert [info.key for info in store.list("")] == ["a", "b/c"]


def test_a_file_where_the_directory_should_be_is_refused(tmp_path: Path):
    (tmp_path / "store").write_text("a file")

    with pytest.raises(InvalidInput, match="store"):
        DirectoryStore(tmp_path / "store").put("key", b"x")


def test_listing_reads_a_directory_only_when_it_comes_to_it(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
):
    for n in range(20):
        store.put(f"d{n:02}/key", b"x")
    read: list[str] = []
    real = directory._entries

    def entries(path: Path) -> list[tuple[str, str]]:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(directory, "_entries", entries)

    assert next(store.list("d1")).key == "d10/key"
    assert read == ["store", "d10"]


def test_an_object_that_vanishes_while_listing_is_left_out(store: DirectoryStore):
    for n in range(3):
        store.put(f"k{n}", b"x")

    listing = store.list("")
    first = next(listing).key
    store.delete("k1")

    assert [first, *(info.key for info in listing)] == ["k0", "k2"]


def test_its_url_opens_it_again(tmp_path: Path):
    store = DirectoryStore(tmp_path / "with space #1")

    assert store.url.endswith("/with%20space%20%231")
