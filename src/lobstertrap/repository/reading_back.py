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
from lobstertrap.repository.scan import Run, mark_of
from lobstertrap.repository.snapshot import Owners
from lobstertrap.repository.source import common_fields
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

    def begin(self, run: Run, places: Sequence[int]) -> Future[list[Row]]:
        """Begin to read the regular files at some places of a run.

        The rows come in the order of the places; `IntegrityError` for a file that
        changes or vanishes meanwhile.
        """
        # The walk closes its handle when it goes on.
        later = run._replace(parent=os.dup(run.parent))
        return self._pool.submit(self._read, later, places)

    def _read(self, run: Run, places: Sequence[int]) -> list[Row]:
        try:
            small = self._read_small(run, places)
            buffer = memoryview(bytearray(0 if len(small) == len(places) else _BUFFER))
            return [
                small.get(place) or file_row(run.found(place), self._owners, buffer)
                for place in places
            ]
        finally:
            os.close(run.parent)

    def _read_small(self, run: Run, places: Sequence[int]) -> dict[int, Row]:
        """Return the rows by place of files that are as simple as most are."""
        stats = run.stats
        device = stats[places[0]].st_dev
        few = [
            place
            for place in places
            if stats[place].st_size <= WHOLE and stats[place].st_dev == device
        ]
        marks = [mark_of(stats[place]) for place in few]
        names = [run.names[place] for place in few]
        contents = read_files(run.parent, names, marks, device)
        return {
            place: (
                *common_fields(
                    run.paths[place], FILE, self._owners, None, stats[place]
                ),
                len(data),
                blake3(data).digest(),
            )
            for place, data in zip(few, contents, strict=True)
            if data is not None
        }
