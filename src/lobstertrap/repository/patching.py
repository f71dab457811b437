"""A patch: a large file that is changed where it is, instead of being written anew.

For a volume that nothing uses until it is verified, as a migration's destination. What
is killed half-way is no file that ever was, and must never pass for one: so before the
first byte changes, the file gets a time that no snapshot gave it, and that is on the
disk. Whoever comes next, after a power failure too, reads it and goes on.
"""

from __future__ import annotations

import os
import stat as st

from lobstertrap.repository.attributes import Attributes
from lobstertrap.repository.directories import Directory
from lobstertrap.repository.entry import MTIME, SIZE, Row
from lobstertrap.repository.placer import Target
from lobstertrap.repository.status import FILE_FLAGS

LARGE = 1 << 20
"""Bytes from which on a file is worth patching."""

_FLAGS = FILE_FLAGS & ~os.O_ACCMODE | os.O_RDWR


class Patch(Target):
    """A file that keeps its name and its inode while it is restored."""

    __slots__ = ()

    in_place = True

    def open(self) -> None:
        """Give the file its size, and mark it as unfinished."""
        self.resize()
        mark = int(self.row[MTIME] == 0)
        os.utime(self.handle, ns=(mark, mark))

    def keep(self, data: memoryview, offset: int) -> None:
        """Leave a piece that is there already."""

    def finish(self, attributes: Attributes) -> int:
        """Give the file its attributes; the time comes last. Returns its handle."""
        attributes.apply_existing(self.handle, self.row, os.fstat(self.handle))
        handle, self.handle = self.handle, -1
        return handle

    def abandon(self) -> None:
        """Leave the file as it is: the next restore goes on with it."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


def open_patch(
    row: Row,
    number: int,
    name: bytes,
    directory: Directory,
    *,
    present: os.stat_result,
    owner: tuple[int, int],
) -> Patch | None:
    """Return a patch of the file that is there; None where it must be written anew."""
    fit = min(row[SIZE], present.st_size) >= LARGE and present.st_nlink == 1
    ours = os.geteuid() in (0, present.st_uid)
    if not fit or not ours or (present.st_uid, present.st_gid) != owner:
        return None
    try:
        handle = os.open(name, _FLAGS, dir_fd=directory.handle)
    except OSError:  # read-only, immutable, being executed
        return None
    status = os.fstat(handle)
    if not st.S_ISREG(status.st_mode) or status.st_ino != present.st_ino:
        os.close(handle)
        return None
    patch = Patch(row, name, directory, number)
    patch.handle = handle
    return patch
