"""One pass of a restore: what is right on the disk is kept, the rest is written."""

from __future__ import annotations

import os
import stat as st
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from lobstertrap.errors import IntegrityError
from lobstertrap.job import OnProgress, Progress
from lobstertrap.repository.attributes import DEVICES_LEFT, Attributes
from lobstertrap.repository.chunker import WHOLE
from lobstertrap.repository.directories import (
    Directory,
    DirectoryPaths,
    in_the_way,
    is_temporary,
    look,
    make_directory,
    remove_tree,
    temporary_name,
)
from lobstertrap.repository.entry import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    HARD_LINK,
    MAJOR,
    MINOR,
    MODE,
    MTIME,
    PATH,
    SIZE,
    SYMLINK,
    TARGET,
    TYPE,
    Content,
    Row,
    shown,
)
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.fetcher import Piece, Window, fetch
from lobstertrap.repository.format import HOLE
from lobstertrap.repository.index import Index, PackInfo, SegmentInfo
from lobstertrap.repository.placer import Target, place_whole
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.scan import FILE_FLAGS, belongs_to_file_system
from lobstertrap.repository.snapshot import Snapshot
from lobstertrap.repository.tree import Known, read_content

WINDOW_BYTES = 128 << 20
WINDOW_PIECES = 16_384
WINDOW_HANDLES = 200
WRITERS = 4


@dataclass(slots=True)
class _Level:
    """A directory of the pass: what was in it, and what of that the snapshot has."""

    directory: Directory
    present: set[bytes]
    swept: set[bytes]
    """Temporary names that a killed restore left, unless they are used again."""
    wanted: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class _Batch:
    """A window with the files that it fills."""

    window: Window = field(default_factory=Window)
    targets: list[Target] = field(default_factory=list)
    directories: set[bytes] = field(default_factory=set)
    open_files: int = 0
    futures: list[Future[None]] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return (
            self.window.size >= WINDOW_BYTES
            or self.window.pieces >= WINDOW_PIECES
            or len(self.directories) + self.open_files >= WINDOW_HANDLES
        )


