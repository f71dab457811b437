"""The reach of snapshots: which blobs they need, found by visiting each page once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.blobs import BlobReader
from lobstertrap.repository.entry import FILE, TYPE, content_items, decode_page
from lobstertrap.repository.format import HOLE
from lobstertrap.repository.index import Index, IndexTable, PackInfo
from lobstertrap.repository.tree import decode_branch

Branches = Iterable[tuple[bytes, bytes]]
Rank = Callable[[PackInfo], float]
"""How gladly a copy in this pack is used: low is good, infinity is never."""


def visit(blobs: BlobReader, branches: Branches, need: Callable[[bytes], bool]) -> None:
    """Call `need` for every blob of a snapshot.

    What a page leads to is passed over when `need` says False for the page: it was
    visited before, for another snapshot. Raises `IntegrityError` for damaged pages.
    """
    for branch_id, stat_id in branches:
        need(stat_id)
        if need(branch_id):
            for page_id, _, _, _ in decode_branch(blobs.page(branch_id)):
                if need(page_id):
                    _visit_entries(blobs, page_id, need)


def _visit_entries(
    blobs: BlobReader, page_id: bytes, need: Callable[[bytes], bool]
) -> None:
    rows, contents = decode_page(blobs.page(page_id))
    files = (row for row in rows if row[TYPE] == FILE)
    for _, content in zip(files, contents, strict=True):
        pages: Iterable[bytes] = [content] if isinstance(content, bytes) else ()
        if not isinstance(content, bytes):
            pages = (blobs.page(page) for page in content if need(page))
        for page in pages:
            for chunk_id, _ in content_items(page, 0):
                if chunk_id != HOLE:
                    need(chunk_id)


class Needed:
    """Which blobs are needed: one byte for each row of the index, and no set of ids.

    Of a blob that several packs have, the copy in the pack of the lowest rank is it.
    """

    def __init__(self, index: Index, rank: Rank) -> None:
        self._tables = index.tables
        self._ranks = [[rank(s.pack) for s in table.segments] for table in self._tables]
        self._segments = [table.columns[0] for table in self._tables]
        self._marks = [bytearray(len(table)) for table in self._tables]

    def add(self, blob_id: bytes) -> bool:
        """Mark a blob and say whether that was new; `IntegrityError` if it is lost."""
        best, place = math.inf, None
        for number, table in enumerate(self._tables):
            for row in table.rows(blob_id):
                rank = self._ranks[number][self._segments[number][row]]
                if rank < best:
                    best, place = rank, (number, row)
        if place is None:
            raise IntegrityError(
                f"blob {blob_id.hex()} is in no pack",
                hint="run `lobstertrap check`, then `lobstertrap repair`",
            )
        number, row = place
        if self._marks[number][row]:
            return False
        self._marks[number][row] = 1
        return True

    def tables(self) -> Iterator[tuple[IndexTable, bytearray]]:
        """Yield each table of the index with the marks of its rows."""
        yield from zip(self._tables, self._marks, strict=True)
