"""Writers, forgets, prunes and repairs in any order, and deaths: all checks clean."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lobstertrap.errors import Unavailable
from lobstertrap.repository import archiver
from lobstertrap.repository.check import check
from lobstertrap.repository.commit import commit
from lobstertrap.repository.copy import copy
from lobstertrap.repository.prune import GRACE, prune
from lobstertrap.repository.repair import repair
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.repositories import (
    DEAD,
    Clock,
    bring_back,
    contents,
    fill,
    reopened,
    snap,
)
from tests.fixtures.trees import BrokenStore, Crash, new_repository

AGENTS = ("ada", "bob")


class Upkeep(RuleBasedStateMachine):
    """One repository, two agents, a store's clock, and processes that die."""

    @initialize()
    def start(self) -> None:
        """Make an empty repository and two volumes."""
        self.base = Path(tempfile.mkdtemp(prefix="upkeep-"))
        self.clock = Clock()
        self.store = BrokenStore(MemoryStore(now=self.clock))
        self.there = BrokenStore(MemoryStore("memory://there", now=self.clock))
        new_repository(self.store)
        self.known: dict[str, dict[str, bytes]] = {}
        self.pending: list[tuple[Any, dict[str, bytes]]] = []
        for agent in AGENTS:
            fill(self.base / agent, {"first": 3000})

    def teardown(self) -> None:
        """Remove what was written."""
        if hasattr(self, "base"):
            shutil.rmtree(self.base)

    @rule(
        agent=some.sampled_from(AGENTS),
        names=some.sets(some.sampled_from("abcdefgh"), min_size=1),
        seed=some.integers(0, 3),
        size=some.sampled_from([0, 500, 80_000]),
    )
    def write(self, agent: str, names: set[str], seed: int, size: int) -> None:
        """Change a volume."""
        fill(self.base / agent, dict.fromkeys(sorted(names), size), seed=seed)

    @rule(agent=some.sampled_from(AGENTS))
    def snapshot(self, agent: str) -> None:
        """Take a snapshot from beginning to end."""
        taken = snap(
            reopened(self.store), self.base / agent, agent=agent, now=self.clock
        )
        self.known[taken.id] = contents(self.base / agent)
        self.clock.now += 1

    @rule(agent=some.sampled_from(AGENTS))
    def begin_snapshot(self, agent: str) -> None:
        """Take a snapshot up to its last step."""
        held: list[Any] = []
        real = archiver.commit
        archiver.commit = lambda *a, **_: held.append(a)
        try:
            snap(reopened(self.store), self.base / agent, agent=agent, now=self.clock)
        finally:
            archiver.commit = real
        self.pending.append((held[0], contents(self.base / agent)))
        self.clock.now += 1

    @precondition(lambda self: self.pending)
    @rule(which=some.integers(0, 10))
    def finish_snapshot(self, which: int) -> None:
        """Do the last step of one that was begun, maybe long ago."""
        arguments, files = self.pending.pop(which % len(self.pending))
        try:
            commit(*arguments, since=float("-inf"))
        except Unavailable:  # everything it rested on was pruned: it is taken again
            return
        self.known[arguments[2].id] = files

    @precondition(lambda self: self.known)
    @rule(which=some.integers(0, 10))
    def forget(self, which: int) -> None:
        """Drop any snapshot."""
        chosen = sorted(self.known)[which % len(self.known)]
        repo = reopened(self.store)
        repo.delete_snapshot(repo.find(chosen))
        del self.known[chosen]

    @rule(hours=some.sampled_from([1, 12, 25, 24 * 31]))
    def wait(self, hours: int) -> None:
        """Let time pass."""
        self.clock.now += hours * 3600

    @rule(
        dies_at=some.none() | some.integers(8, 60),
        grace=some.sampled_from([1, 24]),
        hours=some.sampled_from([0, 2, 25]),
    )
    def prune(self, dies_at: int | None, grace: int, hours: int) -> None:
        """Prune some time later, or die at a store operation."""
        self.clock.now += hours * 3600
        self._until_death(
            self.store,
            dies_at,
            lambda: prune(reopened(self.store), grace=grace * GRACE / 24, holder=DEAD),
        )

    @rule(dies_at=some.none() | some.integers(8, 60))
    def repair(self, dies_at: int | None) -> None:
        """Repair what is whole, or die at a store operation."""
        self._until_death(
            self.store,
            dies_at,
            lambda: repair(reopened(self.store), holder=DEAD),
        )

    @rule(dies_at=some.none() | some.integers(1, 20))
    def copy(self, dies_at: int | None) -> None:
        """Copy into another store, or die at a store operation."""
        repo = reopened(self.store)
        self._until_death(self.there, dies_at, lambda: copy(repo, self.there))

    @rule()
    def prune_the_copy(self) -> None:
        """Prune there."""
        if any(self.there.list("repository/config")):
            prune(reopened(self.there), holder=DEAD)

    def _until_death(self, store: BrokenStore, dies_at: int | None, work: Any) -> None:
        def die(_method: str, _key: str, number: int) -> None:
            if dies_at is not None and number >= dies_at:
                raise Crash

        store.calls, store.hook = 0, die
        try:
            work()
        except Crash:
            pass
        finally:
            store.hook = lambda _method, _key, _number: None

    @invariant()
    def all_is_well(self) -> None:
        """Read everything: what was taken and not forgotten is whole."""
        if not hasattr(self, "store"):
            return
        report = check(reopened(self.store), sample=100)
        assert report.ok, report
        assert {verdict.id for verdict in report.snapshots} == set(self.known)
        if any(self.there.list("repository/config")):
            assert check(reopened(self.there), sample=100).ok

    @precondition(lambda self: self.known)
    @rule(which=some.integers(0, 10))
    def restore(self, which: int) -> None:
        """Restore any snapshot."""
        chosen = sorted(self.known)[which % len(self.known)]
        out = self.base / "out"
        repo = reopened(self.store)
        bring_back(repo, repo.find(chosen), out)
        assert contents(out) == self.known[chosen]
        shutil.rmtree(out)


@pytest.mark.slow
def test_no_order_of_events_loses_anything() -> None:
    run_state_machine_as_test(
        Upkeep,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
