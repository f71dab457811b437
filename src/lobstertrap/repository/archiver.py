"""The archiver: reads the volumes of an agent and stores what is new as a snapshot."""

from __future__ import annotations

import os
import secrets
import socket
import stat as st
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lobstertrap.job import OnProgress, Progress
from lobstertrap.repository.chunker import WHOLE, Chunker, assert_compiled
from lobstertrap.repository.digest import content_digest
from lobstertrap.repository.entry import (
    DIRECTORY,
    FILE,
    SIZE,
    TYPE,
    Content,
    Row,
)
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.format import CHUNKS, HOLE, ID_SIZE
from lobstertrap.repository.parent import Parent, find_parent
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.scan import (
    Found,
    close_all,
    open_roots,
    read_xattrs,
    walk,
)
from lobstertrap.repository.snapshot import Consistency, Owners, Snapshot
from lobstertrap.repository.source import (
    common_fields,
    open_file,
    read_large,
    read_small,
    same_version,
    special_row,
)
from lobstertrap.repository.tree import Stat, TreeWriter, item
from lobstertrap.repository.tree_digest import link_row
from lobstertrap.repository.warnings import Warnings
from lobstertrap.repository.writer import BlobWriter

Excludes = Mapping[str, Sequence[str]]

RACY_NS = 2_000_000_000
"""A file this fresh when it is read may change again within one tick of its ctime."""

READINGS = 3
"""How often a file that changes while it is read is read."""

_PROGRESS_FILES = 256


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
    now: Callable[[], float] = time.time,
    on_progress: OnProgress = lambda _: None,
) -> Snapshot:
    """Store the present content of `roots` (path by volume) and return the snapshot.

    It becomes visible by its last put; a crash before leaves nothing that matters.
    Raises `NotFound` for a volume that does not exist and `AccessDenied` for anything
    in it that cannot be read.
    """
    assert_compiled()
    repo.use_cache(cache_dir)
    started = now()
    patterns = {volume: Exclude((exclude or {}).get(volume, ())) for volume in roots}
    handles = open_roots(roots)
    blobs = None
    try:
        index = repo.load_index()
        blobs = repo.blob_writer(index)
        places = {v: place_of(repo, handle) for v, handle in handles.items()}
        parent = find_parent(repo, index, agent, places, owners)
        archiver = _Archiver(
            repo,
            blobs,
            owners=owners,
            parent=parent,
            started=started,
            on_progress=on_progress,
        )
        for volume, handle in handles.items():
            archiver.add_volume(volume, handle, patterns[volume])
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
        repo.put_snapshot(snapshot)
    finally:
        if blobs is not None:
            blobs.close()
        close_all(handles)
    return snapshot


