"""A repository: the encrypted snapshots of any number of agents in one object store."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lobstertrap.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    InvalidInput,
    LobsterTrapError,
    NotFound,
)
from lobstertrap.redaction import SecretValue
from lobstertrap.repository.blobs import BlobReader
from lobstertrap.repository.cache import ObjectCache
from lobstertrap.repository.crypto import Keys, open_object, seal_object
from lobstertrap.repository.derivation import Argon2Cost, Cost, Derivation
from lobstertrap.repository.format import (
    CONDEMNED_PREFIX,
    CONFIG_KEY,
    ID_SIZE,
    INDEX_PREFIX,
    KIND_CONDEMNED,
    KIND_INDEX,
    KIND_SNAPSHOT,
    MAX_CONDEMNED,
    MAX_INDEX,
    MAX_SNAPSHOT,
    PAGES,
    SNAPSHOT_PREFIX,
    Header,
    pack_key,
)
from lobstertrap.repository.index import Index, IndexTable
from lobstertrap.repository.slots import Config, make_slot, parse_config
from lobstertrap.repository.snapshot import (
    ROLLED_BACK,
    Snapshot,
    SnapshotName,
    decode_snapshot,
)
from lobstertrap.repository.writer import BlobWriter
from lobstertrap.stores.base import ObjectInfo, ObjectStore

_MIN_PREFIX = 4
_MIN_ID = 32
_READERS = 8
_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One object below `repository/condemned/`."""

    key: str
    packs: frozenset[bytes]
    modified: float
    """When it was put, by the store's clock."""


