"""Looking into snapshots: listing, finding and reading without restoring."""

import os
from pathlib import Path

import pytest

from lobstertrap.errors import IntegrityError, InvalidInput, NotFound
from lobstertrap.repository import Owners, Repository, Snapshot, take_snapshot
from lobstertrap.repository.browse import Finder, Tree
from lobstertrap.repository.entry import PATH, TYPE
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.trees import BrokenStore, later, make_everything, new_repository

OWNERS = Owners(local=(0, 0), canonical=(1000, 1000))


@pytest.fixture(scope="module")
def store() -> BrokenStore:
    return BrokenStore(MemoryStore())


@pytest.fixture(scope="module")
def repo(store: BrokenStore) -> Repository:
    return new_repository(store)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("browse")
    make_everything(base / "state")
    (base / "state" / "long").write_bytes(os.urandom(7_000_000) + bytes(5_000_000))
    for directory, files in (("a", 3), ("big", 3000), ("m", 3), ("z", 600)):
        (base / "work" / directory / "sub").mkdir(parents=True)
        for number in range(files):
            (base / "work" / directory / "sub" / f"{number}.log").write_text("x")
    (base / "work" / "a.txt").write_text("beside a")
    (base / "work" / "a0").write_text("after a")
    return base


@pytest.fixture(scope="module")
def taken(repo: Repository, origin: Path) -> Snapshot:
    roots = {name: origin / name for name in ("state", "work")}
    return take_snapshot(repo, agent="ada", roots=roots, owners=OWNERS, now=later)


@pytest.fixture
def tree(repo: Repository, taken: Snapshot) -> Tree:
    return Tree(repo, taken)


def paths(tree: Tree, path: bytes, *, recursive: bool = False) -> list[bytes]:
    return [known.row[PATH] for known in tree.below(path, recursive=recursive)]


def on_disk(base: Path, path: bytes) -> list[bytes]:
    found = (base / os.fsdecode(path)).iterdir()
    return [path + b"/" + name for name in sorted(os.fsencode(p.name) for p in found)]


def test_the_top_holds_the_volumes(tree: Tree) -> None:
    assert paths(tree, b"") == [b"state", b"work"]


@pytest.mark.parametrize(
    "path", [b"state", b"state/a", b"state/empty dir", b"work", b"work/a", b"work/big"]
)
def test_a_listing_is_that_of_the_disk(tree: Tree, origin: Path, path: bytes) -> None:
    assert paths(tree, path) == on_disk(origin, path)


@pytest.mark.parametrize("path", [b"", b"work/big", b"work/a"])
def test_a_recursive_listing_is_what_lies_below(tree: Tree, path: bytes) -> None:
    everything = [known.row[PATH] for known in tree.everything()]
    prefix = path + b"/" if path else b""

    found = paths(tree, path, recursive=True)

    assert found == [p for p in everything if p.startswith(prefix)]


def test_a_listing_does_not_read_what_is_in_subdirectories(
    repo: Repository, taken: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    tree = Tree(repo, taken)
    page = tree.page
    monkeypatch.setattr(tree, "page", lambda i, n: read.append(i) or page(i, n))

    assert len(paths(tree, b"work")) == 6
    assert len(read) < len(tree.pages()) / 5


def test_every_file_reads_as_on_the_disk(tree: Tree, origin: Path) -> None:
    for known in tree.below(b"state", recursive=True):
        if known.row[TYPE] in (0, 4):
            path = origin / os.fsdecode(known.row[PATH])
            assert b"".join(tree.cat(known.row[PATH])) == path.read_bytes()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"state", "'state' is a directory, not a file"),
        (b"state/link", "'state/link' is a symlink to 'small.txt', not a file"),
        (b"state/fifo", "'state/fifo' is a fifo, not a file"),
    ],
)
def test_only_files_are_read(tree: Tree, path: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        tree.cat(path)

    assert refused.value.message == message


@pytest.mark.parametrize("path", [b"nothing", b"state/a/x", b"work/big/sub/3000.log"])
def test_what_is_not_there_is_said(tree: Tree, path: bytes) -> None:
    with pytest.raises(NotFound, match=f"has no '{path.decode()}'"):
        tree.entry(path)
    with pytest.raises(NotFound):
        list(tree.below(path))


def test_a_file_is_no_directory(tree: Tree) -> None:
    with pytest.raises(InvalidInput, match="'work/a0' is not a directory"):
        list(tree.below(b"work/a0"))


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("*.log", 3606), ("299[0-9].log", 10), ("work/a*", 7), ("no such", 0), ("a?", 1)],
)
def test_names_and_paths_are_found(tree: Tree, pattern: str, count: int) -> None:
    assert len(list(Finder(pattern).find(tree))) == count


def test_names_of_any_bytes_are_found(tree: Tree) -> None:
    (row,) = Finder(os.fsdecode(b"not \xff*")).find(tree)

    assert row[PATH] == b"state/not \xff utf-8"


def test_pages_that_snapshots_share_are_searched_once(
    repo: Repository, taken: Snapshot
) -> None:
    finder = Finder("*.log")
    first = list(finder.find(Tree(repo, taken)))
    again = Tree(repo, taken)
    again.page = None  # type: ignore[method-assign, assignment]

    assert list(finder.find(again)) == first


def test_a_damaged_chunk_is_never_given_out(origin: Path) -> None:
    store = BrokenStore(MemoryStore())
    repo = new_repository(store)
    snapshot = take_snapshot(
        repo, agent="a", roots={"state": origin / "state"}, owners=OWNERS, now=later
    )
    packs = [i.key for i in store.list("repository/packs/")]
    largest = max(packs, key=lambda key: store.head(key).size)
    data = bytearray(store.get(largest).data)
    data[len(data) // 2] ^= 4
    store.put(largest, bytes(data))
    content = (origin / "state" / "long").read_bytes()
    got: list[bytes] = []

    with pytest.raises(IntegrityError) as damaged:
        got.extend(Tree(repo, snapshot).cat(b"state/long"))

    assert f"'state/long' of snapshot {snapshot.short_id}: " in damaged.value.message
    assert largest.rpartition("/")[2] in damaged.value.message
    assert content.startswith(b"".join(got))
