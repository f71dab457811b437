"""The parent: the last snapshot from the same place, which shows what is unchanged."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping

from lobstertrap.errors import IntegrityError, NotFound
from lobstertrap.repository.index import Index
from lobstertrap.repository.landing import load_landing
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.snapshot import Owners, Snapshot
from lobstertrap.repository.tree import Known, read_entries

_LOOK_BACK = 16
"""How many of the agent's snapshots are looked at for one from the same place."""


class Parent:
    """A cursor over the parent's entries, which moves along with the walk."""

    def __init__(self, entries: Iterator[Known]) -> None:
        self._entries = entries
        self._next: Known | None = None
        self._path = b""
        self._advance()

    def match(self, path: bytes) -> Known | None:
        """Return the parent's entry called `path`; paths come in walk order."""
        if self._path == path:
            found = self._next
            self._advance()
            return found
        if self._next is None:
            return None
        wanted = path.replace(b"/", b"\0")
        while self._next is not None and self._path.replace(b"/", b"\0") < wanted:
            self._advance()
        if self._next is not None and self._path == path:
            found = self._next
            self._advance()
            return found
        return None

    def _advance(self) -> None:
        try:
            self._next = next(self._entries, None)
        except (IntegrityError, NotFound):  # without it all is read: slow, and right
            self._next = None
        self._path = self._next.row[0] if self._next else b""


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
            return Parent(landing.entries(repo, index))
        try:
            snapshot = repo.read_snapshot(name)
        except (NotFound, IntegrityError):
            continue
        if _fits(snapshot, places, owners):
            reader = repo.blob_reader(index)
            return Parent(read_entries(reader, snapshot.branches, stats=True))
    return Parent(iter(()))


def _fits(snapshot: Snapshot, places: Mapping[str, bytes], owners: Owners) -> bool:
    shared = snapshot.places.keys() & places.keys()
    same = [snapshot.places[volume] == places[volume] for volume in shared]
    return snapshot.owners == owners and bool(same) and all(same)
