"""The proof of a restore: every entry is read back from the disk and compared."""

from __future__ import annotations

import os
import stat as st
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from lobstertrap.repository.attributes import (
    DEVICES_LEFT,
    OTHERS_LEFT,
    OWNERS_LEFT,
    SET_ID_BITS,
    SET_ID_LEFT,
    XATTRS_LEFT,
)
from lobstertrap.repository.digest import tree_digest_of
from lobstertrap.repository.entry import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    GID,
    MODE,
    MTIME,
    PATH,
    TYPE,
    UID,
    XATTRS,
    Row,
)
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.parent import Parent
from lobstertrap.repository.reading_back import ReadingBack, Waiting
from lobstertrap.repository.scan import Found, Run, walk_runs
from lobstertrap.repository.snapshot import Owners
from lobstertrap.repository.status import Status
from lobstertrap.repository.tree_digest import disk_row
from lobstertrap.repository.written import Written

_AHEAD = 4
"""Directories, or parts of them, that are read while an earlier one is compared."""

_READING = 64
"""Readings ahead: each has a file or a directory open."""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What reading back found."""

    digest: str = ""
    wrong: list[bytes] = field(default_factory=list)
    """Paths that are not what the snapshot says."""
    stats: array[int] = field(default_factory=lambda: array("q"))
    """ctime (0: too fresh to be trusted) and inode of every entry."""


def verify(
    expected: Iterable[Row],
    handles: Mapping[str, int],
    owners: Owners,
    excludes: Mapping[str, Exclude],
    *,
    excused: frozenset[str] | set[str],
    extra_allowed: bool,
    landed: Parent,
    written: Written,
    trusted_before: int,
    on_rows: Callable[[Sequence[Row]], None],
) -> Verdict:
    """Compare the disk with `expected`, which comes in walk order.

    A file is read, unless its ctime and inode are still those that it had when it was
    read before: when this restore had `written` it, or when its entry `landed` here in
    an earlier one and was verified.

    What could not be set as this user (`excused`) counts as set. Files that the
    snapshot does not have are passed over when they are allowed or excluded.
    """
    verdict = Verdict()
    with ReadingBack(owners) as reading:
        checker = _Checker(
            owners,
            excused,
            verdict,
            reading=reading,
            extra_allowed=extra_allowed,
            landed=landed,
            written=written,
            trusted_before=trusted_before,
            on_rows=on_rows,
        )
        disk = _disk(handles, excludes, verdict)
        rows = checker.rows(_Expected(iter(expected)), disk)
        verdict.digest = tree_digest_of(rows).hex()
    return verdict


def _disk(
    handles: Mapping[str, int], excludes: Mapping[str, Exclude], verdict: Verdict
) -> Iterator[Found | Run]:
    for volume, root in handles.items():
        yield from walk_runs(root, volume, excludes[volume], verdict.wrong.append)


@dataclass(slots=True)
class _Compared:
    """Entries that are compared together: those of the snapshot, those of the disk."""

    rows: list[Row]
    real: list[Row | None]
    later: list[int]
    """Places of what is still being read."""
    reading: Sequence[Waiting] = ()


class _Checker:
    def __init__(
        self,
        owners: Owners,
        excused: frozenset[str] | set[str],
        verdict: Verdict,
        *,
        reading: ReadingBack,
        extra_allowed: bool,
        landed: Parent,
        written: Written,
        trusted_before: int,
        on_rows: Callable[[Sequence[Row]], None],
    ) -> None:
        self._owners = owners
        self._excused = excused
        self._verdict = verdict
        self._reading = reading
        self._extra_allowed = extra_allowed
        self._on_rows = on_rows
        self._landed = landed
        self._written = written
        self._trusted_before = trusted_before
        self._first: dict[tuple[int, int], Row] = {}
        self._buffer = memoryview(bytearray(1 << 20))

    def rows(self, expected: _Expected, disk: Iterator[Found | Run]) -> Iterator[Row]:
        """Yield the rows of the disk, with what is excused as it should be."""
        begun: deque[_Compared] = deque()
        for found in disk:
            run = found if isinstance(found, Run) else _alone(found)
            begun.append(self._begin(run, expected, found))
            while len(begun) > _AHEAD or sum(len(c.reading) for c in begun) > _READING:
                yield from self._judge(begun.popleft())
        for compared in begun:
            yield from self._judge(compared)
        for row in expected.rest():
            self._verdict.stats.extend((0, 0))
            self._on_rows([row])
            yield from self._judge(_Compared([row], [None], []))

    def _begin(self, run: Run, expected: _Expected, found: Found | Run) -> _Compared:
        """Look at names beside their entries, and begin to read what has to be read."""
        stats, before = run.stats, self._trusted_before
        every = expected.exactly(run.paths)
        if every is None:
            joined, held = expected.joined(run.paths), [False] * len(stats)
        else:
            held = self._written.hold(len(self._verdict.stats) // 2, every, stats)
            if all(held):
                return self._as_written(every, stats)
            joined = zip(every, range(len(every)), strict=True)
        rows: list[Row] = []
        real: list[Row | None] = []
        noted: list[int] = []
        later: list[int] = []
        places: list[int] = []
        for row, place in joined:
            if row is None:
                self._tell_extra(run.paths[place], stats[place])
                continue
            rows.append(row)
            if place < 0:
                real.append(None)
                noted += (0, 0)
                continue
            status = stats[place]
            ctime, inode = status.st_ctime_ns, _signed(status.st_ino)
            noted += (ctime if ctime < before else 0, inode)
            single = status.st_nlink == 1
            landed = single and self._landed and self._has_landed(row, ctime, inode)
            if held[place] or landed:
                real.append(row)
            elif single and st.S_ISREG(status.st_mode):
                later.append(len(real))
                places.append(place)
                real.append(None)
            else:
                one = run.found(place) if isinstance(found, Run) else found
                real.append(disk_row(one, self._owners, self._first, self._buffer))
        self._verdict.stats.extend(noted)
        self._on_rows(rows)
        reading = self._reading.begin(run, places) if places else ()
        return _Compared(rows, real, later, reading)

    def _as_written(self, rows: list[Row], stats: Sequence[Status]) -> _Compared:
        """Take rows as proved: their files are still what was read back."""
        for status in stats:
            ctime = status.st_ctime_ns
            trusted = ctime if ctime < self._trusted_before else 0
            self._verdict.stats.extend((trusted, _signed(status.st_ino)))
        self._on_rows(rows)
        return _Compared(rows, [*rows], [])

    def _has_landed(self, row: Row, ctime: int, inode: int) -> bool:
        """Say whether an earlier restore has verified an entry as it is."""
        known = self._landed.match(row[PATH])
        return known is not None and known.stat == (ctime, inode) and known.row == row

    def _tell_extra(self, path: bytes, status: Status) -> None:
        if not self._extra_allowed and not st.S_ISSOCK(status.st_mode):
            self._verdict.wrong.append(path)

    def _judge(self, compared: _Compared) -> Iterator[Row]:
        """Yield the rows of the disk of what was compared, and note what is wrong."""
        read = chain.from_iterable(waiting() for waiting in compared.reading)
        for place, row in zip(compared.later, read, strict=True):
            compared.real[place] = row
        if compared.real == compared.rows:
            yield from compared.rows
            return
        for row, real in zip(compared.rows, compared.real, strict=True):
            if real != row:
                if not self._excusable(row, real):
                    self._verdict.wrong.append(row[PATH])
                else:
                    yield row
                    continue
            if real is not None:
                yield real

    def _excusable(self, row: Row, real: Row | None) -> bool:
        if real is None:
            device = row[TYPE] in (CHARACTER_DEVICE, BLOCK_DEVICE)
            return device and DEVICES_LEFT in self._excused
        if len(row) != len(real):
            return False
        allowed = set()
        if OWNERS_LEFT in self._excused:
            allowed |= {UID, GID}
        if XATTRS_LEFT in self._excused:
            allowed.add(XATTRS)
        if (
            SET_ID_LEFT in self._excused
            and (row[MODE] ^ real[MODE]) & ~SET_ID_BITS == 0
        ):
            allowed.add(MODE)
        if OTHERS_LEFT in self._excused and row[TYPE] == DIRECTORY:
            allowed |= {MODE, MTIME}
        differing = {i for i in range(len(row)) if row[i] != real[i]}
        return differing <= allowed


class _Expected:
    """The snapshot's rows, joined by path with what a walk finds."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self._held: deque[Row] = deque()
        """Taken from `rows`, and not joined with anything yet."""

    def exactly(self, paths: list[bytes]) -> list[Row] | None:
        """Take the next rows if they are called as the paths are."""
        self._held.extend(islice(self._rows, max(0, len(paths) - len(self._held))))
        rows = [*islice(self._held, len(paths))]
        if [row[PATH] for row in rows] != paths:
            return None
        for _ in rows:
            self._held.popleft()
        return rows

    def joined(self, paths: list[bytes]) -> Iterator[tuple[Row | None, int]]:
        """Yield the rows up to the last path, each with its place among `paths`.

        The place is -1 for a row that is not on the disk, the row None for a path that
        is not in the snapshot.
        """
        for place, path in enumerate(paths):
            yield from self._at(place, path)

    def _at(self, place: int, path: bytes) -> Iterator[tuple[Row | None, int]]:
        wanted = _key(path)
        while (row := self._peek()) is not None and _key(row[PATH]) < wanted:
            yield self._held.popleft(), -1
        same = row is not None and row[PATH] == path
        yield (self._held.popleft() if same else None), place

    def _peek(self) -> Row | None:
        if not self._held:
            self._held.extend(islice(self._rows, 1))
        return self._held[0] if self._held else None

    def rest(self) -> Iterator[Row]:
        """Yield the rows after everything on the disk."""
        yield from self._held
        yield from self._rows


def _alone(found: Found) -> Run:
    """Return a directory as a run of its own."""
    name = os.fsencode(found.name)
    return Run([found.path], [name], [found.stat], found.parent, found.siblings)


def _signed(inode: int) -> int:
    return inode - (1 << 64) if inode >> 63 else inode


def _key(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")
