"""The survey before a prune: what is in the store, and which of it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lobstertrap.errors import NotFound
from lobstertrap.job import OnProgress, Progress
from lobstertrap.repository.format import CHUNKS
from lobstertrap.repository.index import Index, IndexTable, PackInfo
from lobstertrap.repository.inventory import pack_objects
from lobstertrap.repository.prune_plan import PackState
from lobstertrap.repository.reach import Needed, visit
from lobstertrap.repository.reindex import load_and_sweep
from lobstertrap.repository.repository import Mark, Repository
from lobstertrap.stores.base import ObjectInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is in the store, and which of it is needed."""

    snapshots: int
    tables: Mapping[str, IndexTable]
    packs: Mapping[bytes, PackState]
    marks: list[Mark]
    needed: Needed


def survey_repository(
    repo: Repository, *, sweep: bool, on_progress: OnProgress
) -> Survey:
    """Read all that decides; `sweep` removes index objects that were replaced."""
    # In this order: a snapshot that is listed has its index, an index its packs.
    marks = repo.marks()
    names = repo.snapshot_names()
    tables = load_and_sweep(repo) if sweep else repo.load_index_tables()
    objects = pack_objects(repo)
    condemned = frozenset().union(*(mark.packs for mark in marks))
    index = Index(tables.values(), condemned)

    def rank(pack: PackInfo) -> float:
        found = objects.get(pack.id)
        if found is None or found.size != pack.size:
            return float("inf")
        # The newest copy, so that a rewrite which died is not done once more.
        return 1e15 if pack.id in condemned else -found.modified

    needed = Needed(index, rank)
    reader = repo.blob_reader(index)
    for number, name in enumerate(names):
        on_progress(Progress(phase="look", done_files=number, total_files=len(names)))
        try:
            snapshot = repo.read_snapshot(name)
        except NotFound:  # forgotten meanwhile
            continue
        visit(reader, snapshot.branches, needed.add)
    return Survey(
        snapshots=len(names),
        tables=tables,
        packs=_states(objects, marks, needed),
        marks=marks,
        needed=needed,
    )


def _states(
    objects: Mapping[bytes, ObjectInfo], marks: Iterable[Mark], needed: Needed
) -> dict[bytes, PackState]:
    since: dict[bytes, float] = {}
    for mark in marks:
        for pack_id in mark.packs:
            since[pack_id] = min(mark.modified, since.get(pack_id, mark.modified))
    kinds: dict[bytes, int] = {}
    plain: dict[bytes, int] = dict.fromkeys(objects, 0)
    used = dict(plain)
    for table, rows in needed.tables():
        totals, useful = [0] * len(table.segments), [0] * len(table.segments)
        segment_of, _, length_of = table.columns
        for segment, length, is_needed in zip(segment_of, length_of, rows, strict=True):
            totals[segment] += length
            if is_needed:
                useful[segment] += length
        here: dict[bytes, int] = {}
        for info, total, use in zip(table.segments, totals, useful, strict=True):
            kinds[info.pack.id] = info.pack.kind
            if info.pack.id in objects:
                here[info.pack.id] = here.get(info.pack.id, 0) + total
                used[info.pack.id] += use
        for pack_id, total in here.items():  # a pack may be in two index objects
            plain[pack_id] = max(plain[pack_id], total)
    return {
        pack_id: PackState(
            id=pack_id,
            kind=kinds.get(pack_id, CHUNKS),
            size=info.size,
            modified=info.modified,
            plain=plain[pack_id],
            needed=used[pack_id],
            condemned_at=since.get(pack_id),
        )
        for pack_id, info in objects.items()
    }
