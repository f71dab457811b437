"""Writers, forgets, prunes and repairs in any order, and deaths: all checks clean."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from lobstertrap.errors import LobsterTrapError, Unavailable
from lobstertrap.repository import archiver
from lobstertrap.repository.check import check
from lobstertrap.repository.commit import commit
from lobstertrap.repository.copy import copy
from lobstertrap.repository.prune import GRACE, MIN_GRACE, prune
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
from tests.fixtures.trees import BrokenStore, Crash, FaultyStore, new_repository

AGENTS = ("ada", "bob")


class World:
    """One repository, two agents, a store's clock, and processes that die."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.clock = Clock()
        self.store = BrokenStore(MemoryStore(now=self.clock))
        self.there = BrokenStore(MemoryStore("memory://there", now=self.clock))
        new_repository(self.store)
        self.known: dict[str, dict[str, bytes]] = {}
        self.pending: list[tuple[Any, dict[str, bytes]]] = []
        for agent in AGENTS:
            fill(self.base / agent, {"first": 3000})

    def write(self, agent: str, names: set[str], seed: int, size: int) -> None:
        """Change a volume."""
        fill(self.base / agent, dict.fromkeys(sorted(names), size), seed=seed)

    def snapshot(self, agent: str) -> None:
        """Take a snapshot from beginning to end."""
        taken = snap(
            reopened(self.store), self.base / agent, agent=agent, now=self.clock
        )
        self.known[taken.id] = contents(self.base / agent)
        self.clock.now += 1

    def begin_snapshot(self, agent: str, *, forget: bool) -> None:
        """Take a snapshot up to its last step; what it rests on may be forgotten."""
        held: list[Any] = []
        real = archiver.commit
        archiver.commit = lambda *a, **_: held.append(a)
        repo = reopened(self.store)
        try:
            snap(repo, self.base / agent, agent=agent, now=self.clock)
        finally:
            archiver.commit = real
        self.pending.append((held[0], contents(self.base / agent)))
        self.clock.now += 1
        for old in repo.snapshots(agent) if forget else ():
            repo.delete_snapshot(old)
            del self.known[old.id]

    def finish_snapshot(self, which: int, *, prune_before_put: bool) -> None:
        """Do the last step of one that was begun, maybe long ago."""
        (repo, index, snapshot), files = self.pending.pop(which % len(self.pending))

        def put() -> None:
            if prune_before_put:  # in the minute between its last look and its put
                self.prune(None, 1, 0)
            repo.put_snapshot(snapshot)

        try:
            commit(repo, index, snapshot, since=float("-inf"), put=put)
        except Unavailable:  # everything it rested on was pruned: it is taken again
            return
        self.known[snapshot.id] = files

    def finish_snapshot_while_pruning(self, at: int) -> None:
        """Do the last step of one at any store operation of a prune."""

        def finish(_method: str, _key: str, number: int) -> None:
            if number >= at and self.pending:
                self.store.hook = lambda _method, _key, _number: None
                self.finish_snapshot(0, prune_before_put=False)

        self.store.calls, self.store.hook = 0, finish
        try:
            prune(reopened(self.store), grace=MIN_GRACE, holder=DEAD)
        finally:
            self.store.hook = lambda _method, _key, _number: None

    def forget(self, which: int) -> None:
        """Drop any snapshot."""
        chosen = sorted(self.known)[which % len(self.known)]
        repo = reopened(self.store)
        repo.delete_snapshot(repo.find(chosen))
        del self.known[chosen]

    def wait(self, hours: int) -> None:
        """Let time pass."""
        self.clock.now += hours * 3600

    def prune(self, dies_at: int | None, grace: int, hours: int) -> None:
        """Prune some time later, or die at a store operation."""
        self.clock.now += hours * 3600
        self._until_death(
            self.store,
            dies_at,
            lambda: prune(reopened(self.store), grace=grace * GRACE / 24, holder=DEAD),
        )

    def repair(self, dies_at: int | None) -> None:
        """Repair what is whole, or die at a store operation."""
        self._until_death(
            self.store,
            dies_at,
            lambda: repair(reopened(self.store), holder=DEAD),
        )

    def copy(self, dies_at: int | None) -> None:
        """Copy into another store, or die at a store operation."""
        repo = reopened(self.store)
        self._until_death(self.there, dies_at, lambda: copy(repo, self.there))

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

    def on_a_bad_store(self, what: str, agent: str, chance: random.Random) -> None:
        """Do something while the store fails, damages and lists late.

        It is done or our error says that it is not; never is anything wrong done.
        """
        bad = FaultyStore(
            self.store,
            chance=chance,
            fresh=lambda info: info.modified > self.clock.now - 300,
            rate=chance.choice([0.003, 0.02, 0.08]),
        )
        out = self.base / "out"
        try:
            repo = reopened(bad)
            if what == "snapshot":
                snap(repo, self.base / agent, agent=agent, now=self.clock)
            elif what == "prune":
                prune(repo, holder=DEAD)
            else:
                found = repo.find("latest")
                bring_back(repo, found, out)
                assert contents(out) == self.known[found.id]
        except LobsterTrapError:
            pass
        for name in reopened(self.store).snapshot_names():
            if name.id not in self.known:  # its manifest is there: so is all of it
                self.known[name.id] = contents(self.base / agent)
        shutil.rmtree(out, ignore_errors=True)
        self.clock.now += 1

    def all_is_well(self) -> None:
        """Read everything: what was taken and not forgotten is whole."""
        report = check(reopened(self.store), sample=100)
        assert report.ok, report
        assert {verdict.id for verdict in report.snapshots} == set(self.known)
        if any(self.there.list("repository/config")):
            assert check(reopened(self.there), sample=100).ok

    def restore(self, which: int) -> None:
        """Restore any snapshot."""
        chosen = sorted(self.known)[which % len(self.known)]
        out = self.base / "out"
        repo = reopened(self.store)
        bring_back(repo, repo.find(chosen), out)
        assert contents(out) == self.known[chosen]
        shutil.rmtree(out)


