"""Files read back from a disk: many of a directory together, by threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Self

from blake3 import blake3

from lobstertrap.repository.batch import read_files
from lobstertrap.repository.chunker import WHOLE
from lobstertrap.repository.digest import BLOCK, join_blocks
from lobstertrap.repository.entry import FILE, Row
from lobstertrap.repository.scan import Run
from lobstertrap.repository.snapshot import Owners
from lobstertrap.repository.source import common_fields, digest_blocks, open_file
from lobstertrap.repository.status import mark_of, read_xattrs
from lobstertrap.repository.tree_digest import changed, file_row, gone

READERS = 2
_BUFFER = 1 << 20
_LARGE = 32 << 20
"""Bytes that one thread reads in a row; a file of as many is read by all threads."""

Waiting = Callable[[], list[Row]]


class ReadingBack:
    """Makes rows of regular files, by threads; ends with its `with` block."""

    def __init__(self, owners: Owners) -> None:
        self._owners = owners
        self._pool = ThreadPoolExecutor(READERS, "read back")
        self._open: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        while self._open:
            os.close(self._open.pop())

    def begin(self, run: Run, places: Sequence[int]) -> list[Waiting]:
        """Begin to read the regular files at some places of a run.

        Each of what is returned waits for some rows, all in the order of the places;
        it raises `IntegrityError` for a file that changed or vanished meanwhile.
        """
        begun: list[Waiting] = []
        few: list[int] = []
        total = 0
        for place in places:
            status = run.stats[place]
            full = status.st_blocks * 512 >= status.st_size
            if few and total + status.st_size > _LARGE:
                begun.append(self._submit(run, few))
                few, total = [], 0
            if full and status.st_size >= _LARGE:
                begun.append(self._submit_parts(run, place))
                continue
            few.append(place)
            total += status.st_size
        if few:
            begun.append(self._submit(run, few))
        return begun

    def _submit_parts(self, run: Run, place: int) -> Waiting:
        """Let every thread read a part of one file, which has no holes."""
        found = run.found(place)
        size = found.stat.st_size
        step = -(-size // READERS // BLOCK) * BLOCK
        handle = open_file(found)
        if handle < 0:
            raise gone(found.path)
        self._open.add(handle)
        parts = [
            self._pool.submit(digest_blocks, handle, start, min(start + step, size))
            for start in range(0, size, step)
        ]

        def rows() -> list[Row]:
            try:
                read = [part.result() for part in parts]
                xattrs = read_xattrs(handle)
            finally:
                self._close(handle)
            if sum(length for length, _ in read) != size:
                raise changed(found.path)
            digest = join_blocks([*chain.from_iterable(blocks for _, blocks in read)])
            common = common_fields(found.path, FILE, self._owners, xattrs, found.stat)
            return [(*common, size, digest)]

        return rows

    def _submit(self, run: Run, places: Sequence[int]) -> Waiting:
        # The walk closes its handle when it goes on.
        later = run._replace(parent=os.dup(run.parent))
        self._open.add(later.parent)
        return self._pool.submit(self._read, later, places).result

    def _read(self, run: Run, places: Sequence[int]) -> list[Row]:
        try:
            rows = self._read_small(run, places)
            if None in rows:
                buffer = memoryview(bytearray(_BUFFER))
                for number, place in enumerate(places):
                    if rows[number] is None:
                        found = run.found(place)
                        rows[number] = file_row(found, self._owners, buffer)
            return rows  # type: ignore[return-value] # none is None now
        finally:
            self._close(run.parent)

    def _close(self, handle: int) -> None:
        self._open.discard(handle)
        os.close(handle)

    def _read_small(self, run: Run, places: Sequence[int]) -> list[Row | None]:
        """Return the rows of files that are as simple as most are, None for others."""
        stats, device = run.stats, run.stats[places[0]].st_dev
        small = [
            place
            for place in places
            if stats[place].st_size <= WHOLE and stats[place].st_dev == device
        ]
        names = [run.names[place] for place in small]
        marks = [mark_of(stats[place]) for place in small]
        contents = read_files(run.parent, names, marks, device)
        owners, paths = self._owners, run.paths
        found = {
            place: (
                *common_fields(paths[place], FILE, owners, None, stats[place]),
                len(data),
                blake3(data).digest(),
            )
            for place, data in zip(small, contents, strict=True)
            if data is not None
        }
        return [found.get(place) for place in places]
