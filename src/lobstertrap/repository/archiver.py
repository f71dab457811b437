"""The archiver: reads the volumes of an agent and stores what is new as a snapshot."""

from __future__ import annotations

import secrets
import socket
import stat as st
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from lobstertrap.errors import Refused
from lobstertrap.job import OnProgress, Progress
from lobstertrap.redaction import SecretValue
from lobstertrap.repository.ahead import AHEAD, ReadAhead
from lobstertrap.repository.chunker import assert_compiled
from lobstertrap.repository.commit import commit, since_boot
from lobstertrap.repository.entry import DIRECTORY, FILE, MTIME, SIZE, TYPE, Row, shown
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.format import ID_SIZE
from lobstertrap.repository.leaks import LeakCheck
from lobstertrap.repository.live import LiveFiles
from lobstertrap.repository.parent import Parent, find_parent, place_of
from lobstertrap.repository.reading import FileReader, Reading
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.scan import Found, Run, close_all, open_roots, walk_runs
from lobstertrap.repository.snapshot import Consistency, Owners, Snapshot
from lobstertrap.repository.source import common_fields, special_row
from lobstertrap.repository.status import Status, mark_of
from lobstertrap.repository.system import translated
from lobstertrap.repository.tree import Known, TreeWriter
from lobstertrap.repository.tree_digest import link_row
from lobstertrap.repository.warnings import Warnings
from lobstertrap.repository.writer import BlobWriter

Excludes = Mapping[str, Sequence[str]]
Leaks = Literal["off", "warn", "refuse"]

GONE_NOW = "vanished while it was read"
_PROGRESS_FILES = 256
_SHOWN_LEAKS = 20
_NEW_IN_A_ROW = 2
"""So many names that are new, and the next ones are expected to be."""


def take_snapshot(
    repo: Repository,
    *,
    agent: str,
    roots: Mapping[str, Path],
    owners: Owners,
    exclude: Excludes | None = None,
    consistency: Consistency = "stopped",
    tags: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
    known: Mapping[str, SecretValue] | None = None,
    leaks: Leaks = "off",
    now: Callable[[], float] = time.time,
    on_progress: OnProgress = lambda _: None,
) -> Snapshot:
    """Store the present content of `roots` (path by volume) and return the snapshot.

    It becomes visible by its last put; a crash before leaves nothing that matters.
    Raises `NotFound` for a volume that does not exist and `AccessDenied` for anything
    in it that cannot be read. Unless `leaks` is off, files that are read and hold one
    of the `known` values, or what looks like a token, are warned of, or `Refused`.
    """
    assert_compiled()
    if cache_dir is not None:
        repo.use_cache(cache_dir)
    started = now()
    patterns = {volume: Exclude((exclude or {}).get(volume, ())) for volume in roots}
    with translated(), ExitStack() as stack:
        handles = open_roots(roots)
        stack.callback(close_all, handles)
        loaded = since_boot()
        index = repo.load_index()
        blobs = repo.blob_writer(index)
        stack.callback(blobs.close)
        places = {v: place_of(repo, handle) for v, handle in handles.items()}
        parent = find_parent(repo, index, agent, places, owners)
        archiver = _Archiver(
            repo,
            blobs,
            owners=owners,
            parent=parent,
            started=started,
            consistency=consistency,
            on_progress=on_progress,
            known=None if leaks == "off" else known or {},
        )
        for volume, handle in handles.items():
            archiver.add_volume(volume, handle, patterns[volume])
        if leaks == "refuse":
            archiver.refuse_leaks(agent)
        branches, digest = archiver.tree.finish()
        on_progress(archiver.progress("commit"))
        blobs.finish()
        warnings = archiver.warnings.finish()
        snapshot = Snapshot(
            id=secrets.token_hex(ID_SIZE),
            agent=agent,
            created_at=started,
            tree_digest=digest.hex(),
            status="complete_with_warnings" if warnings else "complete",
            warnings=warnings,
            files=archiver.files,
            bytes=archiver.bytes,
            new_bytes=blobs.new_bytes,
            uploaded_bytes=blobs.uploaded_bytes,
            consistency=consistency,
            tags=dict(tags or {}),
            volumes=tuple(handles),
            excludes={v: tuple(p) for v, p in (exclude or {}).items() if p},
            host=socket.gethostname(),
            branches=branches,
            places=places,
            owners=owners,
        )
        commit(repo, index, snapshot, since=loaded)
        repo.trim_cache(index)
    return snapshot


