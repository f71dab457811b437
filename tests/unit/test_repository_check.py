"""Every kind of damage is seen, and told by snapshot and by file."""

import random
from pathlib import Path

import pytest

from lobstertrap.errors import InvalidInput
from lobstertrap.repository.check import check
from lobstertrap.repository.format import PAGES, pack_key
from lobstertrap.repository.index import Index
from tests.fixtures.repositories import fill, keys, reopened, repository, snap
from tests.fixtures.trees import make_everything


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "in"


def flip(store, key: str, at: int) -> None:
    data = bytearray(store.get(key).data)
    data[at] ^= 1
    store.put(key, bytes(data))


def cut(store, key: str) -> None:
    store.put(key, store.get(key).data[:-100])


def only_pack(repo, kind: int = 0) -> str:
    (pack,) = [p for p in repo.load_index().packs.values() if p.kind == kind]
    return pack_key(pack.id)


def test_a_good_repository_is_good(root: Path) -> None:
    store, repo = repository()
    make_everything(root)
    snap(repo, root)
    (root / "more").write_text("more")
    snap(repo, root, agent="bob")

    report = check(reopened(store), sample=100)

    assert report.ok
    assert [v.agent for v in report.snapshots] == ["ada", "bob"]
    assert report.notes == ()
    assert report.packs_read == report.packs > 2
    assert report.bytes_read == sum(i.size for i in store.list("repository/packs/"))


def test_an_empty_repository_is_good() -> None:
    report = check(repository()[1], sample=100)

    assert report.ok
    assert report.packs == 0


def test_a_missing_pack_costs_the_files_that_are_in_it(root: Path) -> None:
    store, repo = repository()
    fill(root, {"old/one": 1000, "old/two": 1000})
    first = snap(repo, root)
    lost = only_pack(repo)
    fill(root, {"new": 2000}, seed=2)
    second = snap(repo, root)
    store.delete(lost)

    report = check(reopened(store))

    assert not report.ok
    assert [v.id for v in report.snapshots if not v.ok] == [first.id, second.id]
    assert report.snapshots[1].lost_files == ("state/old/one", "state/old/two")
    assert "is missing" in report.problems[0]


def test_only_the_snapshots_that_need_what_is_lost_are_bad(root: Path) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    first = snap(repo, root)
    before = set(keys(store, "repository/packs/"))
    fill(root, {"file": 2000}, seed=2)
    second = snap(repo, root)
    for key in set(keys(store, "repository/packs/")) - before:
        store.delete(key)

    report = check(reopened(store))

    assert {v.id: v.ok for v in report.snapshots} == {first.id: True, second.id: False}


def test_lost_pages_are_told_as_entries(root: Path) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    snap(repo, root)
    store.delete(only_pack(repo, PAGES))

    (verdict,) = check(reopened(store)).snapshots

    assert not verdict.ok
    assert verdict.problems


@pytest.mark.parametrize("kind", ["index", "snapshots", "condemned"])
def test_a_damaged_object_is_named(root: Path, kind: str) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    snap(repo, root)
    repo.put_mark([bytes(16)])
    (key,) = keys(store, f"repository/{kind}/")
    flip(store, key, -1)

    report = check(reopened(store))

    assert not report.ok
    assert key in report.problems[0]


def test_a_local_cache_hides_no_damage(root: Path, tmp_path: Path) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    snap(repo, root, cache_dir=tmp_path / "cache")
    for key in [*keys(store, "repository/snap"), only_pack(repo, PAGES)]:
        flip(store, key, 60)

    report = check(repo, sample=100)

    assert len(report.problems) == 2


def test_a_truncated_pack_is_seen_without_reading_it(root: Path) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    snap(repo, root)
    cut(store, only_pack(repo))

    report = check(reopened(store))

    assert not report.ok
    assert "bytes, not" in report.problems[0]
    assert report.snapshots[0].lost_files == ("state/file",)


def test_a_flipped_bit_in_data_is_seen_only_by_reading(root: Path) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    snap(repo, root)
    flip(store, only_pack(repo), 500)

    assert check(reopened(store)).ok
    report = check(reopened(store), sample=100)

    assert report.snapshots[0].lost_files == ("state/file",)
    assert "segment 0 is damaged" in report.problems[0]


def test_a_damaged_trailer_loses_no_file(root: Path) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    snap(repo, root)
    flip(store, only_pack(repo), -20)

    report = check(reopened(store), sample=100)

    assert not report.ok
    assert report.snapshots[0].ok


def test_a_sample_reads_some_packs(root: Path) -> None:
    _, repo = repository()
    for number in range(10):
        fill(root, {f"{number}": 1000}, seed=number)
        snap(repo, root)

    chance = random.Random(1)  # noqa: S311 - a test
    report = check(repo, sample=30, chance=chance)

    assert report.packs_read == -(-report.packs * 30 // 100)
    assert report.ok


def test_a_sample_of_more_than_all_is_refused() -> None:
    with pytest.raises(InvalidInput):
        check(repository()[1], sample=101)


def test_an_unfinished_snapshot_is_a_note_and_no_damage(root: Path) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    snap(repo, root)
    for key in [*keys(store, "repository/index/"), *keys(store, "repository/snap")]:
        store.delete(key)

    report = check(reopened(store))

    assert report.ok
    assert "in no index" in report.notes[0]


def test_another_copy_of_a_lost_blob_will_do(root: Path, monkeypatch) -> None:
    store, repo = repository()
    fill(root, {"file": 1000})
    monkeypatch.setattr(type(repo), "load_index", _no_index)
    snap(repo, root)
    first = set(keys(store, "repository/packs/"))
    snap(repo, root)
    monkeypatch.undo()
    for key in first:
        store.delete(key)

    report = check(reopened(store))

    assert all(verdict.ok for verdict in report.snapshots)
    assert len(report.problems) == 2


def _no_index(_repo):
    return Index()
