"""The reading of packs: every segment is opened, and every blob hashed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from lobstertrap.errors import IntegrityError, NotFound
from lobstertrap.job import OnProgress, Progress
from lobstertrap.repository.blobs import open_info
from lobstertrap.repository.format import CHUNKS, pack_key
from lobstertrap.repository.inventory import Inventory
from lobstertrap.repository.pack import (
    PackTable,
    open_segment,
    pack_cipher,
    parse_pack,
)
from lobstertrap.repository.repository import Repository

_ATTEMPTS = 2
_PackId = bytes
"""The type, in a class that has a field called bytes."""


@dataclass(slots=True, kw_only=True)
class ReadResult:
    """What was read; damaged segments are noted in the inventory."""

    packs: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    marred: set[_PackId] = field(default_factory=set)
    """Packs with a problem anywhere, be it in a part that is not needed."""


def read_packs(
    repo: Repository,
    found: Inventory,
    packs: Iterable[bytes],
    on_progress: OnProgress = lambda _: None,
) -> ReadResult:
    """Read whole packs; what arrives damaged is fetched once more."""
    result = ReadResult()
    todo = list(packs)
    total = sum(found.packs[pack_id].size for pack_id in todo)
    for pack_id in todo:
        size = found.packs[pack_id].size
        problems, bad = _read(repo, found, pack_id)
        result.problems += problems
        if problems:
            result.marred.add(pack_id)
        found.damaged |= {(pack_id, number) for number in bad}
        result.packs += 1
        result.bytes += size
        on_progress(Progress(phase="read", done_bytes=result.bytes, total_bytes=total))
    return result


def _read(
    repo: Repository, found: Inventory, pack_id: bytes
) -> tuple[list[str], set[int]]:
    problems: list[str] = []
    bad: set[int] = set()
    for _ in range(_ATTEMPTS):
        problems, bad = _read_once(repo, found, pack_id)
        if not problems:
            break
    return problems, bad


def _read_once(
    repo: Repository, found: Inventory, pack_id: bytes
) -> tuple[list[str], set[int]]:
    key, name = pack_key(pack_id), pack_id.hex()
    try:
        data = repo.store.get_range(key, 0, found.packs[pack_id].size)
    except NotFound:  # pruned since it was listed
        return [], set()
    except IntegrityError as error:
        return [f"pack {name}: {error.message}"], set()
    try:
        table = parse_pack(repo.keys, data, pack_id=pack_id, key=key)
    except IntegrityError as error:
        bad = _bad_by_index(repo, found, data, pack_id)
        told = [f"pack {name}: segment {number} is damaged" for number in sorted(bad)]
        return [f"pack {name}: its trailer: {error.message}", *told], bad
    bad = {
        number
        for number in range(len(table.stored))
        if not _segment_is_good(repo, table, data, number)
    }
    return [f"pack {name}: segment {number} is damaged" for number in sorted(bad)], bad


def _bad_by_index(
    repo: Repository, found: Inventory, data: bytes, pack_id: bytes
) -> set[int]:
    """Open the segments where the index says they are, when the trailer is damaged."""
    bad = set()
    for table in found.index.tables:
        for info in table.segments:
            if info.pack.id == pack_id:
                end = info.offset + info.stored
                try:
                    open_info(repo.keys, info, memoryview(data)[info.offset : end])
                except IntegrityError:
                    bad.add(info.number)
    return bad


def _segment_is_good(
    repo: Repository, table: PackTable, data: bytes, number: int
) -> bool:
    start = table.segment_offsets()[number]
    stored = memoryview(data)[start : start + table.stored[number]]
    cipher = pack_cipher(repo.keys, table.id)
    try:
        plain = memoryview(open_segment(cipher, number, stored, table.plain[number]))
    except IntegrityError:
        return False
    make_id = repo.keys.chunk_id if table.kind == CHUNKS else repo.keys.page_id
    first = sum(table.counts[:number])
    last = first + table.counts[number]
    ends = [0]
    for length in table.lengths[first:last]:
        ends.append(ends[-1] + length)
    return all(
        make_id(plain[start:end]) == blob_id
        for blob_id, (start, end) in zip(
            table.ids[first:last], pairwise(ends), strict=True
        )
    )