def walk(world: World, chance: random.Random, steps: int) -> None:
    """Let things happen by chance, and look at everything after each."""
    done: list[object] = []
    try:
        for _ in range(steps):
            event = chance.choices([*EVENTS], [*EVENTS.values()])[0]
            done.append(step(world, chance, event))
            world.all_is_well()
        for which in range(len(world.known)):
            world.restore(which)
    except BaseException:
        print(done)  # noqa: T201 - how it came about
        raise


EVENTS = {
    "write": 6,
    "snapshot": 5,
    "begin": 3,
    "finish": 2,
    "finish while pruning": 2,
    "forget": 4,
    "prune": 6,
    "repair": 1,
    "copy": 1,
    "wait": 1,
    "prune the copy": 1,
    "snapshot on a bad store": 3,
    "prune on a bad store": 2,
    "restore on a bad store": 1,
}


def step(  # noqa: C901 - one branch for each event
    world: World, chance: random.Random, event: str
) -> object:
    """Do one thing with arguments of chance, if it can be done."""
    agent, which = chance.choice(AGENTS), chance.randrange(11)
    dies_at = chance.choice([None, None, chance.randrange(8, 90)])
    if event == "write":
        names = set(chance.sample("abcdefgh", chance.randrange(1, 9)))
        size = chance.choice([0, 500, 80_000])
        world.write(agent, names, chance.randrange(4), size)
    elif event == "snapshot":
        world.snapshot(agent)
    elif event == "begin":
        world.begin_snapshot(agent, forget=chance.random() < 0.4)
    elif event == "finish" and world.pending:
        world.finish_snapshot(which, prune_before_put=chance.random() < 0.5)
    elif event == "finish while pruning" and world.pending:
        world.finish_snapshot_while_pruning(chance.randrange(8, 60))
    elif event == "forget" and world.known:
        world.forget(which)
    elif event == "prune":
        world.prune(dies_at, chance.choice([1, 24]), chance.choice([0, 2, 25, 25]))
    elif event == "repair":
        world.repair(dies_at)
    elif event == "copy":
        world.copy(chance.choice([None, chance.randrange(1, 20)]))
    elif event == "wait":
        world.wait(chance.choice([1, 12, 25, 24 * 31]))
    elif event == "prune the copy":
        world.prune_the_copy()
    elif event.endswith("on a bad store"):
        world.on_a_bad_store(event.split(maxsplit=1)[0], agent, chance)
    return event, agent, which, dies_at


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_no_order_of_events_loses_anything(tmp_path: Path, seed: int) -> None:
    walk(World(tmp_path), random.Random(seed), steps=60)  # noqa: S311 - a test


@pytest.mark.long
def test_no_order_of_many_loses_anything(tmp_path: Path) -> None:
    first = int(os.environ.get("LOBSTERTRAP_SEED", "1000"))
    for seed in range(first, first + 200):
        world = World(tmp_path / f"{seed}")
        walk(world, random.Random(seed), steps=60)  # noqa: S311 - a test
        shutil.rmtree(world.base)