def place_of(repo: Repository, root: int) -> bytes:
    """Return the mark of where a volume is: inodes and ctimes mean something there."""
    status, system = os.fstat(root), os.fstatvfs(root)
    if system.f_fsid:  # stays the same across reboots and machines
        return repo.keys.place("fsid", system.f_fsid, status.st_ino)
    return repo.keys.place("device", socket.gethostname(), status.st_dev, status.st_ino)


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
        on_progress: OnProgress,
    ) -> None:
        self.tree = TreeWriter(blobs, repo.keys)
        self.warnings = Warnings()
        self.files = 0
        self.bytes = 0
        self._chunk_id = repo.keys.chunk_id
        self._blobs = blobs
        self._owners = owners
        self._parent = parent
        self._trusted_before = int(started * 1e9) - RACY_NS
        self._chunker = Chunker(repo.keys.chunker_seed)
        self._on_progress = on_progress
        self._first: dict[tuple[int, int], Row] = {}

    def progress(self, phase: str) -> Progress:
        """Return how far the run is."""
        return Progress(phase=phase, done_bytes=self.bytes, done_files=self.files)

    def add_volume(self, volume: str, root: int, exclude: Exclude) -> None:
        """Read one volume."""
        self._first.clear()
        vanished = self.warnings.adder("vanished while it was read")
        for found in walk(root, volume, exclude, vanished):
            self._add(found)

    def _add(self, found: Found) -> None:
        status = found.stat
        regular = st.S_ISREG(status.st_mode)
        linked = regular and status.st_nlink > 1
        known = self._parent.match(found.path)
        if known is not None and not linked:
            ctime, inode = known.stat
            row = known.row
            if (
                ctime == status.st_ctime_ns
                and inode == status.st_ino
                and row[5] == status.st_mtime_ns
                and (not regular or (row[TYPE] == FILE and row[SIZE] == status.st_size))
            ):
                self.tree.add(row, known.content, known.stat, known.group)
                self._count(row)
                return
        if regular:
            self._add_file(found, linked=linked)
        else:
            self._add_special(found)

    def _add_special(self, found: Found) -> None:
        try:
            row = special_row(found, self._owners)
        except FileNotFoundError:
            self.warnings.add(found.path, "vanished while it was read")
            return
        if row is None:
            self.warnings.add(found.path, "is a socket and was left out")
            return
        self.tree.add(row, None, self._stat(found.stat), None)
        self._count(row)

    def _add_file(self, found: Found, *, linked: bool) -> None:
        inode = (found.stat.st_dev, found.stat.st_ino)
        if linked and inode in self._first:
            row = link_row(found.path, self._first[inode])
            self.tree.add(row, None, self._stat(found.stat), None)
            self._count(row)
            return
        reading = self._read(found)
        if reading is None:
            self.warnings.add(found.path, "vanished while it was read")
            return
        row, content, stat = reading
        if linked:
            self._first[inode] = row
        self.tree.add(row, content, stat, None)
        self._count(row)

    def _read(self, found: Found) -> tuple[Row, Content, Stat] | None:
        handle = open_file(found)
        if handle < 0:
            return None
        try:
            before = os.fstat(handle)
            for left in reversed(range(READINGS)):
                if not st.S_ISREG(before.st_mode):
                    return None
                content, size, digest = self._read_content(handle, before)
                xattrs = read_xattrs(handle)
                after = os.fstat(handle)
                if same_version(before, after) and size == after.st_size:
                    stat = self._stat(before)
                    break
                if not left:
                    self.warnings.add(found.path, "changed while it was read")
                    stat = (0, before.st_ino)
                before = after if left else before
        finally:
            os.close(handle)
        common = common_fields(found, FILE, self._owners, xattrs, before)
        return (*common, size, digest), content, stat

    def _read_content(
        self, handle: int, status: os.stat_result
    ) -> tuple[Content, int, bytes]:
        if status.st_size <= WHOLE:
            os.lseek(handle, 0, os.SEEK_SET)
            data = read_small(handle, status.st_size)
            if not data:
                return b"", 0, content_digest(b"")
            if len(data) <= WHOLE:
                return self._save(data), len(data), content_digest(data)
            status = os.fstat(handle)
        items: list[bytes] = []

        def on_chunk(chunk: memoryview) -> None:
            items.append(item(self._save(chunk), len(chunk)))
            self.bytes += len(chunk)
            if not len(items) % 64:
                self._on_progress(self.progress("read"))

        counted = self.bytes
        reading = read_large(
            handle,
            status,
            self._chunker,
            on_chunk,
            lambda length: items.append(item(HOLE, length)),
        )
        self.bytes = counted
        if len(items) == 1 and items[0][:ID_SIZE] != HOLE:
            return items[0][:ID_SIZE], reading.size, reading.digest
        return self.tree.save_content(items), reading.size, reading.digest

    def _save(self, chunk: bytes | memoryview) -> bytes:
        chunk_id = self._chunk_id(chunk)
        if not self._blobs.has(chunk_id):
            self._blobs.add(CHUNKS, chunk_id, chunk)
        return chunk_id

    def _stat(self, status: os.stat_result) -> Stat:
        ctime = status.st_ctime_ns
        return (ctime if ctime < self._trusted_before else 0, status.st_ino)

    def _count(self, row: Row) -> None:
        kind = row[TYPE]
        if kind == DIRECTORY:
            return
        self.files += 1
        if kind == FILE:
            self.bytes += row[SIZE]
        if not self.files % _PROGRESS_FILES:
            self._on_progress(self.progress("read"))