class Rebuild:
    """The pass; it may be run again with some paths forced to be written."""

    def __init__(
        self,
        repo: Repository,
        index: Index,
        *,
        attributes: Attributes,
        excludes: Mapping[str, Exclude],
        snapshot: Snapshot,
        on_progress: OnProgress,
    ) -> None:
        self._repo = repo
        self._index = index
        self._attributes = attributes
        self._excludes = excludes
        self._snapshot = snapshot
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._seen_files = 0
        self._seen_bytes = 0
        self.files_written = 0
        self.bytes_written = 0
        self.fetched_bytes = 0
        self.deleted = 0

    def run(
        self,
        entries: Iterable[Known],
        handles: Mapping[str, int],
        *,
        delete_extra: bool,
        forced: frozenset[bytes],
    ) -> None:
        """Go over all entries once."""
        self._roots = {volume.encode(): handle for volume, handle in handles.items()}
        self._delete = delete_extra
        self._forced = forced
        self._levels: list[_Level] = []
        self._batch = _Batch()
        self._running: _Batch | None = None
        self._open: Target | None = None
        self._directories: list[Row] = []
        self._links: list[Row] = []
        self._claimed: set[tuple[int, int]] = set()
        self._staged: list[tuple[bytes, bytes]] = []
        self._blobs = self._repo.blob_reader(self._index)
        self._seen_files = self._seen_bytes = 0
        with ThreadPoolExecutor(WRITERS, "restore") as self._pool:
            try:
                for known in entries:
                    self._entry(known)
                self._leave_until(b"")
                self._flush()
                self._settle()
            except BaseException:
                self._abandon()
                raise
        self._finish_names()

    # Entries

    def _entry(self, known: Known) -> None:
        row = known.row
        path, kind = row[PATH], row[TYPE]
        parent, _, name = path.rpartition(b"/")
        self._leave_until(parent)
        if kind == DIRECTORY:
            self._enter(path, name, row)
            return
        level = self._levels[-1]
        level.wanted.add(name)
        self._seen_files += 1
        if kind == FILE:
            self._file(level, name, row, known.content)
            self._seen_bytes += row[SIZE]
        elif kind == HARD_LINK:
            self._links.append(row)
        else:
            self._special(level, name, row)

    def _enter(self, path: bytes, name: bytes, row: Row) -> None:
        if self._levels:
            above = self._levels[-1]
            above.wanted.add(name)
            directory = make_directory(
                above.directory, name, path, replace=self._delete
            )
        else:
            if path not in self._roots:
                raise IntegrityError(f"{shown(path)} is in no volume of the snapshot")
            directory = Directory(path, os.dup(self._roots[path]), fresh=False)
        if directory.staged:
            self._levels[-1].swept.discard(directory.staged)
            self._staged.append((path, directory.staged))
        present: set[bytes] = set()
        swept: set[bytes] = set()
        if not directory.fresh:
            for text in os.listdir(directory.handle):  # noqa: PTH208 - by handle
                raw = os.fsencode(text)
                (swept if is_temporary(text) else present).add(raw)
        self._levels.append(_Level(directory, present, swept))
        self._directories.append(row)

    def _leave_until(self, parent: bytes) -> None:
        while self._levels and self._levels[-1].directory.path != parent:
            level = self._levels.pop()
            for name in level.swept - level.wanted:
                remove_tree(name, level.directory.handle)
            if self._delete:
                self._delete_extra(level)
            level.directory.release()

    def _delete_extra(self, level: _Level) -> None:
        extra = level.present - level.wanted
        if not extra:
            return
        volume, _, below = level.directory.path.partition(b"/")
        exclude = self._excludes[volume.decode()]
        for name in extra:
            status = look(name, level.directory.handle)
            if status is None:
                continue
            path = below + b"/" + name if below else name
            directory = st.S_ISDIR(status.st_mode)
            if exclude.matches(path, directory=directory):
                continue
            if belongs_to_file_system(path, status):
                continue
            self.deleted += remove_tree(name, level.directory.handle)

    def _clear_way(self, level: _Level, name: bytes, row: Row) -> os.stat_result | None:
        """Return what has the entry's name now; a directory is removed or refused."""
        if name not in level.present:
            return None
        present = look(name, level.directory.handle)
        if present is not None and st.S_ISDIR(present.st_mode):
            if not self._delete:
                raise in_the_way(row[PATH], "a directory")
            self.deleted += remove_tree(name, level.directory.handle)
            return None
        return present

    # Files

    def _file(
        self, level: _Level, name: bytes, row: Row, content: Content | None
    ) -> None:
        present = self._clear_way(level, name, row)
        if present is not None and st.S_ISREG(present.st_mode):
            keep = self._keep(level, name, row, present)
        else:
            present, keep = None, False
        if keep:
            return
        if content is None:
            raise IntegrityError(f"{shown(row[PATH])} has no content")
        target = Target(row, name, level.directory)
        self.files_written += 1
        self.bytes_written += row[SIZE]
        alone = present is None or row[SIZE] <= WHOLE
        if alone and isinstance(content, bytes) and len(content) == len(HOLE):
            self._plan(content, row[SIZE], target, 0)
            self._planned(target)
            return
        self._open = target
        target.open()
        self._fill(target, content, present)
        self._open = None
        self._planned(target)

    def _keep(
        self, level: _Level, name: bytes, row: Row, present: os.stat_result
    ) -> bool:
        """Keep a file that looks right; the reading back at the end proves it."""
        same = present.st_size == row[SIZE] and present.st_mtime_ns == row[MTIME]
        if not same or row[PATH] in self._forced:
            return False
        if present.st_nlink > 1:
            inode = (present.st_dev, present.st_ino)
            if inode in self._claimed:  # two names here, two files in the snapshot
                return False
            self._claimed.add(inode)
        owner = self._attributes.local_owner(row)
        if (present.st_uid, present.st_gid) != owner or (
            present.st_mode & 0o7777 != row[MODE]
        ):
            handle = self._open_present(level, name)
            if handle < 0:
                return False
            try:
                self._attributes.apply_existing(handle, row, present)
            finally:
                os.close(handle)
        return True

    @staticmethod
    def _open_present(level: _Level, name: bytes) -> int:
        try:
            return os.open(name, FILE_FLAGS, dir_fd=level.directory.handle)
        except OSError:
            return -1

    def _fill(
        self, target: Target, content: Content, present: os.stat_result | None
    ) -> None:
        """Plan a file of many chunks; what the file here has already is copied."""
        old = -1
        level = self._levels[-1]
        if present is not None and present.st_size > WHOLE:
            old = self._open_present(level, target.name)
        place = 0
        try:
            for chunk_id, length in read_content(self._blobs, target.row, content):
                if chunk_id != HOLE and not self._copied(
                    old, target, chunk_id, place, length
                ):
                    self._plan(chunk_id, length, target, place)
                    self._flush_if_full()
                place += length
        finally:
            if old >= 0:
                os.close(old)

    def _copied(
        self, old: int, target: Target, chunk_id: bytes, place: int, length: int
    ) -> bool:
        if old < 0:
            return False
        data = os.pread(old, length, place)
        if len(data) != length or self._repo.keys.chunk_id(data) != chunk_id:
            return False
        target.write(memoryview(data), place)
        return True

    def _plan(self, chunk_id: bytes, length: int, target: Target, place: int) -> None:
        if self._batch.window.add(self._index, chunk_id, target, place) != length:
            raise IntegrityError(
                f"a chunk of {shown(target.row[PATH])} has another length than promised"
            )

    # Windows

    def _planned(self, target: Target) -> None:
        """Let the present window finish the file: earlier ones are done by then."""
        self._batch.targets.append(target)
        self._batch.directories.add(target.directory.path)
        self._batch.open_files += target.handle >= 0
        self._flush_if_full()

    def _flush_if_full(self) -> None:
        if self._batch.full:
            self._flush()

    def _flush(self) -> None:
        """Start this window; the one before must be done, so two are in memory."""
        self._settle()
        batch, self._batch = self._batch, _Batch()
        batch.futures = [
            self._pool.submit(self._write_pack, pack, wanted)
            for pack, wanted in batch.window.packs.items()
        ]
        self._running = batch

    def _settle(self) -> None:
        batch = self._running
        if batch is None:
            return
        for future in batch.futures:
            future.result()
        while batch.targets:
            target = batch.targets[-1]
            if target.handle >= 0:
                target.finish(self._attributes)
            batch.targets.pop().directory.release()
        self._running = None
        self._on_progress(
            Progress(
                phase="write",
                done_bytes=self._seen_bytes,
                total_bytes=self._snapshot.bytes,
                done_files=self._seen_files,
                total_files=self._snapshot.files,
            )
        )

    def _write_pack(
        self, pack: PackInfo, wanted: dict[SegmentInfo, list[Piece]]
    ) -> None:
        for plain, pieces in fetch(
            self._repo.store, self._repo.keys, pack, wanted, self._count_fetched
        ):
            for piece in pieces:
                data = plain[piece.offset : piece.offset + piece.length]
                if piece.target.handle < 0:
                    place_whole(piece.target, data, self._attributes)
                else:
                    piece.target.write(data, piece.file_offset)

    def _count_fetched(self, count: int) -> None:
        with self._lock:
            self.fetched_bytes += count

    def _abandon(self) -> None:
        for batch in (self._running, self._batch):
            if batch is None:
                continue
            for future in batch.futures:
                future.cancel()
            for future in batch.futures:
                if not future.cancelled():
                    future.exception()
            for target in batch.targets:
                target.abandon()
                target.directory.release()
        if self._open is not None:
            self._open.abandon()
            self._open.directory.release()
        for level in self._levels:
            level.directory.release()

    # What needs no content

    def _special(self, level: _Level, name: bytes, row: Row) -> None:
        present = self._clear_way(level, name, row)
        parent = level.directory.handle
        if present is not None and self._special_is_right(name, parent, row, present):
            return
        temporary = temporary_name()
        kind = row[TYPE]
        if kind == SYMLINK:
            os.symlink(row[TARGET], temporary, dir_fd=parent)
        elif kind in (CHARACTER_DEVICE, BLOCK_DEVICE):
            form = st.S_IFCHR if kind == CHARACTER_DEVICE else st.S_IFBLK
            device = os.makedev(row[MAJOR], row[MINOR])
            try:
                os.mknod(temporary, form | 0o600, device, dir_fd=parent)
            except PermissionError:
                self._attributes.excuse(DEVICES_LEFT)
                return
        else:
            os.mkfifo(temporary, 0o600, dir_fd=parent)
        self._attributes.apply_by_name(temporary, parent, row, link=kind == SYMLINK)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        self.files_written += 1

    def _special_is_right(
        self, name: bytes, parent: int, row: Row, present: os.stat_result
    ) -> bool:
        if row[PATH] in self._forced or present.st_mtime_ns != row[MTIME]:
            return False
        owner = (present.st_uid, present.st_gid)
        if owner != self._attributes.local_owner(row) or present.st_nlink > 1:
            return False
        if row[TYPE] == SYMLINK:
            return st.S_ISLNK(present.st_mode) and (
                os.fsencode(os.readlink(name, dir_fd=parent)) == row[TARGET]
            )
        form = st.S_IFIFO
        if row[TYPE] != FIFO:
            form = st.S_IFCHR if row[TYPE] == CHARACTER_DEVICE else st.S_IFBLK
            if present.st_rdev != os.makedev(row[MAJOR], row[MINOR]):
                return False
        return bool(present.st_mode == form | row[MODE])

    def _finish_names(self) -> None:
        """Give new directories their names, make hard links, then set attributes."""
        paths = DirectoryPaths(self._roots)
        other = DirectoryPaths(self._roots)
        try:
            for path, staged in self._staged:
                parent, _, name = path.rpartition(b"/")
                into = paths.open(parent)
                os.rename(staged, name, src_dir_fd=into, dst_dir_fd=into)
            for row in self._links:
                self._link(row, paths, other)
            for row in reversed(self._directories):
                handle = paths.open(row[PATH])
                self._attributes.apply_existing(handle, row, os.fstat(handle))
        finally:
            paths.close()
            other.close()

    def _link(self, row: Row, paths: DirectoryPaths, other: DirectoryPaths) -> None:
        parent, _, name = row[PATH].rpartition(b"/")
        source_parent, _, source = row[TARGET].rpartition(b"/")
        into, start = paths.open(parent), other.open(source_parent)
        first = look(source, start)
        if first is None or not st.S_ISREG(first.st_mode):
            raise IntegrityError(f"{shown(row[PATH])} is a link to nothing")
        present = look(name, into)
        if present is not None:
            if (present.st_dev, present.st_ino) == (first.st_dev, first.st_ino):
                return
            if st.S_ISDIR(present.st_mode):
                if not self._delete:
                    raise in_the_way(row[PATH], "a directory")
                self.deleted += remove_tree(name, into)
        temporary = temporary_name()
        os.link(
            source,
            temporary,
            src_dir_fd=start,
            dst_dir_fd=into,
            follow_symlinks=False,
        )
        os.rename(temporary, name, src_dir_fd=into, dst_dir_fd=into)
        self.files_written += 1
