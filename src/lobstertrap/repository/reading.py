"""How the archiver reads a regular file: into chunks, and again when it changes."""

from __future__ import annotations

import os
import stat as st
from collections.abc import Callable
from typing import NamedTuple

from blake3 import blake3

from lobstertrap.repository.chunker import WHOLE, Chunker
from lobstertrap.repository.crypto import Keys
from lobstertrap.repository.digest import content_digest
from lobstertrap.repository.entry import Content
from lobstertrap.repository.format import CHUNKS, HOLE, ID_SIZE
from lobstertrap.repository.leaks import LARGEST_TEXT, LeakCheck
from lobstertrap.repository.scan import FILE_FLAGS, Found, read_xattrs
from lobstertrap.repository.source import (
    open_file,
    read_large,
    read_small,
    same_version,
    settled,
    settled_status,
)
from lobstertrap.repository.tree import Stat, TreeWriter, item
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
    status: os.stat_result
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

    def stat(self, status: os.stat_result) -> Stat:
        """Return the mark by which the next snapshot knows the file as unchanged."""
        ctime = status.st_ctime_ns
        return (ctime if ctime < self._trusted_before else 0, status.st_ino)

    def read_quickly(self, found: Found) -> Reading | None:
        """Read a small file that holds still; None: `read` has to look closer.

        The same as `read` with what a hundred thousand small files need not: one look
        at the file instead of two, no buffers, one hash.
        """
        status = found.stat
        size = status.st_size
        if size > WHOLE:
            return None
        quiet = settled(status)
        try:
            handle = os.open(found.name, FILE_FLAGS, dir_fd=found.parent)
        except OSError:
            return None
        try:
            data = os.read(handle, size + 1)
            xattrs = read_xattrs(handle)
            after = os.fstat(handle)
        except OSError:  # a directory now, or worse: `read` tells
            return None
        finally:
            os.close(handle)
        if len(data) != size or not (quiet and same_version(status, after)):
            return None
        digest = blake3(data).digest()
        content = b""
        if data:
            if self._leaks is not None:
                self._leaks.look(found.path, data)
            content = self._chunk_id_of(digest)
            self._blobs.save(CHUNKS, content, data)
        mark = self._mark(found.path, status)
        return Reading(content, size, digest, xattrs, status, mark, True)  # noqa: FBT003 - a tuple's fields are named where it is defined

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
        quiet = settled(before)
        content, size, digest = self._read_content(path, handle, before)
        xattrs = read_xattrs(handle)
        after = os.fstat(handle)
        calm = quiet and size == after.st_size and same_version(before, after)
        stat = self._mark(path, before) if calm else (0, before.st_ino)
        return Reading(content, size, digest, xattrs, before, stat, calm)

    def _mark(self, path: bytes, status: os.stat_result) -> Stat:
        """Return the file's mark: none for a leak, which is to be told every time."""
        if (
            self._leaks is not None
            and status.st_size <= LARGEST_TEXT
            and self._leaks.is_found(path)
        ):
            return (0, status.st_ino)
        return self.stat(status)

    def _read_content(
        self, path: bytes, handle: int, status: os.stat_result
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
