"""The order of a tree's entries: each after its directory, none twice.

A page that many snapshots share is gone through once: what it needs of those before it,
and leaves to those after it, is its `Shape`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.entry import DIRECTORY, PATH, TYPE, Row, shown


class Shape(NamedTuple):
    """What the order of a page's entries means for the pages around it."""

    first: bytes
    """Its first path."""
    last: bytes
    """The key of its last one."""
    needs: tuple[tuple[bytes, bytes], ...]
    """Directories that were entered before the page, as it comes back to them, each
    with the first entry that is in it."""
    leaves: tuple[bytes, ...]
    """Directories that the page entered and that are still open after it."""


def shape_of(rows: Iterable[Row]) -> Shape:
    """Return the shape of one page; raises `IntegrityError` if it has none."""
    first: bytes | None = None
    previous = b""
    needs: list[tuple[bytes, bytes]] = []
    open_here: list[bytes] = []
    for row in rows:
        path = row[PATH]
        first = path if first is None else first
        previous = _after(previous, path)
        parent = path.rpartition(b"/")[0]
        while open_here and open_here[-1] != parent:
            open_here.pop()
        if not parent:
            _check_volume(row)
        if not open_here and (not needs or needs[-1][0] != parent):
            needs.append((parent, path))
        if row[TYPE] == DIRECTORY:
            open_here.append(path)
    return Shape(first or b"", previous, tuple(needs), tuple(open_here))


class Order:
    """Follows a tree from its first entry on, by pages or by rows."""

    def __init__(self) -> None:
        self._previous = b""
        self._open: list[bytes] = []

    def follow(self, shape: Shape) -> None:
        """Go over one page; raises `IntegrityError` if it cannot come here."""
        _after(self._previous, shape.first)
        for parent, path in shape.needs:
            while self._open and self._open[-1] != parent:
                self._open.pop()
            if parent and not self._open:
                raise IntegrityError(f"the entry {shown(path)} has no directory")
        self._open += shape.leaves
        self._previous = shape.last

    def allows(self, row: Row) -> bool:
        """Say whether an entry may come next, and if so go over it."""
        try:
            self.follow(shape_of([row]))
        except IntegrityError:
            return False
        return True


def _after(previous: bytes, path: bytes) -> bytes:
    key = path.replace(b"/", b"\0")
    if key <= previous:
        raise IntegrityError(f"the entry {shown(path)} is out of order")
    return key


def _check_volume(row: Row) -> None:
    if row[TYPE] != DIRECTORY:
        raise IntegrityError(f"the entry {shown(row[PATH])} has no directory")
