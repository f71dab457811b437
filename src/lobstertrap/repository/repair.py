"""Repair: makes the best of a damaged repository, and says what is lost.

The index is made again from the trailers of the packs, without what cannot be read.
A snapshot that lacks something is replaced by one of what is left of it, which names
the lost files; it is put before the damaged one is taken away. A run that dies is
simply run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from lobstertrap.errors import IntegrityError, InvalidInput, NotFound
from lobstertrap.job import OnProgress
from lobstertrap.lease import Holder
from lobstertrap.repository.check import SnapshotVerdict, TreeChecker, verdict_of
from lobstertrap.repository.crypto import TRAILER_PART
from lobstertrap.repository.format import (
    CHUNKS,
    CONDEMNED_PREFIX,
    FOOTER_SIZE,
    HEADER_SIZE,
    SNAPSHOT_PREFIX,
    pack_key,
    parse_footer,
)
from lobstertrap.repository.index import Index
from lobstertrap.repository.inventory import (
    Inventory,
    pack_objects,
    take_inventory,
)
from lobstertrap.repository.pack import (
    PackTable,
    open_segment,
    pack_cipher,
    parse_trailer,
)
from lobstertrap.repository.read_data import read_packs
from lobstertrap.repository.reindex import pack_tables, replace_indexes
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.salvage import REPAIRED, salvage
from lobstertrap.repository.upkeep import upkeep

_READERS = 8
_ATTEMPTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairedSnapshot:
    """A snapshot that lacked something, and what took its place."""

    verdict: SnapshotVerdict
    replaced_by: str | None
    """The new snapshot's id; None when nothing was left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What a repair did."""

    packs: int
    """In the new index."""
    problems: tuple[str, ...]
    """What was wrong: objects damaged or missing."""
    removed: tuple[str, ...]
    """Keys of objects that could not be read and were taken away."""
    snapshots: tuple[RepairedSnapshot, ...]
    """Those that lacked something."""


@dataclass(slots=True, kw_only=True)
class _Packs:
    """What the packs say of themselves."""

    whole: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    """Id, size and plain trailer: 20 bytes a blob."""
    damaged: list[PackTable] = field(default_factory=list)


def repair(
    repo: Repository,
    *,
    read_data: bool = False,
    holder: Holder | None = None,
    on_progress: OnProgress = lambda _: None,
) -> RepairReport:
    """Rebuild the index from the packs, and drop from snapshots what is lost.

    With `read_data` every pack is read, and damaged segments count as lost. Raises
    `Refused` while another upkeep is at work, and `InvalidInput` for a newer format.
    """
    repo.use_cache(None)  # what is in the store counts
    with upkeep(repo, "repair", holder=holder) as held:
        found = take_inventory(repo)
        problems = [*found.unreadable.values(), *found.lost_packs()]
        marred: set[bytes] = set()
        if read_data:
            read = read_packs(repo, found, sorted(found.packs), on_progress)
            problems += read.problems
            marred = read.marred
        packs = _read_trailers(repo, found, problems, marred)
        held.check()
        _save_from_damaged(repo, packs.damaged)
        tables = (_parse(*pack) for pack in packs.whole)
        replace_indexes(repo, found.index_keys, tables, held.check)
        removed = [*_remove_unreadable(repo, found, held.check)]
        found.packs = pack_objects(repo)
        found.index = repo.load_index()
        found.damaged.clear()
        mended = tuple(_mend_all(repo, found, held.check))
    return RepairReport(
        packs=len(packs.whole),
        problems=tuple(problems),
        removed=tuple(removed),
        snapshots=mended,
    )


