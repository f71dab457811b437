"""The parent: the last snapshot from the same place, which shows what is unchanged."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lobstertrap.errors import IntegrityError, NotFound
from lobstertrap.repository.entry import PATH
from lobstertrap.repository.index import Index
from lobstertrap.repository.landing import load_landing
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.snapshot import Owners, Snapshot
from lobstertrap.repository.status import Mark
from lobstertrap.repository.tree import Group, Known, read_groups

_LOOK_BACK = 16
"""How many of the agent's snapshots are looked at for one from the same place."""


class Parent:
    """A cursor over the parent's entries, which moves along with the walk."""

    def __init__(self, groups: Iterator[Group]) -> None:
        self._groups = groups
        self._group: Group | None = None
        self._place = 0
        self._next_group()

    def __bool__(self) -> bool:
        """Say whether entries are left."""
        return self._group is not None

    def match(self, path: bytes) -> Known | None:
        """Return the parent's entry called `path`; paths come in walk order."""
        if self._next_path(path) != path or self._group is None:
            return None
        found = self._group.known(self._place)
        self._advance(1)
        return found

    def lacks(self, paths: Sequence[bytes]) -> bool:
        """Say whether the parent has no entry between the first and the last path."""
        following = self._next_path(paths[0])
        return following is None or _key(following) > _key(paths[-1])

    def _next_path(self, path: bytes) -> bytes | None:
        """Go to the first entry that is not before `path`, and return its path."""
        group = self._group
        if group is None:
            return None
        found: bytes = group.rows[self._place][PATH]
        if found == path:
            return found
        wanted = _key(path)
        while _key(found) < wanted:
            self._advance(1)
            if self._group is None:
                return None
            found = self._group.rows[self._place][PATH]
        return found

    def same(
        self, paths: list[bytes], marks: Sequence[Mark], start: int
    ) -> tuple[Group, int, int] | None:
        """Return the entries that are next here, and next and unchanged in a run.

        They are a group, the first one's place there, and the place after the last;
        None when the run's next name has to be looked at by itself.
        """
        group, first = self._group, self._place
        if group is None or group.marks[first] != marks[start]:
            return None
        count = min(len(group) - first, len(marks) - start)
        count = _equal(group.marks, first, marks, start, count)
        count = _equal(group.paths, first, paths, start, count)
        self._advance(count)
        return (group, first, first + count) if count else None

    def _advance(self, count: int) -> None:
        self._place += count
        if self._group is not None and self._place == len(self._group):
            self._next_group()

    def _next_group(self) -> None:
        self._place = 0
        try:
            self._group = next(self._groups, None)
        except (IntegrityError, NotFound):  # without it all is read: slow, and right
            self._group = None


def _key(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")


def _equal(
    ours: Sequence[Any], first: int, theirs: Sequence[Any], start: int, count: int
) -> int:
    """Return how many of `count` in a row are the same, from two places on."""
    if ours[first : first + count] == theirs[start : start + count]:
        return count
    for number in range(count):
        if ours[first + number] != theirs[start + number]:
            return number
    return count


def place_of(repo: Repository, root: int) -> bytes:
    """Return the mark of where a volume is: inodes and ctimes mean something there."""
    status, system = os.fstat(root), os.fstatvfs(root)
    if system.f_fsid:  # stays the same across reboots and machines
        return repo.keys.place("fsid", system.f_fsid, status.st_ino)
    return repo.keys.place("device", socket.gethostname(), status.st_dev, status.st_ino)


def find_parent(
    repo: Repository,
    index: Index,
    agent: str,
    places: Mapping[str, bytes],
    owners: Owners,
) -> Parent:
    """Return a cursor over the parent; an empty one when there is none."""
    landing = load_landing(repo, agent, places, owners)
    for name in reversed(repo.snapshot_names(agent)[-_LOOK_BACK:]):
        if landing and landing.exact and name.id == landing.snapshot.id:
            return Parent(landing.groups(repo, index))
        try:
            snapshot = repo.read_snapshot(name)
        except (NotFound, IntegrityError):
            continue
        if _fits(snapshot, places, owners):
            reader = repo.blob_reader(index)
            return Parent(read_groups(reader, snapshot.branches, stats=True))
    return Parent(iter(()))


def _fits(snapshot: Snapshot, places: Mapping[str, bytes], owners: Owners) -> bool:
    shared = snapshot.places.keys() & places.keys()
    same = [snapshot.places[volume] == places[volume] for volume in shared]
    return snapshot.owners == owners and bool(same) and all(same)
