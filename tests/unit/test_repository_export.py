"""Snapshots as tar archives, out and in; GNU tar is the judge where it is here."""

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from lobstertrap.errors import InvalidInput, LobsterTrapError, NotFound
from lobstertrap.repository import Owners, Repository, Snapshot, take_snapshot
from lobstertrap.repository.browse import Tree
from lobstertrap.repository.export import export
from lobstertrap.repository.import_tar import Unpacked, unpack
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.needs import missing
from tests.fixtures.trees import (
    BrokenStore,
    describe,
    later,
    make_everything,
    new_repository,
)

ME = (os.getuid(), os.getgid())
OWNERS = Owners(local=ME, canonical=ME)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one of everything that a volume may hold."""
    root = tmp_path_factory.mktemp("export") / "in"
    make_everything(root)
    for name, stamp in (("old", -1_500_000_001), ("whole", 2_000_000_000)):
        (root / name).write_text(name)
        os.utime(root / name, ns=(stamp, stamp))
    for name in ("=odd %3D name", "plain"):
        os.setxattr(root / "whole", f"user.{name}", b"\0\n\xff=" + name.encode())
    deep = root
    for number in range(40):
        deep = deep / f"level {number}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("long path")
    os.utime(root, ns=(7, 7))
    return root


@pytest.fixture(scope="module")
def repo() -> Repository:
    return new_repository(MemoryStore())


@pytest.fixture(scope="module")
def taken(repo: Repository, origin: Path) -> Snapshot:
    return snap(repo, origin)


def snap(repo: Repository, root: Path) -> Snapshot:
    return take_snapshot(
        repo, agent="ada", roots={"state": root}, owners=OWNERS, now=later
    )


def exported(repo: Repository, snapshot: Snapshot, volume: str | None = None) -> bytes:
    out = io.BytesIO()
    size = export(Tree(repo, snapshot), out, volume=volume)
    assert size == len(out.getvalue())
    assert size % 10240 == 0
    return out.getvalue()


def unpacked(data: bytes, root: Path) -> Unpacked:
    root.mkdir()
    return unpack(io.BytesIO(data), root)


def test_gnu_tar_unpacks_everything_as_it_was(
    repo: Repository, origin: Path, taken: Snapshot, tmp_path: Path
) -> None:
    if shutil.which("tar") is None:
        missing("tar is not here")
    (tmp_path / "out").mkdir()

    subprocess.run(
        ["tar", "-xp", "--xattrs", "--xattrs-include=*", "-C", tmp_path / "out"],
        input=exported(repo, taken),
        check=True,
        timeout=60,
    )

    assert describe(tmp_path / "out" / "state") == describe(origin)
    assert (tmp_path / "out" / "state" / "hole").stat().st_blocks == 0


def test_what_is_exported_comes_back_by_import(
    repo: Repository, origin: Path, taken: Snapshot, tmp_path: Path
) -> None:
    result = unpacked(exported(repo, taken, "state"), tmp_path / "out")

    assert describe(tmp_path / "out") == describe(origin)
    assert (tmp_path / "out" / "hole").stat().st_blocks == 0
    assert result.warnings == ()
    assert (result.files, result.bytes) == (taken.files, _logical(origin))
    assert snap(repo, tmp_path / "out").tree_digest == taken.tree_digest


def _logical(root: Path) -> int:
    files = {p.stat().st_ino: p for p in root.rglob("*") if _is_file(p)}
    return sum(path.stat().st_size for path in files.values())


def _is_file(path: Path) -> bool:
    return not path.is_symlink() and path.is_file()


def test_what_gnu_tar_makes_can_be_imported(origin: Path, tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        missing("tar is not here")
    made = subprocess.run(
        ["tar", "-cS", "--format=pax", "--xattrs", "-C", origin, "."],
        capture_output=True,
        check=True,
        timeout=60,
    )

    result = unpacked(made.stdout, tmp_path / "out")

    assert describe(tmp_path / "out") == describe(origin)
    assert result.warnings == ()


def test_one_volume_of_several_is_exported_from_its_root(
    repo: Repository, tmp_path: Path
) -> None:
    for name in ("state", "state2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    roots = {name: tmp_path / name for name in ("state", "state2")}
    snapshot = take_snapshot(repo, agent="a", roots=roots, owners=OWNERS, now=later)

    with tarfile.open(fileobj=io.BytesIO(exported(repo, snapshot, "state2"))) as tar:
        assert tar.getnames() == [".", "./file"]
        assert tar.extractfile("./file").read() == b"state2"
    with pytest.raises(NotFound, match="no volume 'stat'"):
        exported(repo, snapshot, "stat")


def test_selected_paths_are_exported_with_what_they_need(
    repo: Repository, origin: Path, taken: Snapshot, tmp_path: Path
) -> None:
    out, paths = io.BytesIO(), [b"state/third name", b"state/a/b", b"state/small.txt"]
    tree = Tree(repo, taken)

    export(tree, out, paths=paths)

    unpacked(out.getvalue(), tmp_path / "out")
    found, whole = describe(tmp_path / "out" / "state"), describe(origin)
    names = {b"", b"/third name", b"/a", b"/a/b", b"/a/b/c", b"/a/b/c/deep"}
    assert found.keys() == names | {b"/small.txt"}
    assert found.pop(b"/third name") == whole[b"/third name"][:-1]
    assert all(whole[name] == what for name, what in found.items())
    with pytest.raises(NotFound, match="has no 'state/x'"):
        export(tree, io.BytesIO(), paths=[b"state/x"])


def test_selected_names_of_one_file_stay_one_file(
    repo: Repository, taken: Snapshot, tmp_path: Path
) -> None:
    out, paths = io.BytesIO(), [b"state/first name", b"state/third name"]

    export(Tree(repo, taken), out, paths=paths)

    unpacked(out.getvalue(), tmp_path / "out")
    first = tmp_path / "out" / "state" / "first name"
    assert first.read_bytes() == b"two names"
    assert first.samefile(tmp_path / "out" / "state" / "third name")


def test_an_export_of_a_damaged_snapshot_has_no_end(
    origin: Path, tmp_path: Path
) -> None:
    store = BrokenStore(MemoryStore())
    repo = new_repository(store)
    snapshot = snap(repo, origin)
    packs = [i.key for i in store.list("repository/packs/")]
    largest = max(packs, key=lambda key: store.head(key).size)
    data = bytearray(store.get(largest).data)
    data[len(data) // 2] ^= 4
    store.put(largest, bytes(data))
    out = io.BytesIO()

    with pytest.raises(LobsterTrapError, match=f"snapshot {snapshot.short_id}"):
        export(Tree(repo, snapshot), out)

    with pytest.raises(InvalidInput, match="not a whole tar archive"):
        unpacked(out.getvalue(), tmp_path / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices and owners")
def test_devices_and_owners_are_exported(repo: Repository, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    (root / "theirs").write_text("x")
    os.chown(root / "theirs", 3_000_000, 4321)
    data = exported(repo, snap(repo, root), "state")

    result = unpacked(data, tmp_path / "out")

    assert result.warnings == ("'null' is a device and was left out",)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        null = tar.getmember("./null")
        assert (null.ischr(), null.devmajor, null.devminor) == (True, 1, 3)
    assert (tmp_path / "out" / "theirs").stat().st_uid == 3_000_000


def archive(*members: tuple[str, bytes, str], data: bytes = b"x") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link, 0o755
            regular = kind == tarfile.REGTYPE
            info.size = len(data) if regular else 0
            tar.addfile(info, io.BytesIO(data) if regular else None)
    return out.getvalue()


FILE, LINK, HARD, DIR = (
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
)


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([("/etc/evil", FILE, "")], "'/etc/evil' in the archive"),
        ([("../evil", FILE, "")], "'../evil' in the archive"),
        ([("a/../../evil", FILE, "")], "'a/../../evil' in the archive"),
        ([("x" * 300, FILE, "")], "too long a name"),
        ([("a", LINK, "/nowhere"), ("a/evil", FILE, "")], "leads through 'a'"),
        ([("a", LINK, "/nowhere"), ("a", DIR, "")], "leads through 'a'"),
        ([("a", FILE, ""), ("a/b", FILE, "")], "leads through 'a'"),
        ([("a", FILE, ""), ("a", FILE, "")], "'a' in the archive occurs twice"),
        ([("a", LINK, "b"), ("b", HARD, "a")], "'b' in the archive is a link to 'a'"),
        ([("b", HARD, "/etc/passwd")], "'/etc/passwd' in the archive"),
        ([("b", HARD, "nothing")], "'b' in the archive is a link to 'nothing'"),
        ([], "there is nothing in it"),
    ],
)
def test_a_dangerous_archive_is_refused_with_the_name(
    tmp_path: Path, members: list[tuple[str, bytes, str]], named: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        unpacked(archive(*members), tmp_path / "out")

    assert named in refused.value.message
    assert not (tmp_path / "evil").exists()


def test_a_destination_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")

    with pytest.raises(InvalidInput, match="is not empty"):
        unpack(io.BytesIO(archive(("a", FILE, ""))), tmp_path)


def test_an_archive_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    data = archive(("a", FILE, ""), ("b", FILE, ""), data=bytes(700))

    for number, cut in enumerate((0, 100, 512, 1000, 1536, 2000, 3072)):
        with pytest.raises(InvalidInput, match="not a whole tar archive"):
            unpacked(data[:cut], tmp_path / str(number))


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    place=some.integers(0, 4000),
    change=some.binary(min_size=1, max_size=40),
)
def test_a_damaged_archive_is_never_anything_but_our_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: bytes
) -> None:
    root = tmp_path_factory.mktemp("fuzz") / "out"
    data = bytearray(archive(("d", DIR, ""), ("d/a", FILE, ""), ("l", LINK, "d/a")))
    data[place : place + len(change)] = change

    with contextlib.suppress(LobsterTrapError):
        unpacked(bytes(data), root)