def _read_trailers(
    repo: Repository, found: Inventory, problems: list[str], marred: set[bytes]
) -> _Packs:
    packs = _Packs()
    bad: set[bytes] = set()
    with ThreadPoolExecutor(_READERS, "trailers") as pool:
        ids = sorted(found.packs)
        for pack_id, plain in zip(
            ids, pool.map(partial(_trailer, repo, found), ids), strict=True
        ):
            size = found.packs[pack_id].size
            if plain is None:
                bad.add(pack_id)
            elif pack_id in marred:
                packs.damaged.append(_parse(pack_id, size, plain))
            else:
                packs.whole.append((pack_id, size, plain))
    known: set[bytes] = set()
    for table in found.index.tables:
        for pack in pack_tables(table, lambda pack_id: pack_id in bad - known):
            known.add(pack.id)
            packs.damaged.append(pack)
    problems += [
        f"pack {pack_id.hex()} cannot be read, and no index knows what is in it"
        for pack_id in sorted(bad - known)
    ]
    return packs


def _trailer(repo: Repository, found: Inventory, pack_id: bytes) -> bytes | None:
    """Return the plain trailer of a pack, or None when the pack is damaged."""
    key, size = pack_key(pack_id), found.packs[pack_id].size
    for _ in range(_ATTEMPTS):
        try:
            start = size - FOOTER_SIZE
            length = parse_footer(repo.store.get_range(key, start, FOOTER_SIZE), key)
            sealed = repo.store.get_range(key, start - length, length)
            plain = bytes(pack_cipher(repo.keys, pack_id).open(TRAILER_PART, sealed))
            table = parse_trailer(plain, pack_id)
            if HEADER_SIZE + sum(table.stored) == start - length:
                return plain
        except (IntegrityError, InvalidInput, NotFound):  # a range that cannot be, too
            continue
    return None


def _parse(pack_id: bytes, size: int, plain: bytes) -> PackTable:
    table = parse_trailer(plain, pack_id)
    table.size = size
    return table


def _save_from_damaged(repo: Repository, damaged: list[PackTable]) -> None:
    """Store what can still be read of damaged packs in new ones, and index it."""
    if not damaged:
        return
    writer = repo.blob_writer(Index())
    try:
        for table in damaged:
            for blob_id, blob in _readable_blobs(repo, table):
                if not writer.has(blob_id):
                    writer.add(table.kind, blob_id, blob)
        writer.finish()
    finally:
        writer.close()


def _readable_blobs(
    repo: Repository, table: PackTable
) -> Iterator[tuple[bytes, memoryview]]:
    cipher = pack_cipher(repo.keys, table.id)
    make_id = repo.keys.chunk_id if table.kind == CHUNKS else repo.keys.page_id
    first = 0
    for number, offset in enumerate(table.segment_offsets()):
        last = first + table.counts[number]
        try:
            stored = repo.store.get_range(
                pack_key(table.id), offset, table.stored[number]
            )
            segment = open_segment(cipher, number, stored, table.plain[number])
        except (IntegrityError, NotFound):
            first = last
            continue
        plain, place = memoryview(segment), 0
        for blob_id, length in zip(
            table.ids[first:last], table.lengths[first:last], strict=True
        ):
            blob = plain[place : place + length]
            place += length
            if make_id(blob) == blob_id:
                yield blob_id, blob
        first = last


def _remove_unreadable(
    repo: Repository, found: Inventory, check: Callable[[], None]
) -> Iterator[str]:
    for key in sorted(found.unreadable):
        if key.startswith((SNAPSHOT_PREFIX, CONDEMNED_PREFIX)):
            check()
            repo.store.delete(key)
        yield key


def _mend_all(
    repo: Repository, found: Inventory, check: Callable[[], None]
) -> Iterator[RepairedSnapshot]:
    trees = TreeChecker(repo.blob_reader(found.index), found)
    mended = {s.tags[REPAIRED]: s for s in found.snapshots if REPAIRED in s.tags}
    for snapshot in found.snapshots:
        damages = [*trees.check(snapshot)]
        if not damages:
            continue
        check()
        # One is there already when a run died before it took the damaged one away.
        new = mended.get(snapshot.id) or salvage(repo, found, snapshot)
        check()
        repo.delete_snapshot(snapshot)
        yield RepairedSnapshot(
            verdict=verdict_of(snapshot, damages),
            replaced_by=new.id if new else None,
        )
