"""A landing: how the files of a verified restore looked on the disk where they are.

It lets the next restore, and the next snapshot, from the same place know files as
untouched without reading them. It is kept in the local cache, or in the repository
when there is no cache, as beside a volume in a cluster; sealed like every object. Lost,
damaged or old, it is only of less use: a file is trusted by its own ctime.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, repeat

import msgpack
import zstandard

from lobstertrap.errors import LobsterTrapError
from lobstertrap.repository.crypto import open_object, seal_object
from lobstertrap.repository.format import (
    HEADER_SIZE,
    ID_SIZE,
    KIND_LANDING,
    LANDING_PREFIX,
    MAX_INDEX,
    Header,
)
from lobstertrap.repository.index import Index
from lobstertrap.repository.pack import expand
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.snapshot import Owners, Snapshot
from lobstertrap.repository.status import NO_STAT
from lobstertrap.repository.tree import Group, read_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """A snapshot that was restored, and (ctime, inode) of every entry of it."""

    snapshot: Snapshot
    stats: array[int]
    exact: bool
    """Nothing was excused: the disk is what the snapshot says, owners and all."""

    def groups(self, repo: Repository, index: Index) -> Iterator[Group]:
        """Yield the snapshot's groups with the stats of this place."""
        reader = repo.blob_reader(index)
        flat = iter(self.stats)
        pairs = chain(zip(flat, flat, strict=True), repeat(NO_STAT))
        for group in read_groups(reader, self.snapshot.branches, stats=False):
            yield group.with_stats([*islice(pairs, len(group))])


def save_landing(
    repo: Repository,
    snapshot: Snapshot,
    places: Mapping[str, bytes],
    owners: Owners,
    stats: array[int],
    *,
    exact: bool,
) -> None:
    """Remember a restore that was just verified."""
    if sys.byteorder == "big":
        stats.byteswap()
    body = msgpack.packb(
        {
            "snapshot": snapshot.id,
            "owners": [owners.local, owners.canonical],
            "stats": stats.tobytes(),
            "exact": exact,
        }
    )
    header = Header(kind=KIND_LANDING, id=secrets.token_bytes(ID_SIZE))
    packed = zstandard.ZstdCompressor(level=3).compress(body)
    plain = len(body).to_bytes(4, "little") + packed
    sealed = seal_object(repo.keys, header, plain)
    key = _key(repo, places)
    if repo.cache is not None:
        repo.cache.put(key, b"".join(sealed))
        return
    # One that cannot be kept costs time later, not this restore.
    with contextlib.suppress(LobsterTrapError):
        repo.store.put(key, sealed)


def load_landing(
    repo: Repository, agent: str, places: Mapping[str, bytes], owners: Owners
) -> Landing | None:
    """Return what was remembered of this place, if it is of use."""
    key = _key(repo, places)
    data = repo.cache.get(key) if repo.cache else _stored(repo, key)
    if data is None:
        return None
    object_id = data[HEADER_SIZE - ID_SIZE : HEADER_SIZE]
    try:
        plain = open_object(
            repo.keys, data, kind=KIND_LANDING, object_id=object_id, key=key
        )
        length = min(int.from_bytes(plain[:4], "little"), MAX_INDEX)
        body = msgpack.unpackb(expand(plain[4:], length), use_list=False)
        if body["owners"] != (owners.local, owners.canonical):
            return None
        snapshot = repo.find(body["snapshot"], agent)
        stats = array("q")
        stats.frombytes(body["stats"])
        exact = bool(body["exact"])
    except (LobsterTrapError, ValueError, TypeError, KeyError, IndexError):
        return None
    if sys.byteorder == "big":
        stats.byteswap()
    return Landing(snapshot=snapshot, stats=stats, exact=exact)


def _stored(repo: Repository, key: str) -> bytes | None:
    try:
        return repo.store.get(key).data
    except LobsterTrapError:
        return None


def _key(repo: Repository, places: Mapping[str, bytes]) -> str:
    marks = [part for volume in sorted(places) for part in (volume, places[volume])]
    return LANDING_PREFIX + repo.keys.place("landing", *marks).hex()
