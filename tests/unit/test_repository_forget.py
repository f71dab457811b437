"""Snapshots are dropped by policy, never under somebody's feet."""

from dataclasses import replace

import pytest

from lobstertrap.errors import LeaseLost
from lobstertrap.lease import Journal, Lease, hold, read_record
from lobstertrap.repository.forget import forget, plan_forget
from lobstertrap.repository.retention import RetentionPolicy
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.repositories import DEAD, made_up, reopened, repository
from tests.fixtures.trees import BrokenStore, Crash, new_repository

LAST = RetentionPolicy(last=1)


def filled(repo, count: int = 4, agent: str = "ada"):
    snapshots = [made_up(float(n), agent=agent) for n in range(1, count + 1)]
    for snapshot in snapshots:
        repo.put_snapshot(snapshot)
    return snapshots


def times(repo, agent: str = "ada") -> list[float]:
    return [snapshot.created_at for snapshot in repo.snapshots(agent)]


def test_what_the_policy_does_not_keep_is_gone() -> None:
    _, repo = repository()
    filled(repo)
    filled(repo, agent="bob")

    decisions = forget(repo, "ada", RetentionPolicy(last=2), now=9.0)

    assert [d.kept for d in decisions] == [False, False, True, True]
    assert times(repo) == [3.0, 4.0]
    assert times(repo, "bob") == [1.0, 2.0, 3.0, 4.0]


def test_a_plan_changes_nothing() -> None:
    store, repo = repository()
    filled(repo)
    before = [info.key for info in store.list("")]

    plan = plan_forget(repo, "ada", LAST, now=9.0)

    assert sum(not d.kept for d in plan) == 3
    assert [info.key for info in store.list("")] == before


@pytest.mark.parametrize("where", ["snapshot", "restoring", "migration"])
def test_a_snapshot_that_the_record_names_stays(where: str) -> None:
    store, repo = repository()
    first = filled(repo)[0].id
    journal = Journal(
        id="m",
        source="a",
        destination="b",
        step="cutover",
        was_running=True,
        started=1.0,
        snapshot=first,
    )
    with hold(store, "ada", "test") as lease:
        value = journal if where == "migration" else first
        lease.update(lambda record: replace(record, **{where: value}))

    forget(repo, "ada", LAST, now=9.0)

    assert times(repo) == [1.0, 4.0]


def test_an_operation_that_lost_the_agent_forgets_nothing() -> None:
    store, repo = repository()
    filled(repo)
    with hold(store, "ada", "snapshot"):
        lost = Lease(store, "ada", "taken over by another")

        with pytest.raises(LeaseLost):
            forget(repo, "ada", LAST, now=9.0, lease=lost)

    assert len(times(repo)) == 4


def test_an_operation_forgets_under_its_own_lease() -> None:
    store, repo = repository()
    filled(repo)

    with hold(store, "ada", "snapshot") as lease:
        forget(repo, "ada", LAST, now=9.0, lease=lease)

    assert times(repo) == [4.0]


def test_an_agent_without_snapshots_or_a_record_is_no_error() -> None:
    store, repo = repository()

    assert forget(repo, "nobody", LAST, now=9.0) == []
    assert read_record(store, "nobody") is None


def test_a_crash_at_any_store_operation_is_finished_by_the_next() -> None:
    for crash_at in range(1, 100):
        store = BrokenStore(MemoryStore())
        repo = new_repository(store)
        filled(repo)
        store.calls = 0

        def die(_method: str, _key: str, number: int, at: int = crash_at) -> None:
            if number >= at:
                raise Crash

        store.hook = die
        try:
            forget(repo, "ada", LAST, now=9.0, holder=DEAD)
        except Crash:
            store.hook = lambda _method, _key, _number: None
        else:
            break
        assert times(reopened(store))[-1] == 4.0
        forget(reopened(store), "ada", LAST, now=9.0, holder=DEAD)
        assert times(reopened(store)) == [4.0]
    assert crash_at > 10
