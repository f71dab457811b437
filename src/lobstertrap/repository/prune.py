"""Prune: frees the space of blobs that no snapshot needs, beside any writers.

In two phases, so that nobody has to be kept out. A pack that nothing needs is first
*condemned*: from then on no new snapshot rests on it (see commit.py). A later prune
deletes it when it has been condemned for a grace and still no snapshot needs it. The
order within a run is: new packs, marks, new index, old index, packs. A run that dies
anywhere leaves a repository that checks clean, and the next run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lobstertrap.errors import IntegrityError, InvalidInput, NotFound
from lobstertrap.job import OnProgress, Progress
from lobstertrap.lease import Holder
from lobstertrap.repository.blobs import open_info
from lobstertrap.repository.format import CHUNKS, pack_key
from lobstertrap.repository.index import Index, IndexTable, SegmentInfo
from lobstertrap.repository.prune_plan import PackState, PrunePlan, plan_prune
from lobstertrap.repository.reindex import (
    INDEX_BLOBS,
    pack_tables,
    replace_indexes,
)
from lobstertrap.repository.repository import Mark, Repository
from lobstertrap.repository.survey import Survey, survey_repository
from lobstertrap.repository.upkeep import Upkeep, upkeep

GRACE = 24 * 3600.0
"""Seconds between condemning and deleting: longer than any restore may take."""
MIN_GRACE = 3600.0
KEEP_MARKS = 30 * 24 * 3600.0
"""Seconds for which it stays known that a pack was deleted."""
MANY_INDEXES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneResult:
    """What a prune did, or would do."""

    snapshots: int
    packs: int
    """Before."""
    bytes: int
    deleted_packs: int
    deleted_bytes: int
    condemned_packs: int
    """Newly, those that were rewritten too; a later prune deletes them."""
    condemned_bytes: int
    waiting_packs: int
    """Condemned before, and not for long enough."""
    waiting_bytes: int
    rewritten_packs: int
    rewritten_bytes: int
    pardoned_packs: int


def prune(
    repo: Repository,
    *,
    grace: float = GRACE,
    repack: bool = True,
    dry_run: bool = False,
    holder: Holder | None = None,
    on_progress: OnProgress = lambda _: None,
) -> PruneResult:
    """Condemn what no snapshot needs; delete what was condemned `grace` seconds ago.

    Raises `Refused` while another upkeep is at work and `IntegrityError` when something
    that a snapshot needs is lost: then nothing is changed.
    """
    if grace < MIN_GRACE:
        raise InvalidInput(
            f"a grace of {grace:.0f} s is too short for writers at work",
            hint=f"give at least {MIN_GRACE:.0f} s",
        )
    with upkeep(repo, "prune", holder=holder) as held:
        survey = survey_repository(repo, sweep=not dry_run, on_progress=on_progress)
        plan = plan_prune(
            survey.packs.values(), now=held.now, grace=grace, repack=repack
        )
        if not dry_run:
            _carry_out(repo, held, survey, plan, on_progress)
    return _result(survey, plan)


def _carry_out(
    repo: Repository,
    held: Upkeep,
    survey: Survey,
    plan: PrunePlan,
    on_progress: OnProgress,
) -> None:
    held.check()
    _rewrite(repo, survey, {pack.id for pack in plan.rewrite}, on_progress)
    condemned = {pack.id for pack in (*plan.condemn, *plan.rewrite)}
    if condemned:
        held.check()
        repo.put_mark(condemned)
    _take_back(repo, survey.marks, {pack.id for pack in plan.pardon}, held.check)
    gone = {pack.id for pack in plan.delete}
    _reindex(repo, survey, gone, held.check)
    held.check()
    for number, pack_id in enumerate(gone):
        on_progress(Progress(phase="delete", done_files=number, total_files=len(gone)))
        repo.store.delete(pack_key(pack_id))
        if repo.cache:
            repo.cache.drop(pack_key(pack_id))
    _drop_old_marks(repo, survey, held)


def _rewrite(
    repo: Repository, survey: Survey, chosen: set[bytes], on_progress: OnProgress
) -> None:
    """Store what is needed of the chosen packs in new ones, and index it."""
    if not chosen:
        return
    writer = repo.blob_writer(Index())
    try:
        for table, rows in survey.needed.tables():
            for info, blobs in _wanted(table, rows, chosen):
                _copy_blobs(repo, info, blobs, writer.add)
                on_progress(Progress(phase="rewrite", done_bytes=writer.uploaded_bytes))
        writer.finish()
    finally:
        writer.close()


def _wanted(
    table: IndexTable, rows: bytearray, chosen: set[bytes]
) -> Iterable[tuple[SegmentInfo, list[tuple[bytes, int, int]]]]:
    segment_of, offset_of, length_of = table.columns
    here = [info.pack.id in chosen for info in table.segments]
    by_segment: dict[int, list[int]] = {}
    for row, segment in enumerate(segment_of):
        if rows[row] and here[segment]:
            by_segment.setdefault(segment, []).append(row)
    for segment in sorted(by_segment):
        blobs = [
            (table.ids[row * 16 : row * 16 + 16], offset_of[row], length_of[row])
            for row in by_segment[segment]
        ]
        yield table.segments[segment], sorted(blobs, key=lambda blob: blob[1])


def _copy_blobs(
    repo: Repository,
    info: SegmentInfo,
    blobs: Iterable[tuple[bytes, int, int]],
    add: Callable[[int, bytes, memoryview], None],
) -> None:
    key = pack_key(info.pack.id)
    stored = repo.store.get_range(key, info.offset, info.stored)
    plain = memoryview(open_info(repo.keys, info, stored))
    kind = info.pack.kind
    make_id = repo.keys.chunk_id if kind == CHUNKS else repo.keys.page_id
    for blob_id, offset, length in blobs:
        data = plain[offset : offset + length]
        if make_id(data) != blob_id:
            raise IntegrityError(f"blob {blob_id.hex()} is not what its id says")
        add(kind, blob_id, data)


def _take_back(
    repo: Repository, marks: list[Mark], pardoned: set[bytes], check: Callable[[], None]
) -> None:
    for mark in marks:
        if mark.packs & pardoned:
            check()
            if rest := mark.packs - pardoned:
                repo.put_mark(rest)
            repo.store.delete(mark.key)


def _reindex(
    repo: Repository, survey: Survey, gone: set[bytes], check: Callable[[], None]
) -> None:
    """Take packs that are deleted, or were lost, out of the index; join small ones."""
    lost = {
        pack.id
        for table in survey.tables.values()
        for pack in table.packs
        if pack.id not in survey.packs and _is_gone(repo, pack.id)
    }
    out = gone | lost
    old = {
        key: table
        for key, table in survey.tables.items()
        if any(pack.id in out for pack in table.packs)
    }
    small = {k: t for k, t in survey.tables.items() if len(t) < INDEX_BLOBS // 4}
    if len(small) >= MANY_INDEXES:
        old |= small
    if old:
        tables = (
            pack
            for table in old.values()
            for pack in pack_tables(table, lambda pack_id: pack_id not in out)
        )
        replace_indexes(repo, old, tables, check)


def _is_gone(repo: Repository, pack_id: bytes) -> bool:
    try:
        repo.store.head(pack_key(pack_id))
    except NotFound:
        return True
    return False


def _drop_old_marks(repo: Repository, survey: Survey, held: Upkeep) -> None:
    """Forget marks whose packs have long been gone, and were so before this run."""
    for mark in survey.marks:
        over = held.now - mark.modified >= KEEP_MARKS
        if over and mark.packs.isdisjoint(survey.packs):
            repo.store.delete(mark.key)


def _result(survey: Survey, plan: PrunePlan) -> PruneResult:
    condemned = (*plan.condemn, *plan.rewrite)
    return PruneResult(
        snapshots=survey.snapshots,
        packs=len(survey.packs),
        bytes=_size(survey.packs.values()),
        deleted_packs=len(plan.delete),
        deleted_bytes=_size(plan.delete),
        condemned_packs=len(condemned),
        condemned_bytes=_size(condemned),
        waiting_packs=len(plan.wait),
        waiting_bytes=_size(plan.wait),
        rewritten_packs=len(plan.rewrite),
        rewritten_bytes=_size(plan.rewrite),
        pardoned_packs=len(plan.pardon),
    )


def _size(packs: Iterable[PackState]) -> int:
    return sum(pack.size for pack in packs)
