"""The replacement of index objects: the new are there before the old are gone."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator

from lobstertrap.errors import Conflict, IntegrityError
from lobstertrap.repository.crypto import seal_object
from lobstertrap.repository.format import (
    HEADER_SIZE,
    ID_SIZE,
    INDEX_PREFIX,
    KIND_INDEX,
    Header,
    index_key,
)
from lobstertrap.repository.index import IndexTable, encode_index
from lobstertrap.repository.pack import PackTable
from lobstertrap.repository.repository import Repository

INDEX_BLOBS = 1 << 17
"""An index object that is made here is closed when it has this many blobs."""


def pack_tables(
    table: IndexTable, keep: Callable[[bytes], bool]
) -> Iterator[PackTable]:
    """Yield what `table` says of each pack whose id `keep` accepts."""
    segment_of, offset_of, length_of = table.columns
    order = sorted(range(len(table)), key=lambda r: (segment_of[r], offset_of[r]))
    place, number = 0, 0
    for pack in table.packs:
        here = PackTable(id=pack.id, kind=pack.kind, size=HEADER_SIZE)
        while number < len(table.segments) and table.segments[number].pack is pack:
            segment = table.segments[number]
            end, offset = place, 0
            while end < len(order) and segment_of[order[end]] == number:
                row = order[end]
                if offset_of[row] != offset:
                    raise IntegrityError("an index object is damaged")
                here.ids.append(table.ids[row * ID_SIZE : (row + 1) * ID_SIZE])
                here.lengths.append(length_of[row])
                offset += length_of[row]
                end += 1
            here.stored.append(segment.stored)
            here.plain.append(segment.plain)
            here.counts.append(end - place)
            place, number = end, number + 1
        here.size = pack.size
        if keep(pack.id):
            yield here


def replace_indexes(
    repo: Repository,
    old: Collection[str],
    packs: Iterable[PackTable],
    check: Callable[[], None],
) -> int:
    """Put index objects for `packs` in place of those with the keys `old`.

    Only the last of the new ones says what it replaces, so at every moment a reader
    finds all packs. Returns how many were put. Raises `Conflict`, with the old ones
    still in force, when another process has replaced them meanwhile.
    """
    made: list[str] = []
    batch: list[PackTable] = []
    blobs = 0
    for pack in packs:
        batch.append(pack)
        blobs += len(pack.ids)
        if blobs >= INDEX_BLOBS:
            made.append(_put(repo, batch, ()))
            batch, blobs = [], 0
    replaces = [_id(key) for key in old]
    check()
    made.append(_put(repo, batch, [i for i in replaces if i is not None]))
    missing = {*old} - {info.key for info in repo.store.list(INDEX_PREFIX)}
    if missing:
        for key in reversed(made):
            repo.store.delete(key)
        raise Conflict(
            "another process has rewritten the index meanwhile",
            hint="run the same command again",
        )
    check()
    for key in old:
        repo.store.delete(key)
    return len(made)


def add_indexes(repo: Repository, packs: Iterable[PackTable]) -> Iterator[IndexTable]:
    """Put index objects for packs that are stored, and yield what is in each."""
    batch: list[PackTable] = []
    blobs = 0
    for pack in packs:
        batch.append(pack)
        blobs += len(pack.ids)
        if blobs >= INDEX_BLOBS:
            _put(repo, batch, ())
            yield IndexTable(encode_index(batch))
            batch, blobs = [], 0
    if batch:
        _put(repo, batch, ())
        yield IndexTable(encode_index(batch))


def load_and_sweep(repo: Repository) -> dict[str, IndexTable]:
    """Return the index objects in force, and delete those that they replaced.

    Such are left by a process that died; as every replacement names all that was out
    of force when it was made, none comes back into force by this. What only is not
    listed (a store may list late) is not deleted: it has to be named.
    """
    listed = [info.key for info in repo.store.list(INDEX_PREFIX)]
    tables = repo.load_index_tables()
    replaced = {index_key(i) for table in tables.values() for i in table.replaces}
    for key in listed:
        if key in replaced and key not in tables:
            repo.store.delete(key)
    return tables


def _put(repo: Repository, packs: list[PackTable], replaces: Iterable[bytes]) -> str:
    plain = encode_index(packs, replaces)
    index_id = secrets.token_bytes(ID_SIZE)
    header = Header(kind=KIND_INDEX, id=index_id)
    repo.store.put(index_key(index_id), seal_object(repo.keys, header, plain))
    return index_key(index_id)


def _id(key: str) -> bytes | None:
    try:
        found = bytes.fromhex(key.removeprefix(INDEX_PREFIX))
    except ValueError:
        return None
    return found if len(found) == ID_SIZE else None
