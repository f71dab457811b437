"""A damaged repository becomes a good one of what is left, and says what is not."""

from pathlib import Path

import pytest

from lobstertrap.errors import InvalidInput
from lobstertrap.repository.browse import Tree
from lobstertrap.repository.check import check
from lobstertrap.repository.format import PAGES, pack_key
from lobstertrap.repository.repair import repair
from lobstertrap.repository.salvage import REPAIRED
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.repositories import (
    DEAD,
    bring_back,
    contents,
    fill,
    keys,
    reopened,
    repository,
    snap,
)
from tests.fixtures.trees import (
    BrokenStore,
    Crash,
    describe,
    make_everything,
    new_repository,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "in"


def flip(store, key: str, at: int) -> None:
    data = bytearray(store.get(key).data)
    data[at] ^= 1
    store.put(key, bytes(data))


def pack_keys(repo, kind: int = 0) -> list[str]:
    packs = repo.load_index().packs.values()
    return sorted(pack_key(p.id) for p in packs if p.kind == kind)


def assert_clean(store) -> None:
    report = check(reopened(store), sample=100)
    assert report.ok, report


def test_a_good_repository_stays_as_it_was(root: Path, tmp_path: Path) -> None:
    store, repo = repository()
    make_everything(root)
    snapshot = snap(repo, root)

    report = repair(repo, read_data=True)

    assert (report.problems, report.removed, report.snapshots) == ((), (), ())
    assert_clean(store)
    bring_back(reopened(store), snapshot, tmp_path / "out")
    assert describe(tmp_path / "out") == describe(root)


@pytest.mark.parametrize("damage", ["lost", "flipped", "emptied"])
def test_the_index_is_made_again_from_the_packs(
    root: Path, tmp_path: Path, damage: str
) -> None:
    store, repo = repository()
    make_everything(root)
    snapshot = snap(repo, root)
    (key,) = keys(store, "repository/index/")
    if damage == "lost":
        store.delete(key)
    elif damage == "emptied":
        store.put(key, b"")
    else:
        flip(store, key, 100)

    report = repair(reopened(store))

    assert report.snapshots == ()
    assert_clean(store)
    bring_back(reopened(store), snapshot, tmp_path / "out")
    assert describe(tmp_path / "out") == describe(root)


def test_a_snapshot_that_lost_files_is_replaced_by_the_rest(
    root: Path, tmp_path: Path
) -> None:
    store, repo = repository()
    fill(root, {"keep/a": 1000})
    snap(repo, root)
    before = set(pack_keys(repo))
    fill(root, {"lose/b": 1000, "lose/c": 1000}, seed=2)
    (root / "link").symlink_to("keep/a")
    damaged = snap(repo, root)
    for key in set(pack_keys(repo)) - before:
        store.delete(key)

    report = repair(reopened(store))

    (mended,) = report.snapshots
    assert mended.verdict.id == damaged.id
    assert mended.verdict.lost_files == ("state/lose/b", "state/lose/c")
    assert_clean(store)
    new = reopened(store).find(mended.replaced_by)
    assert new.status == "complete_with_warnings"
    assert new.tags[REPAIRED] == damaged.id
    assert "'state/lose/b' is lost" in new.warnings
    bring_back(reopened(store), new, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["keep/a", "link"]
    assert (tmp_path / "out" / "lose").is_dir()


def test_the_next_snapshot_stores_again_what_was_lost(
    root: Path, tmp_path: Path
) -> None:
    store, repo = repository()
    fill(root, {"file": 5000})
    snap(repo, root)
    store.delete(pack_keys(repo)[0])
    repair(reopened(store))

    again = snap(reopened(store), root)

    assert again.new_bytes == 5000
    assert_clean(store)
    bring_back(reopened(store), again, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(root)


def test_a_damaged_segment_is_dropped_and_the_rest_of_its_pack_kept(
    root: Path, tmp_path: Path
) -> None:
    store, repo = repository()
    fill(root, {f"{n}": 60_000 for n in range(40)})
    snap(repo, root)
    (key,) = pack_keys(repo)
    flip(store, key, 200)

    report = repair(reopened(store), read_data=True)

    (mended,) = report.snapshots
    assert 0 < mended.verdict.lost < 40
    assert_clean(store)
    new = reopened(store).find(mended.replaced_by)
    bring_back(reopened(store), new, tmp_path / "out")
    left = contents(tmp_path / "out")
    assert len(left) == 40 - mended.verdict.lost
    assert all((root / name).read_bytes() == data for name, data in left.items())


@pytest.mark.parametrize("kind", [0, 1])
def test_a_damaged_trailer_costs_nothing_while_the_index_is_there(
    root: Path, tmp_path: Path, kind: int
) -> None:
    store, repo = repository()
    make_everything(root)
    snapshot = snap(repo, root)
    for key in pack_keys(repo, kind):
        flip(store, key, -1)

    report = repair(reopened(store))

    assert report.snapshots == ()
    assert_clean(store)
    bring_back(reopened(store), snapshot, tmp_path / "out")
    assert describe(tmp_path / "out") == describe(root)


def test_lost_names_leave_the_rest_and_its_directories(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lobstertrap.repository.writer.SEGMENT_SIZE", {0: 1, 1: 1})
    monkeypatch.setattr("lobstertrap.repository.writer.PACK_SIZE", 1)
    store, repo = repository()
    fill(root, {f"d{n % 7}/e{n % 3}/{n}": 50 for n in range(300)})
    for number in range(60):
        (root / f"d{number % 7}" / f"link{number}").hardlink_to(
            root / f"d{number % 7}/e{number % 3}/{number}"
        )
    pages = [*Tree(repo, snap(repo, root)).pages()]
    index = repo.load_index()
    for page_id in pages[1 : len(pages) - 1 : 2]:
        store.delete(pack_key(index.find(page_id).segment.pack.id))

    report = repair(reopened(store))

    assert_clean(store)
    (mended,) = report.snapshots
    assert mended.replaced_by
    new = reopened(store).find(mended.replaced_by)
    bring_back(reopened(store), new, tmp_path / "out")
    left = contents(tmp_path / "out")
    assert 0 < len(left) < 360
    assert all((root / name).read_bytes() == data for name, data in left.items())


def test_a_snapshot_of_which_nothing_is_left_goes(root: Path) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    snap(repo, root)
    for key in pack_keys(repo, PAGES):
        store.delete(key)

    (mended,) = repair(reopened(store)).snapshots

    assert mended.replaced_by is None
    assert reopened(store).snapshots() == []
    assert_clean(store)


@pytest.mark.parametrize("kind", ["snapshots", "condemned"])
def test_an_object_that_cannot_be_read_is_taken_away(root: Path, kind: str) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    snap(repo, root)
    repo.put_mark([bytes(16)])
    (key,) = keys(store, f"repository/{kind}/")
    flip(store, key, -1)

    report = repair(reopened(store))

    assert report.removed == (key,)
    assert_clean(store)


def test_what_a_newer_version_wrote_is_left_alone(root: Path) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    snap(repo, root)
    (key,) = keys(store, "repository/snapshots/")
    data = bytearray(store.get(key).data)
    data[5] = 2
    store.put(key, bytes(data))
    before = keys(store)

    with pytest.raises(InvalidInput):
        repair(reopened(store))

    assert keys(store) == before


def test_a_crash_at_any_store_operation_is_finished_by_the_next(
    root: Path, tmp_path: Path
) -> None:
    crashes = 0
    fill(root, {f"{n}": 60_000 for n in range(20)})
    (root / "empty").mkdir()
    for crash_at in range(1, 300):
        store = BrokenStore(MemoryStore())
        repo = new_repository(store)
        snap(repo, root)
        chunks, pages = pack_keys(repo)[0], pack_keys(repo, PAGES)[0]
        flip(store, chunks, 200)
        flip(store, pages, -1)
        flip(store, keys(store, "repository/snapshots/")[0], -1)
        repo = reopened(store)
        snap(repo, root)
        store.calls = 0

        def die(_method: str, _key: str, number: int, at: int = crash_at) -> None:
            if number >= at:
                raise Crash

        store.hook = die
        try:
            repair(repo, read_data=True, holder=DEAD)
        except Crash:
            crashes += 1
            store.hook = lambda _method, _key, _number: None
        else:
            break
        repair(reopened(store), read_data=True, holder=DEAD)
        assert_clean(store)
        (left,) = reopened(store).snapshots()
        assert 0 < left.files < 20
    assert crashes > 30
