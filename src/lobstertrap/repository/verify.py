"""The proof of a restore: every entry is read back from the disk and compared."""

from __future__ import annotations

import stat as st
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

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
from lobstertrap.repository.scan import Found, walk
from lobstertrap.repository.snapshot import Owners
from lobstertrap.repository.tree_digest import disk_row


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
    trusted_before: int,
    on_row: Callable[[Row], None],
) -> Verdict:
    """Compare the disk with `expected`, which comes in walk order.

    A file is read, unless its entry is one that `landed` here in an earlier restore,
    was verified then, and its ctime and inode are still the same.

    What could not be set as this user (`excused`) counts as set. Files that the
    snapshot does not have are passed over when they are allowed or excluded.
    """
    verdict = Verdict()
    checker = _Checker(
        owners,
        excused,
        verdict,
        landed=landed,
        trusted_before=trusted_before,
        on_row=on_row,
    )
    disk = _disk(handles, excludes, verdict)
    verdict.digest = tree_digest_of(
        checker.rows(iter(expected), disk, extra_allowed=extra_allowed)
    ).hex()
    return verdict


def _disk(
    handles: Mapping[str, int], excludes: Mapping[str, Exclude], verdict: Verdict
) -> Iterator[Found]:
    for volume, root in handles.items():
        yield from walk(root, volume, excludes[volume], verdict.wrong.append)


class _Checker:
    def __init__(
        self,
        owners: Owners,
        excused: frozenset[str] | set[str],
        verdict: Verdict,
        *,
        landed: Parent,
        trusted_before: int,
        on_row: Callable[[Row], None],
    ) -> None:
        self._owners = owners
        self._excused = excused
        self._verdict = verdict
        self._on_row = on_row
        self._landed = landed
        self._trusted_before = trusted_before
        self._first: dict[tuple[int, int], Row] = {}
        self._buffer = memoryview(bytearray(1 << 20))

    def rows(
        self, expected: Iterator[Row], disk: Iterator[Found], *, extra_allowed: bool
    ) -> Iterator[Row]:
        """Yield the rows of the disk, with what is excused as it should be."""
        wrong = self._verdict.wrong
        for row, found in _side_by_side(expected, disk):
            if row is None:
                socket = found is None or st.S_ISSOCK(found.stat.st_mode)
                if found is not None and not socket and not extra_allowed:
                    wrong.append(found.path)
                continue
            self._on_row(row)
            known = self._landed.match(row[PATH])
            if found is None:
                self._verdict.stats.extend((0, 0))
                real = None
            else:
                ctime, inode = found.stat.st_ctime_ns, found.stat.st_ino
                trusted = ctime if ctime < self._trusted_before else 0
                self._verdict.stats.extend((trusted, _signed(inode)))
                if (
                    known is not None
                    and known.stat == (ctime, _signed(inode))
                    and known.row == row
                    and found.stat.st_nlink == 1
                ):
                    yield row
                    continue
                real = self._read(found)
            if real != row:
                if self._excusable(row, real):
                    real = row
                else:
                    wrong.append(row[PATH])
            if real is not None:
                yield real

    def _read(self, found: Found) -> Row | None:
        return disk_row(found, self._owners, self._first, self._buffer)

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


def _signed(inode: int) -> int:
    return inode - (1 << 64) if inode >> 63 else inode


def _side_by_side(
    expected: Iterator[Row], disk: Iterator[Found]
) -> Iterator[tuple[Row | None, Found | None]]:
    """Join two sequences in walk order by path."""
    row, found = next(expected, None), next(disk, None)
    while row is not None or found is not None:
        if row is not None and found is not None and row[PATH] == found.path:
            yield row, found
            row, found = next(expected, None), next(disk, None)
        elif found is None or (row is not None and _key(row[PATH]) < _key(found.path)):
            yield row, None
            row = next(expected, None)
        else:
            yield None, found
            found = next(disk, None)


def _key(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")
