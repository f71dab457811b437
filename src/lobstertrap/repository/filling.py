"""The filler: fetches what files lack, window by window, and completes them.

A window is planned while the one before is fetched and written by threads, which go on
with the next one at once. So memory and open files are bounded, whatever the size of
the snapshot or of one file.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from lobstertrap.errors import IntegrityError, NotFound
from lobstertrap.repository.attributes import Attributes
from lobstertrap.repository.blame import costing
from lobstertrap.repository.entry import PATH, SIZE, Content, Row, shown
from lobstertrap.repository.fetcher import Fetcher, Piece, Window
from lobstertrap.repository.format import HOLE
from lobstertrap.repository.index import Index, PackInfo, SegmentInfo
from lobstertrap.repository.placer import Target, place_together, read_back
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.system import spare_handles, sync_file_system
from lobstertrap.repository.tree import read_content
from lobstertrap.repository.written import Written

WINDOW_BYTES = 128 << 20
WINDOW_PIECES = 16_384
WINDOW_HANDLES = 1000
WRITERS = 3


@dataclass(slots=True)
class _Batch:
    """A window with the files that it fills."""

    handles: int
    """How many directories and files it may keep open."""
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
            or len(self.directories) + self.open_files >= self.handles
        )


class Filler:
    """Takes files to write; for one thread. `finish` or `abandon` ends it."""

    def __init__(
        self,
        repo: Repository,
        index: Index,
        attributes: Attributes,
        written: Written,
        on_window: Callable[[], None],
    ) -> None:
        self._repo = repo
        self._index = index
        self._attributes = attributes
        self._written = written
        self._on_window = on_window
        self._blobs = repo.blob_reader(index)
        self._pool = ThreadPoolExecutor(WRITERS, "restore")
        self._fetcher = Fetcher(repo.store, repo.keys, index)
        self._handles = min(WINDOW_HANDLES, spare_handles() // 4)
        self._batch = _Batch(self._handles)
        self._running: deque[_Batch] = deque()
        self._open: Target | None = None
        self._reading: dict[Future[None], int] = {}
        """Files of the window before that are read back, and their handles."""
        self._marked: dict[int, int] = {}
        """By file system: a file that was marked as unfinished, perhaps not on disk."""

    def add_whole(self, target: Target, chunk_id: bytes, size: int) -> None:
        """Take a file that is one chunk."""
        self._plan(chunk_id, size, target, 0)
        self._planned(target)

    def add_parts(self, target: Target, content: Content, old: int) -> int:
        """Take a file of any content; what the open file `old` has is copied.

        Returns how many bytes `old` does not have, at least at the same place.
        """
        self._open = target
        target.open()
        if target.in_place:
            self._marked[os.fstat(target.handle).st_dev] = target.handle
        place = missing = 0
        for chunk_id, length in read_content(self._blobs, target.row, content):
            if chunk_id != HOLE and not self._copied(
                old, target, chunk_id, place, length
            ):
                self._plan(chunk_id, length, target, place)
                self._flush_if_full()
                missing += length
            place += length
        self._open = None
        self._planned(target)
        return missing

    def has_holes(self, row: Row, content: Content) -> bool:
        """Say whether a file has holes."""
        return any(i == HOLE for i, _ in read_content(self._blobs, row, content))

    def finish(self) -> None:
        """Return when every file is whole and has its name."""
        self._flush()
        self._settle(0)
        self._pool.shutdown()

    def _copied(
        self, old: int, target: Target, chunk_id: bytes, place: int, length: int
    ) -> bool:
        if old < 0:
            return False
        data = os.pread(old, length, place)
        if len(data) != length or self._repo.keys.chunk_id(data) != chunk_id:
            return False
        target.keep(memoryview(data), place)
        return True

    def _plan(self, chunk_id: bytes, length: int, target: Target, place: int) -> None:
        path = target.row[PATH]
        try:
            found = self._batch.window.add(self._index, chunk_id, target, place)
        except IntegrityError as error:
            raise costing(error, [path]) from error
        if found != length:
            raise IntegrityError(
                f"a chunk of {shown(path)} has another length than promised"
            )

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
        """Start this window; all but the one before must be done."""
        while self._marked:  # before a byte of those files changes
            sync_file_system(self._marked.popitem()[1])
        batch, self._batch = self._batch, _Batch(self._handles)
        batch.futures = [
            self._pool.submit(self._write_pack, pack, wanted)
            for pack, wanted in batch.window.packs.items()
        ]
        self._running.append(batch)
        self._settle(1)

    def _settle(self, left: int) -> None:
        """Finish the files of windows, oldest first, until so many are left."""
        while len(self._running) > left:
            batch = self._running[0]
            for future in batch.futures:
                future.result()
            self._await_reading()
            while batch.targets:
                target = batch.targets[-1]
                if target.handle >= 0:
                    self._read_back(target.finish(self._attributes), target, left)
                batch.targets.pop().directory.release()
            self._running.popleft()
            self._on_window()

    def _read_back(self, handle: int, target: Target, left: int) -> None:
        """Read a file back while the windows that are left are written.

        A very large one, or with none left, is for the end: more threads read it then.
        """
        if not left or target.row[SIZE] > WINDOW_BYTES:
            os.close(handle)
            return
        attributes, written = self._attributes, self._written
        reading = self._pool.submit(read_back, handle, target, attributes, written)
        self._reading[reading] = handle

    def _await_reading(self) -> None:
        while self._reading:
            reading, handle = self._reading.popitem()
            try:
                with contextlib.suppress(OSError):  # then it is read again at the end
                    reading.result()
            finally:
                os.close(handle)

    def _write_pack(
        self, pack: PackInfo, wanted: dict[SegmentInfo, list[Piece]]
    ) -> None:
        done: set[int] = set()
        try:
            for plain, pieces in self._fetcher.fetch(pack, wanted):
                self._place(plain, pieces)
                done.add(id(pieces))
        except (IntegrityError, NotFound) as error:
            in_order = (wanted[info] for info in sorted(wanted, key=_number))
            left = [pieces for pieces in in_order if id(pieces) not in done]
            hit = left if isinstance(error, NotFound) else left[:1]
            paths = {piece.target.row[PATH] for pieces in hit for piece in pieces}
            raise costing(error, paths) from error

    def _place(self, plain: memoryview, pieces: list[Piece]) -> None:
        whole = defaultdict(list)
        for piece in pieces:
            target, offset, length = piece.target, piece.offset, piece.length
            if target.handle < 0:
                whole[target.directory].append((target, offset, length))
            else:
                target.write(plain[offset : offset + length], piece.file_offset)
        for directory, together in whole.items():
            place_together(directory, plain, together, self._attributes, self._written)

    @property
    def fetched_bytes(self) -> int:
        """Bytes that came from the store."""
        return self._fetcher.fetched_bytes

    def abandon(self) -> None:
        """Drop what is not whole; the next restore sweeps what this one cannot."""
        for batch in (*self._running, self._batch):
            for future in batch.futures:
                future.cancel()
            for future in batch.futures:
                if not future.cancelled():
                    future.exception()
            for target in batch.targets:
                target.abandon()
                target.directory.release()
        for reading, handle in self._reading.items():
            if not reading.cancel():
                reading.exception()
            os.close(handle)
        if self._open is not None:
            self._open.abandon()
            self._open.directory.release()
        self._pool.shutdown()


def _number(info: SegmentInfo) -> int:
    return info.number
