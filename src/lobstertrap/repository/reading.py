"""How the archiver reads a regular file: into chunks, and again when it changes."""

from __future__ import annotations

import os
import stat as st
from collections.abc import Callable
from typing import NamedTuple

from blake3 import blake3

from lobstertrap.repository.batch import read_files, settled
from lobstertrap.repository.chunker import WHOLE, Chunker
from lobstertrap.repository.crypto import Keys
from lobstertrap.repository.digest import content_digest
from lobstertrap.repository.entry import Content
from lobstertrap.repository.format import CHUNKS, HOLE, ID_SIZE
from lobstertrap.repository.leaks import LARGEST_TEXT, LeakCheck
from lobstertrap.repository.scan import Found, Run
from lobstertrap.repository.source import (
    open_file,
    read_large,
    read_small,
    same_version,
    settled_status,
)
from lobstertrap.repository.status import Stat, Status, mark_of, read_xattrs
from lobstertrap.repository.tree import TreeWriter, item
from lobstertrap.repository.warnings import Warnings
from lobstertrap.repository.writer import BlobWriter

RACY_NS = 2_000_000_000
"""A file this fresh when it is read may change again within one tick of its ctime."""

READINGS = 3
"""How often a file that changes while it is read is read."""

CHANGED = "changed while it was read"
_PROGRESS_CHUNKS = 64


class Reading(NamedTuple):
    """What a reading of one file gave."""

    content: Content
    size: int
    digest: bytes
    xattrs: tuple[tuple[bytes, bytes], ...] | None
    status: Status
    """As it was when the reading began."""
    stat: Stat
    calm: bool
    """Nothing changed while it was read."""


class FileReader:
    """Reads files and stores the chunks that are new."""

    def __init__(
        self,
        blobs: BlobWriter,
        tree: TreeWriter,
        keys: Keys,
        *,
        warnings: Warnings,
        started: float,
        on_bytes: Callable[[int], None],
        leaks: LeakCheck | None = None,
    ) -> None:
        self._blobs = blobs
        self._tree = tree
        self._chunk_id = keys.chunk_id
        self._chunk_id_of = keys.chunk_id_of
        self._chunker = Chunker(keys.chunker_seed)
        self._warnings = warnings
        self._trusted_before = int(started * 1e9) - RACY_NS
        self._on_bytes = on_bytes
        self._leaks = leaks

    def stat(self, status: Status) -> Stat:
        """Return the mark by which the next snapshot knows the file as unchanged."""
        ctime = status.st_ctime_ns
        return (ctime if ctime < self._trusted_before else 0, status.st_ino)

    def read_together(self, run: Run, start: int, stop: int) -> list[Reading | None]:
        """Read the small files among the names from `start` to before `stop`.

        None for each that `read` has to look at: it is no small file, has attributes
        or several names, or is not what it was when its directory was listed.
        """
        readings: list[Reading | None] = [None] * (stop - start)
        stats, device = run.stats, run.stats[start].st_dev
        small = [i for i in range(start, stop) if _is_small(stats[i], device)]
        names, marks = [run.names[i] for i in small], [mark_of(stats[i]) for i in small]
        contents = read_files(run.parent, names, marks, device)
        for i, data in zip(small, contents, strict=True):
            if data is not None:
                readings[i - start] = self._take(run.paths[i], data, stats[i])
        return readings

    def _take(self, path: bytes, data: memoryview, status: Status) -> Reading:
        digest = blake3(data).digest()
        content = b""
        if data:
            if self._leaks is not None:
                self._leaks.look(path, bytes(data))
            content = self._chunk_id_of(digest)
            self._blobs.save(CHUNKS, content, data)
        stat = self._mark(path, status)
        return Reading(content, len(data), digest, None, status, stat, calm=True)

    def read(self, found: Found, *, readings: int = READINGS) -> Reading | None:
        """Read a file; None when it is gone, or no regular file any more.

        One that changes meanwhile is read again, and named in the warnings when it
        never holds still. With one reading only, that is the caller's to judge.
        """
        handle = open_file(found)
        if handle < 0:
            return None
        try:
            reading = self._read_once(found.path, handle)
            for _ in range(readings - 1):
                if reading is None or reading.calm:
                    break
                reading = self._read_once(found.path, handle)
        finally:
            os.close(handle)
        if reading is not None and not reading.calm and readings > 1:
            self._warnings.add(found.path, CHANGED)
        return reading

    def _read_once(self, path: bytes, handle: int) -> Reading | None:
        before = settled_status(handle)
        if not st.S_ISREG(before.st_mode):
            return None
        quiet = settled(before.st_ctime_ns)
        content, size, digest = self._read_content(path, handle, before)
        xattrs = read_xattrs(handle)
        after = os.fstat(handle)
        calm = quiet and size == after.st_size and same_version(before, after)
        stat = self._mark(path, before) if calm else (0, before.st_ino)
        return Reading(content, size, digest, xattrs, before, stat, calm)

    def _mark(self, path: bytes, status: Status) -> Stat:
        """Return the file's mark: none for a leak, which is to be told every time."""
        if (
            self._leaks is not None
            and status.st_size <= LARGEST_TEXT
            and self._leaks.is_found(path)
        ):
            return (0, status.st_ino)
        return self.stat(status)

    def _read_content(
        self, path: bytes, handle: int, status: Status
    ) -> tuple[Content, int, bytes]:
        if status.st_size <= WHOLE:
            data = read_small(handle, status.st_size)
            if not data:
                return b"", 0, content_digest(b"")
            if len(data) <= WHOLE:
                if self._leaks is not None:
                    self._leaks.look(path, data)
                return self._save(data), len(data), content_digest(data)
            status = os.fstat(handle)  # it has grown beyond one chunk
        items: list[bytes] = []
        done = 0

        def on_chunk(chunk: memoryview) -> None:
            nonlocal done
            items.append(item(self._save(chunk), len(chunk)))
            done += len(chunk)
            if not len(items) % _PROGRESS_CHUNKS:
                self._on_bytes(done)

        def on_hole(length: int) -> None:
            items.append(item(HOLE, length))

        watch = self._leaks.watch(path, status.st_size) if self._leaks else None
        part = read_large(handle, status, self._chunker, on_chunk, on_hole, watch=watch)
        if len(items) == 1 and not items[0].startswith(HOLE):
            return items[0][:ID_SIZE], part.size, part.digest
        return self._tree.save_content(items), part.size, part.digest

    def _save(self, chunk: bytes | memoryview) -> bytes:
        chunk_id = self._chunk_id(chunk)
        self._blobs.save(CHUNKS, chunk_id, chunk)
        return chunk_id


def _is_small(status: Status, device: int) -> bool:
    return (
        status.st_size <= WHOLE
        and st.S_ISREG(status.st_mode)
        and status.st_nlink == 1
        and status.st_dev == device
    )
