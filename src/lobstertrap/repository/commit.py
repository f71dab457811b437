"""The commit of a snapshot: its manifest goes in only when all it needs will stay.

Prune condemns packs, waits for a grace, and deletes what is still not needed. So a
snapshot may be put as long as the last look at what is condemned was a moment ago, and
nothing that it needs is only there. What is, is stored once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lobstertrap.errors import IntegrityError, NotFound, Unavailable
from lobstertrap.repository.format import CHUNKS
from lobstertrap.repository.index import Index
from lobstertrap.repository.inventory import pack_objects
from lobstertrap.repository.reach import Branches, visit
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.snapshot import Snapshot

PROMPT = 60.0
"""Seconds from the last look to the put; after more it is looked at once more."""

LONG = 3600.0
"""Seconds after which a mark, and even its tombstone, may have come and gone."""

_ROUNDS = 8


def since_boot() -> float:
    """Return seconds that also pass while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def commit(
    repo: Repository,
    index: Index,
    snapshot: Snapshot,
    *,
    since: float | None = None,
    put: Callable[[], None] | None = None,
    clock: Callable[[], float] = since_boot,
) -> None:
    """Make a snapshot visible; raises `Unavailable` when a prune was faster.

    `since` is when `index` was loaded, by `clock`; what was loaded long ago is compared
    with the packs that are there. `put` does it in another way than by encoding.
    """
    gone: frozenset[bytes] = frozenset()
    if since is not None and clock() - since > LONG:
        gone = frozenset(index.packs.keys() - pack_objects(repo).keys())
    looked = _settle(repo, index, snapshot.branches, gone, clock)
    if put is None:
        repo.put_snapshot(snapshot)
    else:
        put()
    if clock() - looked > PROMPT:  # this process stood still meanwhile
        try:
            _settle(repo, index, snapshot.branches, gone, clock)
        except Unavailable:
            repo.delete_snapshot(snapshot)
            raise


def _settle(
    repo: Repository,
    index: Index,
    branches: Branches,
    gone: frozenset[bytes],
    clock: Callable[[], float],
) -> float:
    """Store again what is only in condemned packs; return when that was last true."""
    before: frozenset[bytes] | None = None
    for _ in range(_ROUNDS):
        looked = clock()
        condemned = gone.union(*(mark.packs for mark in repo.marks()))
        if condemned == before or condemned.isdisjoint(index.packs):
            return looked
        index.avoid = condemned
        _rescue(repo, index, branches)
        before = condemned
    raise Unavailable(
        "the repository is being pruned again and again while this snapshot is taken",
        hint="take it again later",
    )


def _rescue(repo: Repository, index: Index, branches: Branches) -> None:
    reader, writer = repo.blob_reader(index), repo.blob_writer(index)

    def keep(blob_id: bytes) -> bool:
        if not writer.has(blob_id):
            where = index.find(blob_id)
            plain = reader.segment(where.segment)
            data = bytes(plain[where.offset : where.offset + where.length])
            make_id = (
                repo.keys.chunk_id
                if where.segment.pack.kind == CHUNKS
                else repo.keys.page_id
            )
            if make_id(data) != blob_id:
                raise IntegrityError(f"blob {blob_id.hex()} is not what its id says")
            writer.add(where.segment.pack.kind, blob_id, data)
        return True

    try:
        visit(reader, branches, keep)
        writer.finish()
    except NotFound as error:
        raise Unavailable(
            "this snapshot rests on packs that were pruned while it was taken",
            hint="take it again; nothing was lost",
        ) from error
    finally:
        writer.close()
