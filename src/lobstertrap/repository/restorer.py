"""The restorer: makes directories be what a snapshot says, and proves it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lobstertrap.errors import IntegrityError, InvalidInput
from lobstertrap.job import OnProgress, Progress
from lobstertrap.repository.attributes import Attributes
from lobstertrap.repository.blame import blaming
from lobstertrap.repository.entry import (
    DIRECTORY,
    FILE,
    SIZE,
    TYPE,
    Row,
    check_row,
    shown,
)
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.landing import load_landing, save_landing
from lobstertrap.repository.parent import Parent, place_of
from lobstertrap.repository.reading import RACY_NS
from lobstertrap.repository.rebuild import Rebuild
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.scan import close_all, open_roots
from lobstertrap.repository.snapshot import Owners, Snapshot
from lobstertrap.repository.system import syncing, translated
from lobstertrap.repository.tree import Known, read_entries, read_rows
from lobstertrap.repository.verify import Verdict, verify
from lobstertrap.repository.warnings import Warnings

_ROUNDS = 2
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """What a restore did; the tree digest was recomputed from the disk."""

    snapshot: str
    tree_digest: str
    files: int
    bytes: int
    files_written: int
    bytes_written: int
    fetched_bytes: int
    deleted: int
    warnings: tuple[str, ...]
    seconds: float


def restore(
    repo: Repository,
    snapshot: Snapshot,
    *,
    roots: Mapping[str, Path],
    owners: Owners,
    delete_extra: bool = False,
    in_place: bool = False,
    now: Callable[[], float] = time.time,
    on_progress: OnProgress = lambda _: None,
) -> RestoreResult:
    """Make `roots` (path by volume) equal to `snapshot`; only differences are written.

    With `delete_extra`, what the snapshot does not have is removed, but for what its
    exclude patterns name. Each file appears whole or not at all; after a kill the same
    call goes on where it was. With `in_place`, for volumes that nothing uses before it
    returns, only the changed parts of a large file are written (see patching.py), and a
    kill leaves some of them half changed. Returns when everything is on the disk
    (syncfs) and the tree digest, recomputed from the disk, is the snapshot's; else
    `IntegrityError`.
    """
    started = time.monotonic()
    chosen = _choose_roots(snapshot, roots)
    warnings = Warnings()
    attributes = Attributes(owners, warnings)
    with translated(), contextlib.ExitStack() as stack:
        for root in chosen.values():
            root.mkdir(parents=True, exist_ok=True)
        handles = open_roots(chosen)
        stack.callback(close_all, handles)
        stack.enter_context(blaming(snapshot))
        excludes = {v: Exclude(snapshot.excludes.get(v, ())) for v in handles}
        index = repo.load_index()
        rebuild = Rebuild(
            repo,
            index,
            attributes=attributes,
            excludes=excludes,
            snapshot=snapshot,
            on_progress=on_progress,
            in_place=in_place,
        )
        places = {v: place_of(repo, handle) for v, handle in handles.items()}
        landing = load_landing(repo, snapshot.agent, places, owners)
        forced: frozenset[bytes] = frozenset()
        for last in (False, True):
            entries = checked(read_entries(repo.blob_reader(index), snapshot.branches))
            rebuild.run(entries, handles, delete_extra=delete_extra, forced=forced)
            rows = read_rows(repo.blob_reader(index), snapshot.branches)
            landed = landing.groups(repo, index) if landing else iter(())
            with syncing(handles.values()):
                verdict = verify(
                    rows,
                    handles,
                    owners,
                    excludes,
                    excused=attributes.excused,
                    extra_allowed=not delete_extra,
                    landed=Parent(landed),
                    written=rebuild.written,
                    trusted_before=int(now() * 1e9) - RACY_NS,
                    on_rows=_reporter(snapshot, on_progress),
                )
            if not verdict.wrong and verdict.digest == snapshot.tree_digest:
                break
            if last:
                raise _differs(snapshot, verdict)
            forced = frozenset(verdict.wrong)
        exact = not attributes.excused
        save_landing(repo, snapshot, places, owners, verdict.stats, exact=exact)
    return RestoreResult(
        snapshot=snapshot.id,
        tree_digest=snapshot.tree_digest,
        files=snapshot.files,
        bytes=snapshot.bytes,
        files_written=rebuild.files_written,
        bytes_written=rebuild.bytes_written,
        fetched_bytes=rebuild.fetched_bytes,
        deleted=rebuild.deleted,
        warnings=warnings.finish(),
        seconds=time.monotonic() - started,
    )


def checked(entries: Iterator[Known]) -> Iterator[Known]:
    """Pass entries on after checking all of each: fields, order, and parents.

    So a path can be made name by name: every parent is a directory that came before.
    """
    previous = b""
    parents: list[bytes] = []
    for known in entries:
        row = known.row
        check_row(row)
        path = row[0]
        key = path.replace(b"/", b"\0")
        if key <= previous:
            raise IntegrityError(f"the entry {shown(path)} is out of order")
        previous = key
        parent = path.rpartition(b"/")[0]
        while parents and parents[-1] != parent:
            parents.pop()
        if (parent and not parents) or (not parent and row[TYPE] != 1):
            raise IntegrityError(f"the entry {shown(path)} has no directory")
        if row[TYPE] == 1:
            parents.append(path)
        yield known


def _choose_roots(snapshot: Snapshot, roots: Mapping[str, Path]) -> dict[str, Path]:
    missing = sorted(set(snapshot.volumes) - set(roots))
    if missing:
        raise InvalidInput(
            f"snapshot {snapshot.short_id} has volumes that have no place here: "
            f"{', '.join(missing)}",
            hint="add them to the agent's spec",
        )
    return {volume: Path(roots[volume]) for volume in snapshot.volumes}


def _differs(snapshot: Snapshot, verdict: Verdict) -> IntegrityError:
    names = ", ".join(shown(path) for path in verdict.wrong[:_SHOWN])
    more = f": {names}" if names else ""
    return IntegrityError(
        f"the restored tree is not what snapshot {snapshot.short_id} says{more}",
        hint="see that nothing else writes there, and run the same restore again",
    )


def _reporter(
    snapshot: Snapshot, on_progress: OnProgress
) -> Callable[[Sequence[Row]], None]:
    files = done = 0

    def on_rows(rows: Sequence[Row]) -> None:
        nonlocal files, done
        files += sum(row[TYPE] != DIRECTORY for row in rows)
        done += sum(row[SIZE] for row in rows if row[TYPE] == FILE)
        on_progress(
            Progress(
                phase="verify",
                done_bytes=done,
                total_bytes=snapshot.bytes,
                done_files=files,
                total_files=snapshot.files,
            )
        )

    return on_rows
