"""A restore of some paths of a snapshot into directories, beside what is there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lobstertrap.errors import IntegrityError
from lobstertrap.job import OnProgress
from lobstertrap.repository.attributes import Attributes
from lobstertrap.repository.blame import blaming
from lobstertrap.repository.browse import Tree
from lobstertrap.repository.entry import DIRECTORY, FILE, SIZE, TYPE, Row, shown
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.parent import Parent
from lobstertrap.repository.rebuild import Rebuild
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.restorer import RestoreResult
from lobstertrap.repository.scan import close_all, open_roots
from lobstertrap.repository.selection import select, volumes_of
from lobstertrap.repository.snapshot import Owners, Snapshot
from lobstertrap.repository.system import syncing, translated
from lobstertrap.repository.verify import verify
from lobstertrap.repository.warnings import Warnings

_SHOWN = 5


def restore_paths(
    repo: Repository,
    snapshot: Snapshot,
    *,
    paths: Sequence[bytes],
    roots: Mapping[str, Path],
    owners: Owners,
    on_progress: OnProgress = lambda _: None,
) -> RestoreResult:
    """Bring `paths` (each with all that is below it) back into `roots` by volume.

    The directories that lead to them are made too; nothing is deleted. All of it is
    read back and compared: `IntegrityError` when it is not what the snapshot says,
    `NotFound` for a path that it does not have. The tree digest is the snapshot's.
    """
    started = time.monotonic()
    warnings = Warnings()
    attributes = Attributes(owners, warnings)
    chosen = {name: roots[name] for name in volumes_of(snapshot, paths)}
    with translated(), contextlib.ExitStack() as stack:
        stack.enter_context(blaming(snapshot))
        index = repo.load_index()
        tree = Tree(repo, snapshot, index)
        for path in paths:
            tree.entry(path)
        for root in chosen.values():
            root.mkdir(parents=True, exist_ok=True)
        handles = open_roots(chosen)
        stack.callback(close_all, handles)
        excludes = {volume: Exclude(()) for volume in handles}
        rebuild = Rebuild(
            repo,
            index,
            attributes=attributes,
            excludes=excludes,
            snapshot=snapshot,
            on_progress=on_progress,
        )
        forced: frozenset[bytes] = frozenset()
        for last in (False, True):
            rebuild.run(select(tree, paths), handles, delete_extra=False, forced=forced)
            count = _Count()
            with syncing(handles.values()):
                verdict = verify(
                    count.rows(known.row for known in select(tree, paths)),
                    handles,
                    owners,
                    excludes,
                    excused=attributes.excused,
                    extra_allowed=True,
                    landed=Parent(iter(())),
                    written=rebuild.written,
                    trusted_before=0,
                    on_rows=lambda _: None,
                )
            if not verdict.wrong:
                break
            if last:
                names = ", ".join(shown(path) for path in verdict.wrong[:_SHOWN])
                raise IntegrityError(
                    f"what was restored is not what the snapshot says: {names}",
                    hint="see that nothing else writes there, and run it again",
                )
            forced = frozenset(verdict.wrong)
    return RestoreResult(
        snapshot=snapshot.id,
        tree_digest=snapshot.tree_digest,
        files=count.files,
        bytes=count.bytes,
        files_written=rebuild.files_written,
        bytes_written=rebuild.bytes_written,
        fetched_bytes=rebuild.fetched_bytes,
        deleted=rebuild.deleted,
        warnings=warnings.finish(),
        seconds=time.monotonic() - started,
    )


class _Count:
    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0

    def rows(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Pass rows on, counted."""
        for row in rows:
            self.files += row[TYPE] != DIRECTORY
            self.bytes += row[SIZE] if row[TYPE] == FILE else 0
            yield row
