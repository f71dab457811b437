"""What an agent did between two of its snapshots, counted, and its largest traces."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from lobstertrap.repository.browse import Tree, size_of
from lobstertrap.repository.diff import Change, Kind, diff
from lobstertrap.repository.entry import DIRECTORY, PATH, TYPE
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.snapshot import PRE_COPY, Snapshot

TOP = 10
"""How many paths are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One path that changed; `bytes` is what of it is there now, or was removed."""

    path: str
    kind: Kind
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What changed since the snapshot `since`; directories are not counted."""

    since: str
    added: int
    changed: int
    removed: int
    top: tuple[Trace, ...]
    """The largest, the largest first."""


def changes_since_last(repo: Repository, snapshot: Snapshot) -> Changes | None:
    """Return what changed since the agent's snapshot before; None for its first one.

    A pre-copy is passed over: it was taken a moment before, only to save time.
    """
    before = [
        name
        for name in repo.snapshot_names(snapshot.agent)
        if name.key < repo.name_of(snapshot).key
    ]
    for name in reversed(before):
        old = repo.read_snapshot(name)
        if old.tags.get("purpose") != PRE_COPY:
            index = repo.load_index()
            differences = diff(Tree(repo, old, index), Tree(repo, snapshot, index))
            return count(old.short_id, differences)
    return None


def count(since: str, differences: Iterable[Change]) -> Changes:
    """Count the differences and keep the largest, in memory that does not grow."""
    counts: dict[Kind, int] = {"added": 0, "changed": 0, "removed": 0}
    largest: list[tuple[int, int, Trace]] = []
    for number, change in enumerate(differences):
        row = change.new or change.old
        if row is None or row[TYPE] == DIRECTORY:
            continue
        counts[change.kind] += 1
        size = size_of(row) or 0
        trace = Trace(
            path=row[PATH].decode("utf-8", "backslashreplace"),
            kind=change.kind,
            bytes=size,
        )
        heapq.heappush(largest, (size, -number, trace))
        if len(largest) > TOP:
            heapq.heappop(largest)
    top = tuple(trace for *_, trace in sorted(largest, reverse=True))
    return Changes(since=since, top=top, **counts)
