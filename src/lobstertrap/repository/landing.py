"""A landing: how the files of a verified restore looked on the disk where they are.

It lets the next restore, and the next snapshot, from the same place know files as
untouched without reading them. It is kept in the local cache only, sealed like every
object; lost or damaged, everything is read.
"""

from __future__ import annotations

import secrets
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgpack

from lobstertrap.errors import LobsterTrapError
from lobstertrap.repository.crypto import open_object, seal_object
from lobstertrap.repository.format import HEADER_SIZE, ID_SIZE, Header
from lobstertrap.repository.index import Index
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.snapshot import Owners, Snapshot
from lobstertrap.repository.tree import NO_STAT, Known, read_entries

_KIND = b"L"


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """A snapshot that was restored, and (ctime, inode) of every entry of it."""

    snapshot: Snapshot
    stats: array[int]

    def entries(self, repo: Repository, index: Index) -> Iterator[Known]:
        """Yield the snapshot's entries with the stats of this place."""
        reader = repo.blob_reader(index)
        stats = iter(self.stats)
        pairs = zip(stats, stats, strict=True)
        for known in read_entries(reader, self.snapshot.branches):
            yield known._replace(stat=next(pairs, NO_STAT))


def save_landing(
    repo: Repository,
    snapshot: Snapshot,
    places: Mapping[str, bytes],
    owners: Owners,
    stats: array[int],
) -> None:
    """Remember a restore that was just verified."""
    if repo.cache is None:
        return
    if sys.byteorder == "big":
        stats.byteswap()
    body = msgpack.packb(
        {
            "snapshot": snapshot.id,
            "owners": [owners.local, owners.canonical],
            "stats": stats.tobytes(),
        }
    )
    header = Header(kind=_KIND, id=secrets.token_bytes(ID_SIZE))
    sealed = seal_object(repo.keys, header, body)
    repo.cache.put(_name(repo, places), b"".join(sealed))


def load_landing(
    repo: Repository, agent: str, places: Mapping[str, bytes], owners: Owners
) -> Landing | None:
    """Return what was remembered of this place, if it is of use."""
    name = _name(repo, places)
    data = repo.cache.get(name) if repo.cache else None
    if data is None:
        return None
    try:
        plain = open_object(
            repo.keys, data, kind=_KIND, object_id=data[8:HEADER_SIZE], key=name
        )
        body = msgpack.unpackb(plain, use_list=False)
        if body["owners"] != (owners.local, owners.canonical):
            return None
        snapshot = repo.find(body["snapshot"], agent)
        stats = array("q")
        stats.frombytes(body["stats"])
    except (LobsterTrapError, ValueError, TypeError, KeyError):
        return None
    if sys.byteorder == "big":
        stats.byteswap()
    return Landing(snapshot=snapshot, stats=stats)


def _name(repo: Repository, places: Mapping[str, bytes]) -> str:
    marks = [part for volume in sorted(places) for part in (volume, places[volume])]
    return f"landing.{repo.keys.place('landing', *marks).hex()}"