class Repository:
    """The repository in `store`, opened with its keys; safe for several threads."""

    def __init__(self, store: ObjectStore, keys: Keys) -> None:
        self.store = store
        self.keys = keys
        self.cache: ObjectCache | None = None

    @classmethod
    def create(
        cls,
        store: ObjectStore,
        passphrase: SecretValue,
        *,
        cost: Cost | None = None,
        begun: Derivation | None = None,
    ) -> Repository:
        """Make a repository, or open the one that is there, as `open` does.

        Of two processes that create at once one wins, and the other opens the winner's.
        Raises `AccessDenied` when it exists and `passphrase` is not its key.
        """
        try:
            return cls.open(store, passphrase, begun=begun)
        except NotFound:
            keys = Keys.from_master(secrets.token_bytes(32))
        slot = make_slot(
            keys.master, passphrase, cost or Argon2Cost(), label="passphrase"
        )
        config = Config(id=keys.repository_id, slots=(slot,))
        try:
            store.put(CONFIG_KEY, config.encode(), if_absent=True)
        except Conflict:
            return cls.open(store, passphrase)
        return cls(store, keys)

    @classmethod
    def open(
        cls,
        store: ObjectStore,
        passphrase: SecretValue,
        *,
        cache_dir: Path | None = None,
        begun: Derivation | None = None,
    ) -> Repository:
        """Open the repository; `NotFound` when there is none, `AccessDenied`.

        With what `cache_dir` remembers of it, the key is derived while it is reached;
        or that was `begun` already, before this module was there.
        """
        derivation = begun or Derivation(passphrase, cache_dir, url=store.url)
        try:
            data = store.get(CONFIG_KEY).data
        except NotFound:
            raise NotFound(
                f"no repository at {store.url}",
                hint="the first snapshot creates one; or check the store's url",
            ) from None
        return cls(store, Keys.from_master(parse_config(data).unlock(derivation)))

    @classmethod
    def unlocked(cls, store: ObjectStore, master: bytes) -> Repository:
        """Open the repository with its master key: no key derivation, which is slow.

        Raises `AccessDenied` when another repository is there now.
        """
        keys = Keys.from_master(master)
        if parse_config(store.get(CONFIG_KEY).data).id != keys.repository_id:
            raise AccessDenied(
                f"another repository is at {store.url} now", hint="run it again"
            )
        return cls(store, keys)

    @property
    def id(self) -> str:
        """32 hex digits."""
        return self.keys.repository_id.hex()

    def use_cache(self, directory: Path | None) -> None:
        """Keep immutable metadata objects below `directory`; None for no cache."""
        known = self.keys.repository_id
        self.cache = ObjectCache(directory, known) if directory else None

    # Snapshots

    def snapshots(
        self,
        agent: str | None = None,
        *,
        on_unreadable: Callable[[SnapshotName, LobsterTrapError], None] = (
            lambda _name, _error: None
        ),
    ) -> list[Snapshot]:
        """Return all snapshots (of `agent`), oldest first.

        `on_unreadable` is told of each whose manifest is damaged or of a newer version;
        the others are returned all the same.
        """
        names = self.snapshot_names(agent)
        found = []
        for name, read in zip(names, _map(self._try_snapshot, names), strict=True):
            if isinstance(read, Snapshot):
                found.append(read)
            elif not isinstance(read, NotFound):  # that one was deleted since
                on_unreadable(name, read)
        return sorted(found, key=lambda snapshot: (snapshot.created_at, snapshot.id))

    def _try_snapshot(self, name: SnapshotName) -> Snapshot | LobsterTrapError:
        try:
            return self.read_snapshot(name)
        except (IntegrityError, InvalidInput, NotFound) as error:
            return error

    def find(self, prefix: str, agent: str | None = None) -> Snapshot:
        """Return the snapshot `latest`, or the one whose id starts with `prefix`.

        The latest is never one of a destination that was rolled back, unless there are
        no others. Raises `NotFound`, and `InvalidInput` for a prefix that is too short
        or ambiguous.
        """
        names = self.snapshot_names(agent)
        whose = f" of agent '{agent}'" if agent else ""
        if prefix == "latest":
            if not names:
                raise NotFound(f"no snapshot{whose}", hint="take one first")
            return self._latest(names)
        if len(prefix) < _MIN_PREFIX:
            raise InvalidInput(
                f"snapshot id '{prefix}' is too short",
                hint=f"give at least {_MIN_PREFIX} digits, or 'latest'",
            )
        found = [name for name in names if name.id.startswith(prefix.lower())]
        if not found:
            raise NotFound(
                f"no snapshot '{prefix}'{whose}", hint="list the snapshots to see ids"
            )
        if len(found) > 1:
            shown = ", ".join(sorted(name.id[:12] for name in found))
            raise InvalidInput(
                f"snapshot id '{prefix}' is ambiguous: {shown}",
                hint="give more digits",
            )
        return self.read_snapshot(found[0])

    def _latest(self, names: Sequence[SnapshotName]) -> Snapshot:
        found = map(self.read_snapshot, reversed(names))
        own = (one for one in found if one.tags.get("purpose") != ROLLED_BACK)
        return next(own, None) or self.read_snapshot(names[-1])

    def snapshot_names(self, agent: str | None = None) -> list[SnapshotName]:
        """Return what names say, oldest first, without reading a manifest."""
        tag = None if agent is None else self.keys.agent_tag(agent)
        names = (SnapshotName.parse(i.key) for i in self.store.list(SNAPSHOT_PREFIX))
        return sorted(
            (name for name in names if name and tag in (None, name.tag)),
            key=lambda name: (name.milliseconds, name.id),
        )

    def read_snapshot(self, name: SnapshotName) -> Snapshot:
        """Read and decode one manifest."""
        object_id = bytes.fromhex(name.id)
        plain = self._read_object(name.key, KIND_SNAPSHOT, object_id, MAX_SNAPSHOT)
        snapshot = decode_snapshot(plain, name.key)
        if snapshot.id != name.id or self.keys.agent_tag(snapshot.agent) != name.tag:
            raise IntegrityError(f"snapshot object '{name.key}' is not what it says")
        return snapshot

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Make a snapshot visible; everything it needs is already stored."""
        name = self.name_of(snapshot)
        header = Header(kind=KIND_SNAPSHOT, id=bytes.fromhex(snapshot.id))
        pieces = seal_object(self.keys, header, snapshot.encode())
        self.store.put(name.key, pieces, if_absent=True)
        if self.cache:
            self.cache.put(name.key, b"".join(pieces))

    def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Take a snapshot away; its blobs stay until a prune."""
        self.store.delete(self.name_of(snapshot).key)
        if self.cache:
            self.cache.drop(self.name_of(snapshot).key)

    def name_of(self, snapshot: Snapshot) -> SnapshotName:
        """Return the name under which a snapshot is stored."""
        return SnapshotName(
            milliseconds=int(snapshot.created_at * 1000),
            tag=self.keys.agent_tag(snapshot.agent),
            id=snapshot.id,
        )

    # Blobs

    def load_index(self) -> Index:
        """Read all index objects, and which packs are condemned."""
        return Index(self.load_index_tables().values(), self._to_avoid())

    def load_index_tables(self) -> dict[str, IndexTable]:
        """Return the index objects that are in force, by key.

        One that is listed but gone was replaced meanwhile: the list is read again.
        """
        for attempt in range(3):
            listed = [*self.store.list(INDEX_PREFIX)]
            try:
                tables = _map(self.read_index, listed)
            except NotFound:
                if attempt == 2:  # noqa: PLR2004 - the last one
                    raise
                continue
            found = dict(zip((info.key for info in listed), tables, strict=True))
            old = {i for table in tables for i in table.replaces}
            return {
                key: table
                for key, table in found.items()
                if bytes.fromhex(key.removeprefix(INDEX_PREFIX)) not in old
            }
        raise AssertionError

    def marks(self) -> list[Mark]:
        """Return what prune has condemned: packs on which nothing new may rest."""
        found = _map(self.read_mark, self.store.list(CONDEMNED_PREFIX))
        return [mark for mark in found if mark is not None]

    def put_mark(self, packs: Iterable[bytes]) -> None:
        """Condemn packs; from now on the store's clock counts their grace."""
        mark_id = secrets.token_bytes(ID_SIZE)
        header = Header(kind=KIND_CONDEMNED, id=mark_id)
        pieces = seal_object(self.keys, header, b"".join(sorted(packs)))
        self.store.put(CONDEMNED_PREFIX + mark_id.hex(), pieces)

    def _to_avoid(self) -> frozenset[bytes]:
        try:
            return frozenset().union(*(mark.packs for mark in self.marks()))
        except IntegrityError:  # it only says what to prefer; a writer looks again
            return frozenset()

    def read_mark(self, info: ObjectInfo) -> Mark | None:
        """Read one mark; None when it was taken back since it was listed."""
        limit, key = MAX_CONDEMNED, info.key
        try:
            mark_id = bytes.fromhex(key.removeprefix(CONDEMNED_PREFIX))
            plain = bytes(self._read_object(key, KIND_CONDEMNED, mark_id, limit))
        except NotFound:  # taken back meanwhile
            return None
        except ValueError:
            raise IntegrityError(f"'{key}' is not the name of a mark") from None
        if len(plain) % ID_SIZE:
            raise IntegrityError(f"object '{key}' is damaged")
        packs = (plain[i : i + ID_SIZE] for i in range(0, len(plain), ID_SIZE))
        return Mark(key=key, packs=frozenset(packs), modified=info.modified)

    def trim_cache(self, index: Index) -> None:
        """Drop from the local cache what is no longer in the repository."""
        if self.cache is None or not self.cache.crowded():
            return
        keys = {info.key for info in self.store.list(INDEX_PREFIX)}
        keys |= {name.key for name in self.snapshot_names()}
        pages = (pack.id for pack in index.packs.values() if pack.kind == PAGES)
        self.cache.keep_only(keys | {pack_key(pack_id) for pack_id in pages})

    def blob_reader(self, index: Index) -> BlobReader:
        """Return a reader of blobs for one thread."""
        return BlobReader(self.store, self.keys, index, self.cache)

    def blob_writer(self, index: Index) -> BlobWriter:
        """Return a writer of blobs for one thread."""
        return BlobWriter(self.store, self.keys, index, cache=self.cache)

    def read_index(self, info: ObjectInfo) -> IndexTable:
        """Read and decode one index object."""
        try:
            index_id = bytes.fromhex(info.key.removeprefix(INDEX_PREFIX))
        except ValueError:
            raise IntegrityError(f"'{info.key}' is not the name of an index") from None
        if info.size > MAX_INDEX:
            raise IntegrityError(f"index object '{info.key}' is too large")
        plain = self._read_object(info.key, KIND_INDEX, index_id, MAX_INDEX)
        try:
            return IndexTable(plain)
        except IntegrityError as error:
            raise IntegrityError(f"'{info.key}': {error.message}") from None

    def _read_object(
        self, key: str, kind: bytes, object_id: bytes, limit: int
    ) -> bytearray:
        cached = self.cache.get(key) if self.cache else None
        if cached is not None and self.cache:
            try:
                return open_object(
                    self.keys, cached, kind=kind, object_id=object_id, key=key
                )
            except (IntegrityError, InvalidInput):
                self.cache.drop(key)
        data = self.store.get(key).data
        if len(data) > limit:
            raise IntegrityError(f"object '{key}' is too large")
        plain = open_object(self.keys, data, kind=kind, object_id=object_id, key=key)
        if self.cache:
            self.cache.put(key, data)
        return plain


def _map(function: Callable[[_T], _U], items: Iterable[_T]) -> list[_U]:
    """Apply `function` to all, several at once: each waits for the store."""
    todo = list(items)
    if len(todo) <= 1:
        return [function(item) for item in todo]
    with ThreadPoolExecutor(min(_READERS, len(todo)), "read") as pool:
        return [*pool.map(function, todo)]
