"""SQLite databases under a running agent: database and log are read as one set.

A database without a log is whole as it is, if it did not change from before it was read
until after it was seen to have none. With a log, the set restores well when the
database did not change from before it was read until after its log was, and the log was
not restarted meanwhile: then the log holds every change that the database lacks, and a
torn frame at its end fails its checksum and is ignored (SQLite, "Write-Ahead Logging" 4
and "Atomic Commit" 4). What does not hold still is read again and then named in the
warnings.
"""

from __future__ import annotations

import os
import time

from lobstertrap.repository.directories import look
from lobstertrap.repository.reading import CHANGED, READINGS, FileReader, Reading
from lobstertrap.repository.scan import Found
from lobstertrap.repository.source import same_version
from lobstertrap.repository.status import open_quietly
from lobstertrap.repository.tree import Known
from lobstertrap.repository.warnings import Warnings

_LOGS = (b"-wal", b"-journal")
_SHARED_MEMORY = b"-shm"
_LOG_HEADER = 32
_PAGE = 512
"""What the size of every database is a multiple of."""
_PAUSE = 0.05

UNSTEADY = "was written while its log was read: the copy may need repair"


class LiveFiles:
    """Reads a set when the walk comes to the database, and holds it until it is due."""

    def __init__(self, reader: FileReader, warnings: Warnings) -> None:
        self._reader = reader
        self._warnings = warnings
        self._held: dict[bytes, Reading] = {}
        self._ended: set[bytes] = set()

    def take(self, path: bytes) -> Reading | None:
        """Return what was read for `path` before the walk came there."""
        return self._held.pop(path, None)

    def is_over(self, path: bytes) -> bool:
        """Say whether `path` is a log that was gone when its database was read.

        One that has its name by now belongs to a later state of the database.
        """
        return path in self._ended

    def look(self, found: Found, known: Known | None) -> None:
        """Read `found` and its logs as a set, if it may be a database.

        `known` says that the database itself is unchanged since the parent.
        """
        name = os.fsencode(found.name)
        if name.endswith(_SHARED_MEMORY):  # SQLite makes it anew; it is never calm
            self._hold(found, self._reader.read(found, readings=1))
            return
        logs = [suffix for suffix in _LOGS if name + suffix in found.siblings]
        if not logs:
            if known is None and found.stat.st_size % _PAGE == 0:
                self._read_alone(found, name)
            return
        for left in reversed(range(READINGS)):
            if self._read_set(found, known, logs):
                return
            known = None
            if left:
                time.sleep(_PAUSE)
        self._warnings.add(found.path, UNSTEADY)

    def _read_alone(self, found: Found, name: bytes) -> None:
        """Read what had no log when the directory was listed; it may have one by now.

        The walk would not come to that one, so the database has to do without.
        """
        for left in reversed(range(READINGS)):
            reading = self._reader.read(found, readings=1)
            self._hold(found, reading)
            if reading is None:
                return
            alone = all(
                look(os.fsdecode(name + s), found.parent) is None for s in _LOGS
            )
            now = look(found.name, found.parent)
            still = now is not None and same_version(reading.status, now)
            if reading.calm and alone and still:
                return
            if left:
                time.sleep(_PAUSE)
        self._warnings.add(found.path, CHANGED if alone else UNSTEADY)

    def _read_set(self, found: Found, known: Known | None, logs: list[bytes]) -> bool:
        """Read a database and its logs; says whether they belong together."""
        status = found.stat
        if known is None:
            reading = self._reader.read(found, readings=1)
            self._hold(found, reading)
            if reading is None or not reading.calm:
                return False
            status = reading.status
        steady = True
        for suffix in logs:
            log = _sibling(found, suffix)
            if log is None:
                self._over(found.path + suffix)
            else:
                steady = self._read_log(log) and steady
        now = look(found.name, found.parent)
        return steady and now is not None and same_version(status, now)

    def _read_log(self, log: Found) -> bool:
        before = _header(log)
        reading = self._reader.read(log, readings=1)
        self._hold(log, reading)
        if reading is None:  # the transaction ended; the database tells
            return self._over(log.path)
        return reading.calm or (before == _header(log) and len(before) == _LOG_HEADER)

    def _over(self, path: bytes) -> bool:
        self._held.pop(path, None)
        self._ended.add(path)
        return True

    def _hold(self, found: Found, reading: Reading | None) -> None:
        if reading is None:
            self._held.pop(found.path, None)
        else:
            self._held[found.path] = reading
            self._ended.discard(found.path)


def _sibling(found: Found, suffix: bytes) -> Found | None:
    name = found.name + os.fsdecode(suffix)
    status = look(name, found.parent)
    if status is None:
        return None
    return Found(found.path + suffix, name, found.parent, status, -1)


def _header(log: Found) -> bytes:
    try:
        handle = open_quietly(log.name, log.parent)
    except OSError:
        return b""
    try:
        return os.pread(handle, _LOG_HEADER, 0)
    finally:
        os.close(handle)
