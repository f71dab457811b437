"""Space is freed beside writers and readers, whenever a process dies."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from lobstertrap.errors import IntegrityError, InvalidInput, Unavailable
from lobstertrap.repository import commit as committing
from lobstertrap.repository.check import check
from lobstertrap.repository.prune import GRACE, KEEP_MARKS, prune
from lobstertrap.repository.prune_plan import PackState, plan_prune
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.repositories import (
    DEAD,
    Clock,
    bring_back,
    contents,
    fill,
    keys,
    reopened,
    repository,
    snap,
    wipe,
)
from tests.fixtures.trees import BrokenStore, Crash, new_repository


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def history(repo, root: Path, clock: Clock, count: int = 3):
    """Snapshots that share one file and have one of their own; a day apart."""
    snapshots = []
    fill(root, {"shared": 300_000})
    for number in range(count):
        fill(root, {"own": 400_000}, seed=number + 1)
        snapshots.append(snap(repo, root, now=clock))
        clock.now += GRACE
    return snapshots


def packs(store) -> list[str]:
    return keys(store, "repository/packs/")


def marks(store) -> list[str]:
    return keys(store, "repository/condemned/")


def assert_clean(store) -> None:
    report = check(reopened(store), sample=100)
    assert report.ok, report


def test_nothing_is_pruned_while_every_snapshot_is_there(clock, root) -> None:
    store, repo = repository(clock)
    history(repo, root, clock)
    before = keys(store)

    result = prune(repo)

    assert (result.condemned_packs, result.deleted_packs) == (0, 0)
    assert keys(store) == before


def test_what_nothing_needs_is_condemned_and_deleted_after_the_grace(
    clock, root, tmp_path
) -> None:
    store, repo = repository(clock)
    _, middle, last = history(repo, root, clock)
    repo.delete_snapshot(middle)
    before = packs(store)

    condemned = prune(repo, repack=False)
    between = packs(store)
    clock.now += GRACE
    deleted = prune(reopened(store), repack=False)

    assert condemned.condemned_packs > 0
    assert between == before
    assert deleted.deleted_packs == condemned.condemned_packs
    assert len(packs(store)) == len(before) - deleted.deleted_packs
    assert_clean(store)
    bring_back(reopened(store), last, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(root)


def test_before_the_grace_is_over_nothing_is_deleted(clock, root) -> None:
    store, repo = repository(clock)
    repo.delete_snapshot(history(repo, root, clock)[1])
    prune(repo, repack=False)
    before = keys(store)
    clock.now += GRACE - 1

    result = prune(repo, repack=False)

    assert result.waiting_packs > 0
    assert keys(store) == before


def test_packs_that_are_mostly_waste_are_rewritten(clock, root, tmp_path) -> None:
    store, repo = repository(clock)
    fill(root, {f"{n}": 100_000 for n in range(20)})
    first = snap(repo, root, now=clock)
    for number in range(18):
        (root / str(number)).unlink()
    second = snap(repo, root, now=clock)
    clock.now += GRACE
    repo.delete_snapshot(first)

    result = prune(repo)
    assert_clean(store)
    clock.now += GRACE
    prune(reopened(store))

    assert result.rewritten_packs > 0
    assert sum(info.size for info in store.list("repository/packs/")) < 300_000
    assert_clean(store)
    bring_back(reopened(store), second, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(root)


def test_a_second_prune_finds_nothing_more_to_do(clock, root) -> None:
    store, repo = repository(clock)
    for snapshot in history(repo, root, clock)[:2]:
        repo.delete_snapshot(snapshot)
    for _ in range(4):
        prune(repo)
        clock.now += GRACE
    before = keys(store)

    result = prune(repo)

    assert (result.condemned_packs, result.deleted_packs) == (0, 0)
    assert keys(store) == before


def test_a_dry_run_changes_nothing_in_the_repository(clock, root) -> None:
    store, repo = repository(clock)
    repo.delete_snapshot(history(repo, root, clock)[1])
    before = keys(store)

    result = prune(repo, dry_run=True)

    assert result.condemned_packs > 0
    assert keys(store) == before


def test_packs_of_an_interrupted_snapshot_go_when_they_are_old(clock, root) -> None:
    store = BrokenStore(MemoryStore(now=clock))
    repo = new_repository(store)
    fill(root, {"file": 500_000})

    def die(method: str, key: str, _number: int) -> None:
        if method == "put" and "/index/" in key:
            raise Crash

    store.hook = die
    with pytest.raises(Crash):
        snap(repo, root, now=clock)
    store.hook = lambda _method, _key, _number: None

    assert packs(store)
    assert prune(repo).condemned_packs == 0  # a writer may still be at work
    clock.now += GRACE
    assert prune(repo).condemned_packs > 0
    clock.now += GRACE
    prune(repo)
    assert packs(store) == []


def test_marks_are_kept_as_tombstones_and_then_go(clock, root) -> None:
    store, repo = repository(clock)
    repo.delete_snapshot(history(repo, root, clock)[1])
    prune(repo, repack=False)
    clock.now += GRACE
    prune(repo, repack=False)
    assert marks(store)

    clock.now += KEEP_MARKS
    prune(repo, repack=False)

    assert marks(store) == []


def test_a_damaged_repository_is_not_pruned(clock, root) -> None:
    store, repo = repository(clock)
    repo.delete_snapshot(history(repo, root, clock)[1])
    needed = [info.key for info in store.list("repository/packs/")][-3:]
    for key in needed:
        store.delete(key)
    before = keys(store)

    with pytest.raises(IntegrityError):
        prune(repo)

    assert keys(store) == before


def test_too_short_a_grace_is_refused() -> None:
    with pytest.raises(InvalidInput):
        prune(repository()[1], grace=60)


# Beside writers


def test_a_snapshot_that_comes_while_packs_are_deleted_rests_on_none_of_them(
    clock, root, tmp_path, monkeypatch
) -> None:
    store = BrokenStore(MemoryStore(now=clock))
    repo = new_repository(store)
    for old in history(repo, root, clock, 2):
        repo.delete_snapshot(old)
    writer = reopened(store)
    pending: list[tuple] = []
    monkeypatch.setattr(
        "lobstertrap.repository.archiver.commit", lambda *a, **_: pending.append(a)
    )
    late = snap(writer, root, now=clock)  # has read everything, and is not yet put
    assert late.new_bytes == 0
    assert prune(repo).condemned_packs > 0
    clock.now += GRACE

    def commit_now(method: str, key: str, _number: int) -> None:
        if method == "delete" and "/packs/" in key and pending:
            committing.commit(*pending.pop())

    store.hook = commit_now
    assert prune(repo).deleted_packs > 0

    assert not pending
    assert_clean(store)
    bring_back(reopened(store), late, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(root)


def test_a_snapshot_put_while_its_packs_were_being_condemned_saves_them(
    clock, root, tmp_path, monkeypatch
) -> None:
    store, repo = repository(clock)
    first, *_ = history(repo, root, clock, 1)

    def commit_blindly(repo, index, snapshot, **_) -> None:  # it looked just before
        other = reopened(store)
        other.delete_snapshot(first)
        assert prune(other).condemned_packs > 0
        repo.put_snapshot(snapshot)

    monkeypatch.setattr("lobstertrap.repository.archiver.commit", commit_blindly)
    late = snap(repo, root, now=clock)
    monkeypatch.undo()
    clock.now += GRACE
    result = prune(reopened(store))

    assert result.pardoned_packs > 0
    assert prune(reopened(store)).pardoned_packs == 0
    assert_clean(store)
    bring_back(reopened(store), late, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(root)


def test_a_writer_that_stood_still_too_long_takes_its_snapshot_back(
    clock, root, monkeypatch
) -> None:
    store, repo = repository(clock)
    first, *_ = history(repo, root, clock, 1)
    standing = reopened(store)
    times = iter([0.0, 10_000.0, 10_000.0, 10_000.0])
    real = type(standing).put_snapshot

    def put_after_a_long_sleep(self, snapshot) -> None:
        other = reopened(store)
        other.delete_snapshot(first)
        prune(other)
        clock.now += GRACE
        prune(other)
        real(self, snapshot)

    monkeypatch.setattr(type(standing), "put_snapshot", put_after_a_long_sleep)
    monkeypatch.setattr(
        "lobstertrap.repository.archiver.commit",
        lambda *a, **_: committing.commit(*a, clock=lambda: next(times)),
    )
    with pytest.raises(Unavailable):
        snap(standing, root, now=clock)

    assert reopened(store).snapshots() == []
    monkeypatch.undo()
    assert snap(reopened(store), root, now=clock).new_bytes > 0
    assert_clean(store)


def test_what_is_condemned_is_stored_again_and_not_reused(clock, root) -> None:
    store, repo = repository(clock)
    (first,) = history(repo, root, clock, 1)
    repo.delete_snapshot(first)
    prune(repo)

    again = snap(reopened(store), root, now=clock)
    clock.now += GRACE
    prune(reopened(store))

    assert again.new_bytes == again.bytes
    assert_clean(store)


def test_writers_forgets_and_prunes_at_once_leave_all_restorable(
    clock, tmp_path
) -> None:
    store, _ = repository(clock)
    failures: list[BaseException] = []

    def write(agent: str) -> None:
        root = tmp_path / agent
        try:
            for number in range(6):
                fill(root, {f"{number % 3}": 200_000}, seed=number % 4)
                repo = reopened(store)
                snap(repo, root, agent=agent, now=clock)
                clock.now += GRACE / 3
                for old in repo.snapshots(agent)[:-1]:
                    repo.delete_snapshot(old)
        except BaseException as error:
            failures.append(error)

    def clean() -> None:
        try:
            for _ in range(8):
                prune(reopened(store), holder=DEAD)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(a,)) for a in ("ada", "bob")]
    threads.append(threading.Thread(target=clean))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not [f for f in failures if not isinstance(f, Unavailable)], failures
    assert_clean(store)


# Crashes


def test_a_crash_at_any_store_operation_leaves_all_well(tmp_path, root) -> None:
    crashes = 0
    for crash_at in range(1, 400):
        clock = Clock()
        store = BrokenStore(MemoryStore(now=clock))
        repo = new_repository(store)
        last = _three_stages(repo, root, clock)
        store.calls = 0

        def die(_method: str, _key: str, number: int, at: int = crash_at) -> None:
            if number >= at:
                raise Crash

        store.hook = die
        try:
            prune(repo, holder=DEAD)
        except Crash:
            crashes += 1
            store.hook = lambda _method, _key, _number: None
        else:
            break
        assert_clean(store)
        prune(reopened(store), holder=DEAD)
        assert_clean(store)
        for _ in range(2):
            clock.now += 2 * GRACE
            prune(reopened(store), holder=DEAD)
        report = check(reopened(store), sample=100)
        assert report.ok
        assert report.notes == ()
        in_force = reopened(store).load_index_tables()
        assert keys(store, "repository/index/") == sorted(in_force)
        if crash_at % 10 == 0:
            out = tmp_path / f"out{crash_at}"
            bring_back(reopened(store), last, out)
            assert contents(out) == contents(root)
    assert crashes > 25


def _three_stages(repo, root: Path, clock: Clock):
    """A repository with packs to delete, to pardon, to condemn and to rewrite."""
    wipe(root)
    fill(root, {f"{n}": 50_000 for n in range(10)})
    first = snap(repo, root, now=clock)
    fill(root, {"0": 50_000, "1": 50_000}, seed=1)
    second = snap(repo, root, now=clock)
    clock.now += GRACE
    repo.delete_snapshot(second)
    prune(repo, holder=DEAD)
    clock.now += GRACE
    wipe(root)
    fill(root, {"0": 50_000, "new": 70_000})
    third = snap(repo, root, now=clock)
    fill(root, {"other": 60_000}, seed=9)
    fourth = snap(repo, root, now=clock)
    repo.delete_snapshot(first)
    repo.delete_snapshot(third)
    clock.now += GRACE
    return fourth


# The plan, a pure function

states = some.builds(
    PackState,
    id=some.binary(min_size=16, max_size=16),
    kind=some.sampled_from([0, 1]),
    size=some.integers(100, 20 << 20),
    modified=some.floats(0, 10 * GRACE),
    plain=some.integers(1, 20 << 20),
    needed=some.just(0),
    condemned_at=some.none() | some.floats(0, 10 * GRACE),
).flatmap(
    lambda p: (
        some.integers(0, p.plain).map(lambda n: replace(p, needed=n)) | some.just(p)
    )
)


@given(some.lists(states, max_size=40, unique_by=lambda p: p.id))
@settings(max_examples=200)
def test_the_plan_never_deletes_what_is_needed_or_was_condemned_too_late(
    packs: list[PackState],
) -> None:
    now = 10 * GRACE
    plan = plan_prune(packs, now=now, grace=GRACE)

    assert all(not p.needed for p in (*plan.delete, *plan.condemn, *plan.wait))
    assert all(
        p.condemned_at is not None and now - p.condemned_at >= GRACE
        for p in plan.delete
    )
    touched = [*plan.condemn, *plan.rewrite]
    assert all(now - p.modified >= GRACE and p.condemned_at is None for p in touched)
    assert all(p.needed and p.condemned_at is not None for p in plan.pardon)
    everything = [*plan.delete, *plan.wait, *touched, *plan.pardon]
    assert len({p.id for p in everything}) == len(everything)


@given(some.lists(states, max_size=40, unique_by=lambda p: p.id))
def test_what_stays_wastes_little(packs: list[PackState]) -> None:
    plan = plan_prune(packs, now=1000 * GRACE, grace=GRACE)

    gone = {p.id for p in (*plan.rewrite, *plan.condemn)}
    fresh = [p for p in packs if p.condemned_at is None and p.needed]
    stay = [p for p in fresh if p.id not in gone]
    big = [p for p in stay if p.wasted >= 0.3 * p.size]
    total = sum(p.size for p in fresh)
    assert not big or sum(p.wasted for p in stay) <= 0.05 * total + 1
