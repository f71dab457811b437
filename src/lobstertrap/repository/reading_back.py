"""Files read back from a disk: many of a directory together, by threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from blake3 import blake3

from lobstertrap.repository.batch import read_files
from lobstertrap.repository.chunker import WHOLE
from lobstertrap.repository.entry import FILE, Row
from lobstertrap.repository.scan import Run
from lobstertrap.repository.snapshot import Owners
from lobstertrap.repository.source import common_fields
from lobstertrap.repository.status import mark_of
from lobstertrap.repository.tree_digest import file_row

READERS = 2
_BUFFER = 1 << 20


class ReadingBack:
    """Makes rows of regular files, by threads; ends with its `with` block."""

    def __init__(self, owners: Owners) -> None:
        self._owners = owners
        self._pool = ThreadPoolExecutor(READERS, "read back")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def begin(self, run: Run, places: Sequence[int]) -> list[Future[list[Row]]]:
        """Begin to read the regular files at some places of a run.

        Returns lists of rows, all in the order of the places; `IntegrityError` for a
        file that changes or vanishes meanwhile.
        """
        stats, begun, small = run.stats, [], []
        for place in places:
            if stats[place].st_size <= WHOLE:
                small.append(place)
                continue
            if small:
                begun.append(self._submit(run, small))
                small = []
            begun.append(self._submit(run, [place]))
        if small:
            begun.append(self._submit(run, small))
        return begun

    def _submit(self, run: Run, places: Sequence[int]) -> Future[list[Row]]:
        # The walk closes its handle when it goes on.
        later = run._replace(parent=os.dup(run.parent))
        return self._pool.submit(self._read, later, places)

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
            os.close(run.parent)

    def _read_small(self, run: Run, places: Sequence[int]) -> list[Row | None]:
        """Return the rows of files that are as simple as most are."""
        stats = [run.stats[place] for place in places]
        device = stats[0].st_dev
        if stats[0].st_size > WHOLE or any(s.st_dev != device for s in stats):
            return [None] * len(places)
        names = [run.names[place] for place in places]
        contents = read_files(run.parent, names, [*map(mark_of, stats)], device)
        owners, paths = self._owners, run.paths
        return [
            (
                *common_fields(paths[place], FILE, owners, None, status),
                len(data),
                blake3(data).digest(),
            )
            if data is not None
            else None
            for place, status, data in zip(places, stats, contents, strict=True)
        ]