class _Archiver:
    """One run over all volumes."""

    def __init__(
        self,
        repo: Repository,
        blobs: BlobWriter,
        *,
        owners: Owners,
        parent: Parent,
        started: float,
        consistency: Consistency,
        on_progress: OnProgress,
        known: Mapping[str, SecretValue] | None,
    ) -> None:
        self.tree = TreeWriter(blobs, repo.keys)
        self.warnings = Warnings()
        self.files = 0
        self.bytes = 0
        self._next_progress = _PROGRESS_FILES
        self._owners = owners
        self._parent = parent
        self._on_progress = on_progress
        self._first: dict[tuple[int, int], Row] = {}
        self._ahead = ReadAhead()
        self._in_a_row = 0
        """Names looked at since the last that were kept."""
        told = self.warnings
        self._leaks = (
            None if known is None else LeakCheck(known, told.add, on_end=told.once)
        )
        self._reader = FileReader(
            blobs,
            self.tree,
            repo.keys,
            warnings=self.warnings,
            started=started,
            on_bytes=self._reading,
            leaks=self._leaks,
        )
        live = consistency == "live"
        self._live = LiveFiles(self._reader, self.warnings) if live else None

    def progress(self, phase: str, more: int = 0) -> Progress:
        """Return how far the run is."""
        return Progress(
            phase=phase, done_bytes=self.bytes + more, done_files=self.files
        )

    def refuse_leaks(self, agent: str) -> None:
        """Raise `Refused` when a file holds a secret."""
        found = self._leaks.found if self._leaks else []
        if found:
            lines = [f"{shown(path)} {what}" for path, what in found[:_SHOWN_LEAKS]]
            more = len(found) - len(lines)
            lines += [f"and {more} more"] if more else []
            raise Refused(
                f"files of agent '{agent}' hold secrets:\n  " + "\n  ".join(lines),
                hint="take them out of the files and rotate them, or set "
                "snapshot.leaks: warn in its agent.yaml",
            )

    def add_volume(self, volume: str, root: int, exclude: Exclude) -> None:
        """Read one volume."""
        self._first.clear()
        on_gone = self.warnings.adder(GONE_NOW)
        for found in walk_runs(root, volume, exclude, on_gone):
            if isinstance(found, Run):
                self._add_run(found)
            else:
                self._add(found, self._parent.match(found.path))

    def _add_run(self, run: Run) -> None:
        """Keep what is unchanged, many names at a time, and look at the rest."""
        parent, place, count = self._parent, 0, len(run.paths)
        if self._live is None and parent.lacks(run.paths):
            self._add_new(run)
            return
        asked = 0
        marks = [*map(mark_of, run.stats)]
        while place < count:
            same = None
            if self._live is None:  # it looks at every name
                same = parent.same(run.paths, marks, place)
            if same is None:
                if place >= asked and self._in_a_row >= _NEW_IN_A_ROW:
                    self._ahead.ask(run, place)
                    asked = place + AHEAD
                self._add(run.found(place), parent.match(run.paths[place]))
                self._in_a_row += 1
                place += 1
                continue
            self._in_a_row = 0
            group, start, stop = same
            self.tree.keep(group, start, stop)
            rows = group.rows[start:stop]
            self._count(len(rows), sum(r[SIZE] for r in rows if r[TYPE] == FILE))
            place += len(rows)

    def _add_new(self, run: Run) -> None:
        """Read names that the parent does not have, small files together."""
        for start in range(0, len(run.paths), AHEAD):
            stop = min(start + AHEAD, len(run.paths))
            self._ahead.ask(run, start)
            readings = self._reader.read_together(run, start, stop)
            for place, reading in enumerate(readings, start):
                if reading is None:
                    self._add(run.found(place), None)
                else:
                    self._add_file(run.paths[place], reading)

    def _add(self, found: Found, known: Known | None) -> None:
        status = found.stat
        if not st.S_ISREG(status.st_mode):
            if known is not None and _unchanged(known, status):
                self._keep(known)
            else:
                self._add_special(found)
            return
        inode = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and inode in self._first:
            row = link_row(found.path, self._first[inode])
            self.tree.add(row, None, self._reader.stat(status))
            self._count(1)
            return
        if known is not None and not (
            known.row[TYPE] == FILE
            and known.row[SIZE] == status.st_size
            and _unchanged(known, status)
        ):
            known = None
        if self._live is not None:
            if self._live.is_over(found.path):
                return
            self._live.look(found, known)
        held = self._live.take(found.path) if self._live else None
        if known is not None and held is None:
            self._keep(known)
            row = known.row
        else:
            reader = self._reader
            reading = held or reader.read(found)
            if reading is None:
                self.warnings.add(found.path, GONE_NOW)
                return
            row = self._add_file(found.path, reading)
        if status.st_nlink > 1:
            self._first[inode] = row

    def _keep(self, known: Known) -> None:
        self.tree.keep(known.group, known.place, known.place + 1)
        self._count_row(known.row)

    def _add_file(self, path: bytes, reading: Reading) -> Row:
        common = common_fields(path, FILE, self._owners, reading.xattrs, reading.status)
        row = (*common, reading.size, reading.digest)
        self.tree.add(row, reading.content, reading.stat)
        self._count(1, reading.size)
        return row

    def _add_special(self, found: Found) -> None:
        try:
            row = special_row(found, self._owners)
        except FileNotFoundError:
            self.warnings.add(found.path, GONE_NOW)
            return
        if row is None:
            self.warnings.add(found.path, "is a socket and was left out")
            return
        self.tree.add(row, None, self._reader.stat(found.stat))
        self._count_row(row)

    def _count_row(self, row: Row) -> None:
        if row[TYPE] != DIRECTORY:
            self._count(1, row[SIZE] if row[TYPE] == FILE else 0)

    def _count(self, files: int, size: int = 0) -> None:
        self.files += files
        self.bytes += size
        if self.files >= self._next_progress:
            self._next_progress = self.files + _PROGRESS_FILES
            self._on_progress(self.progress("read"))

    def _reading(self, count: int) -> None:
        self._on_progress(self.progress("read", count))


def _unchanged(known: Known, status: Status) -> bool:
    ctime, inode = known.stat
    return (
        ctime == status.st_ctime_ns
        and inode == status.st_ino
        and bool(known.row[MTIME] == status.st_mtime_ns)
    )
