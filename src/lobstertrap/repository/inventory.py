"""The inventory: what of a repository is really there, damaged or lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from lobstertrap.errors import IntegrityError, NotFound
from lobstertrap.repository.format import (
    CONDEMNED_PREFIX,
    INDEX_PREFIX,
    PACK_PREFIX,
    SNAPSHOT_PREFIX,
    pack_key,
)
from lobstertrap.repository.index import Index, IndexTable
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.snapshot import Snapshot, SnapshotName
from lobstertrap.stores.base import ObjectInfo

_ATTEMPTS = 2
_T = TypeVar("_T")


@dataclass(slots=True, kw_only=True)
class Inventory:
    """What was found; `unreadable` objects are named with what is wrong with them."""

    snapshots: list[Snapshot] = field(default_factory=list)
    tables: dict[str, IndexTable] = field(default_factory=dict)
    """Index objects in force."""
    index_keys: list[str] = field(default_factory=list)
    """All index objects: also those that were replaced or cannot be read."""
    strays: list[str] = field(default_factory=list)
    """Keys among the snapshots that name none."""
    packs: dict[bytes, ObjectInfo] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    damaged: set[tuple[bytes, int]] = field(default_factory=set)
    """Pack and number of segments that were read and cannot be opened."""
    index: Index = field(default_factory=Index)

    def has(self, blob_id: bytes) -> bool:
        """Say whether a blob is in a pack that is there, in no damaged segment."""
        return any(
            self.is_whole(location.segment.pack.id, location.segment.pack.size)
            and (location.segment.pack.id, location.segment.number) not in self.damaged
            for location in self.index.locations(blob_id)
        )

    def is_whole(self, pack_id: bytes, size: int) -> bool:
        """Say whether a pack is there with all of its bytes."""
        info = self.packs.get(pack_id)
        return info is not None and info.size == size

    def lost_packs(self) -> Iterator[str]:
        """Yield what is wrong with each pack that an index names and nobody has."""
        for pack_id, pack in sorted(self.index.packs.items()):
            info = self.packs.get(pack_id)
            if info is None:
                yield f"pack {pack_id.hex()} is missing"
            elif info.size != pack.size:
                yield f"pack {pack_id.hex()} has {info.size} bytes, not {pack.size}"

    def prefer_whole(self) -> None:
        """Let readers of `index` use damaged packs only when there is no other copy."""
        bad = {
            p for p, pack in self.index.packs.items() if not self.is_whole(p, pack.size)
        }
        self.index.avoid = frozenset(bad | {pack_id for pack_id, _ in self.damaged})


def take_inventory(repo: Repository) -> Inventory:
    """List and read everything but packs; what is unreadable is tried twice."""
    found = Inventory()
    # In this order: a snapshot that is listed has its index, an index its packs.
    for info in repo.store.list(CONDEMNED_PREFIX):
        _try(found, info.key, partial(repo.read_mark, info))
    for info in repo.store.list(SNAPSHOT_PREFIX):
        name = SnapshotName.parse(info.key)
        if name is None:
            found.strays.append(info.key)
            continue
        snapshot = _try(found, info.key, partial(repo.read_snapshot, name))
        if snapshot is not None:
            found.snapshots.append(snapshot)
    _read_indexes(repo, found)
    found.packs = pack_objects(repo)
    found.snapshots.sort(key=lambda s: (s.created_at, s.id))
    found.index = Index(found.tables.values())
    found.prefer_whole()
    return found


def pack_objects(repo: Repository) -> dict[bytes, ObjectInfo]:
    """Return every pack that is in the store, by its id."""
    found: dict[bytes, ObjectInfo] = {}
    for info in repo.store.list(PACK_PREFIX):
        try:
            pack_id = bytes.fromhex(info.key.rpartition("/")[2])
        except ValueError:
            continue
        if info.key == pack_key(pack_id):
            found[pack_id] = info
    return found


def _read_indexes(repo: Repository, found: Inventory) -> None:
    tables: dict[str, IndexTable] = {}
    for info in repo.store.list(INDEX_PREFIX):
        found.index_keys.append(info.key)
        table = _try(found, info.key, partial(repo.read_index, info))
        if table is not None:
            tables[info.key] = table
    replaced = {
        INDEX_PREFIX + index_id.hex()
        for table in tables.values()
        for index_id in table.replaces
    }
    found.tables = {k: table for k, table in tables.items() if k not in replaced}
    for key in replaced & found.unreadable.keys():
        del found.unreadable[key]


def _try(found: Inventory, key: str, read: Callable[[], _T]) -> _T | None:
    for attempt in range(_ATTEMPTS):
        try:
            return read()
        except NotFound:  # deleted since it was listed
            return None
        except IntegrityError as error:
            if attempt == _ATTEMPTS - 1:
                found.unreadable[key] = error.message
    return None
