"""Copy: brings the snapshots of a repository into another store, object by object.

Both are then the same repository (one master key, so any slot of either opens it), and
packs are copied as they are: nothing is encrypted twice. Only what is missing is sent.
The copy is a writer like any other; killed anywhere, it goes on when it is run again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from lobstertrap.errors import Conflict, IntegrityError, InvalidInput, NotFound
from lobstertrap.job import OnProgress, Progress
from lobstertrap.repository.commit import commit
from lobstertrap.repository.format import CONFIG_KEY, ID_SIZE, pack_key
from lobstertrap.repository.index import Index, PackInfo
from lobstertrap.repository.inventory import pack_objects
from lobstertrap.repository.pack import pack_cipher, parse_pack
from lobstertrap.repository.reach import Needed, visit
from lobstertrap.repository.reindex import add_indexes, pack_tables
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.slots import parse_config
from lobstertrap.repository.snapshot import Snapshot, SnapshotName
from lobstertrap.stores.base import ObjectStore

_ATTEMPTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """What a copy brought over."""

    snapshots: int
    """Now there that were not before."""
    present: int
    """Snapshots that were there already."""
    packs: int
    bytes: int
    """Of packs that were sent."""


def copy(
    repo: Repository,
    destination: ObjectStore,
    *,
    agent: str | None = None,
    on_progress: OnProgress = lambda _: None,
) -> CopyResult:
    """Bring every snapshot (of `agent`) to `destination` that is not there.

    The config object is copied when there is none, with its key slots. Raises
    `InvalidInput` when the destination holds another repository and `IntegrityError`
    when something that is needed is damaged here.
    """
    other = _open_same(repo, destination)
    names = repo.snapshot_names(agent)
    there = {name.id for name in other.snapshot_names()}
    missing = [name for name in names if name.id not in there]
    snapshots = [s for s in map(partial(_read, repo), missing) if s is not None]
    index, known = repo.load_index(), other.load_index()
    wanted = _wanted_packs(repo, index, known, [s for _, s in snapshots])
    sent = _send(repo, other, wanted, on_progress)
    ids = {pack.id for pack in wanted} - known.packs.keys()
    tables = (
        pack for table in index.tables for pack in pack_tables(table, ids.__contains__)
    )
    for table in add_indexes(other, tables):
        known.add(table)
    for name, snapshot in snapshots:
        commit(other, known, snapshot, put=partial(_put_raw, repo, other, name))
    return CopyResult(
        snapshots=len(snapshots),
        present=len(names) - len(missing),
        packs=len(sent),
        bytes=sum(pack.size for pack in sent),
    )


def _open_same(repo: Repository, destination: ObjectStore) -> Repository:
    if destination.url == repo.store.url:
        raise InvalidInput(
            f"the copy would go where the repository is: {repo.store.url}"
        )
    try:
        data = destination.get(CONFIG_KEY).data
    except NotFound:
        data = repo.store.get(CONFIG_KEY).data
        try:
            destination.put(CONFIG_KEY, data, if_absent=True)
        except Conflict:
            data = destination.get(CONFIG_KEY).data
    if parse_config(data).id != repo.keys.repository_id:
        raise InvalidInput(
            f"{destination.url} holds another repository",
            hint="copy into an empty place, or into an earlier copy of this one",
        )
    return Repository(destination, repo.keys)


def _read(repo: Repository, name: SnapshotName) -> tuple[SnapshotName, Snapshot] | None:
    try:
        return name, repo.read_snapshot(name)
    except NotFound:  # forgotten meanwhile
        return None


def _wanted_packs(
    repo: Repository, index: Index, known: Index, snapshots: Collection[Snapshot]
) -> list[PackInfo]:
    """Return the packs with what the snapshots need and the destination lacks."""
    present = known.packs.keys()

    def rank(pack: PackInfo) -> float:
        if pack.id in present:
            return 0.0
        return 2.0 if pack.id in index.avoid else 1.0

    needed = Needed(index, rank)
    reader = repo.blob_reader(index)
    for snapshot in snapshots:
        visit(reader, snapshot.branches, needed.add)
    wanted: set[PackInfo] = set()
    for table, rows in needed.tables():
        segment_of = table.columns[0]
        for row, is_needed in enumerate(rows):
            blob_id = table.ids[row * ID_SIZE : (row + 1) * ID_SIZE]
            if is_needed and blob_id not in known:
                wanted.add(table.segments[segment_of[row]].pack)
    return sorted(wanted, key=lambda pack: pack.id)


def _send(
    repo: Repository,
    other: Repository,
    wanted: Collection[PackInfo],
    on_progress: OnProgress,
) -> list[PackInfo]:
    there = pack_objects(other)
    todo = [p for p in wanted if p.id not in there or there[p.id].size != p.size]
    total, done = sum(pack.size for pack in todo), 0
    for pack in todo:
        data = _read_whole(repo, pack)
        other.store.put(pack_key(pack.id), data)
        done += pack.size
        on_progress(Progress(phase="copy", done_bytes=done, total_bytes=total))
    return todo


def _read_whole(repo: Repository, pack: PackInfo) -> bytes:
    """Return a pack of which every part is authentic."""
    key = pack_key(pack.id)
    for attempt in range(_ATTEMPTS):
        data = repo.store.get_range(key, 0, pack.size)
        try:
            table = parse_pack(repo.keys, data, pack_id=pack.id, key=key)
            cipher, view = pack_cipher(repo.keys, pack.id), memoryview(data)
            for number, start in enumerate(table.segment_offsets()):
                cipher.open(number, view[start : start + table.stored[number]])
        except IntegrityError as error:
            if attempt == _ATTEMPTS - 1:
                raise IntegrityError(
                    f"pack {pack.id.hex()} is damaged: {error.message}",
                    hint="run `lobstertrap repair --read-data`, then copy again",
                ) from error
        else:
            return data
    raise AssertionError


def _put_raw(repo: Repository, other: Repository, name: SnapshotName) -> None:
    # As it is: sealed anew it would use its key and nonce for a second time.
    data = repo.store.get(name.key).data
    try:
        other.store.put(name.key, data, if_absent=True)
    except Conflict:  # another copy was faster
        return
