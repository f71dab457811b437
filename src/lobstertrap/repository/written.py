"""What a restore has written and read back at once: a last look at it is enough."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import repeat
from operator import attrgetter, eq, itemgetter

from lobstertrap.repository.entry import MTIME, Row
from lobstertrap.repository.status import Stat, Status

_look = attrgetter("st_ctime_ns", "st_ino", "st_mtime_ns", "st_nlink")

_MORE = 4096
"""Entries that room is made for at a time."""


class Written:
    """How files looked when they were read back, by the number of their entry.

    Numbers count the entries of one restore, in walk order. `expect` is for one thread,
    `note` for several, and `hold` for when all is written.
    """

    def __init__(self) -> None:
        self._ctimes = array("q")
        self._inodes = array("Q")

    def expect(self, number: int) -> None:
        """Forget how an entry looked: it is about to be written."""
        while number >= len(self._ctimes):
            self._ctimes.frombytes(bytes(8 * _MORE))
            self._inodes.frombytes(bytes(8 * _MORE))
        self.note(number, (0, 0))

    def note(self, number: int, stat: Stat) -> None:
        """Remember how an expected entry looks; `NO_STAT` for one to be read again."""
        self._ctimes[number], self._inodes[number] = stat

    def hold(
        self, first: int, rows: Sequence[Row], stats: Sequence[Status]
    ) -> list[bool]:
        """Say of entries in a row whether each still is what was read back.

        A write since then shows in its ctime; in the same tick of the kernel's clock,
        in its mtime, which is not the one that it was given.
        """
        last = first + len(rows)
        ctimes, inodes = self._ctimes[first:last], self._inodes[first:last]
        if not any(ctimes):
            return [False] * len(rows)
        mtimes = map(itemgetter(MTIME), rows)
        noted = zip(ctimes, inodes, mtimes, repeat(1), strict=False)
        held = [*map(eq, noted, map(_look, stats))]
        return held + [False] * (len(rows) - len(held))
