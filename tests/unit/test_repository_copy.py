"""A repository is brought into another store: only what is missing, as it is."""

from pathlib import Path

import pytest

from lobstertrap.errors import IntegrityError, InvalidInput
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository
from lobstertrap.repository.check import check
from lobstertrap.repository.copy import copy
from lobstertrap.repository.format import pack_key
from lobstertrap.repository.prune import GRACE, prune
from lobstertrap.stores.counting import Counting
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.repositories import (
    Clock,
    bring_back,
    contents,
    fill,
    keys,
    reopened,
    repository,
    snap,
)
from tests.fixtures.trees import (
    CHEAP,
    BrokenStore,
    Crash,
    describe,
    make_everything,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "in"


def elsewhere(clock: Clock | None = None) -> MemoryStore:
    return MemoryStore("memory://elsewhere", now=clock or Clock())


def assert_clean(store) -> None:
    report = check(reopened(store), sample=100)
    assert report.ok, report


def test_a_copy_opens_with_the_same_key_and_restores(
    root: Path, tmp_path: Path
) -> None:
    _, repo = repository()
    make_everything(root)
    snapshot = snap(repo, root)
    there = elsewhere()

    result = copy(repo, there)

    assert (result.snapshots, result.present) == (1, 0)
    assert_clean(there)
    found = reopened(there).find(snapshot.id)
    assert found == snapshot
    bring_back(reopened(there), found, tmp_path / "out")
    assert describe(tmp_path / "out") == describe(root)


def test_copying_again_sends_nothing(root: Path) -> None:
    _, repo = repository()
    make_everything(root)
    snap(repo, root)
    there = elsewhere()
    copy(repo, there)
    before = keys(there)
    counting = Counting(there)

    result = copy(repo, counting)

    assert (result.snapshots, result.present, result.packs) == (0, 1, 0)
    assert keys(there) == before
    assert "put" not in counting.traffic.requests


def test_only_new_packs_are_sent(root: Path) -> None:
    _, repo = repository()
    fill(root, {"file": 500_000})
    snap(repo, root)
    there = elsewhere()
    copy(repo, there)
    fill(root, {"more": 10_000}, seed=2)
    snap(repo, root)

    result = copy(repo, there)

    assert (result.snapshots, result.present) == (1, 1)
    assert result.bytes < 30_000
    assert_clean(there)


def test_what_was_rewritten_there_is_not_sent_again(root: Path) -> None:
    clock = Clock()
    _, repo = repository(clock)
    fill(root, {f"{n}": 60_000 for n in range(10)})
    first = snap(repo, root, now=clock)
    there = elsewhere(clock)
    copy(repo, there)
    for number in range(8):
        (root / f"{number}").unlink()
    snap(repo, root, now=clock)
    copy(repo, there)
    reopened(there).delete_snapshot(first)
    repo.delete_snapshot(first)
    for _ in range(3):
        clock.now += GRACE
        prune(reopened(there))
    fill(root, {"new": 10_000}, seed=5)
    snap(repo, root, now=clock)

    result = copy(repo, there)

    assert result.snapshots == 1
    assert result.bytes < 40_000
    assert_clean(there)


def test_one_agent_can_be_copied_alone(root: Path) -> None:
    _, repo = repository()
    fill(root, {"file": 1000})
    snap(repo, root)
    fill(root, {"secret": 200_000}, seed=3)
    snap(repo, root, agent="bob")
    there = elsewhere()

    result = copy(repo, there, agent="ada")

    assert result.bytes < 100_000
    assert [s.agent for s in reopened(there).snapshots()] == ["ada"]
    assert_clean(there)


def test_a_place_with_another_repository_is_refused(root: Path) -> None:
    _, repo = repository()
    there = elsewhere()
    Repository.create(there, SecretValue("another"), cost=CHEAP)

    with pytest.raises(InvalidInput, match="another repository"):
        copy(repo, there)


def test_a_copy_onto_itself_is_refused() -> None:
    store, repo = repository()

    with pytest.raises(InvalidInput):
        copy(repo, store)


def test_damage_is_not_copied(root: Path) -> None:
    store, repo = repository()
    fill(root, {"file": 5000})
    snap(repo, root)
    (pack,) = [p for p in repo.load_index().packs.values() if p.kind == 0]
    data = bytearray(store.get(pack_key(pack.id)).data)
    data[100] ^= 1
    store.put(pack_key(pack.id), bytes(data))
    there = elsewhere()

    with pytest.raises(IntegrityError, match="damaged"):
        copy(repo, there)

    assert reopened(there).snapshots() == []


def test_sealed_objects_are_the_same_bytes_on_both_sides(root: Path) -> None:
    store, repo = repository()
    make_everything(root)
    snap(repo, root)
    there = elsewhere()

    copy(repo, there)

    for key in [*keys(store, "repository/packs/"), *keys(store, "repository/snap")]:
        assert there.get(key).data == store.get(key).data


def test_what_is_condemned_there_does_not_count_as_there(
    root: Path, tmp_path: Path
) -> None:
    clock = Clock()
    _, repo = repository(clock)
    fill(root, {"file": 300_000})
    snapshot = snap(repo, root, now=clock)
    there = elsewhere(clock)
    copy(repo, there)
    clock.now += GRACE
    other = reopened(there)
    other.delete_snapshot(snapshot)
    assert prune(other).condemned_packs > 0

    copy(repo, there)
    for _ in range(3):
        clock.now += GRACE
        prune(reopened(there))

    assert_clean(there)
    bring_back(reopened(there), reopened(there).find("latest"), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(root)


def test_a_crash_at_any_store_operation_is_finished_by_the_next(root: Path) -> None:
    _, repo = repository()
    fill(root, {"one": 100_000})
    snap(repo, root)
    fill(root, {"two": 100_000}, seed=2)
    snap(repo, root)
    crashes = 0
    for crash_at in range(1, 100):
        there = BrokenStore(elsewhere())

        def die(_method: str, _key: str, number: int, at: int = crash_at) -> None:
            if number >= at:
                raise Crash

        there.hook = die
        try:
            copy(repo, there)
        except Crash:
            crashes += 1
            there.hook = lambda _method, _key, _number: None
        else:
            break
        if keys(there):
            assert_clean(there)
        copy(repo, there)
        assert_clean(there)
        assert len(reopened(there).snapshots()) == 2
    assert crashes > 12
