"""What a disk says of one name, and how a file is opened to be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from lobstertrap.repository.entry import kept_xattr

FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_QUIET_FLAGS = FILE_FLAGS | getattr(os, "O_NOATIME", 0)


class LightStatus(NamedTuple):
    """What is used of an `os.stat_result`, which takes longer to make."""

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_blocks: int
    st_rdev: int


Status = os.stat_result | LightStatus

Stat = tuple[int, int]
"""ctime in nanoseconds (0: not to be trusted) and inode."""

NO_STAT: Stat = (0, 0)

Mark = tuple[int, int, int, int, int]
"""ctime, inode, mtime, size and number of names, as they look on a disk."""


mark_of: Callable[[Status], Mark] = attrgetter(
    "st_ctime_ns", "st_ino", "st_mtime_ns", "st_size", "st_nlink"
)
"""Return the mark of something."""


def open_quietly(name: str | bytes, parent: int) -> int:
    """Open a file for reading, and leave its access time alone where that is allowed.

    A file system writes down every access time that changes.
    """
    try:
        return os.open(name, _QUIET_FLAGS, dir_fd=parent)
    except PermissionError:  # somebody else's, perhaps
        return os.open(name, FILE_FLAGS, dir_fd=parent)


def read_xattrs(target: int | str) -> tuple[tuple[bytes, bytes], ...] | None:
    """Return the extended attributes that belong to the data, sorted; None for none."""
    try:
        names = os.listxattr(target)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.ENODATA):
            return None
        raise
    if not names:
        return None
    kept = sorted(raw for name in names if kept_xattr(raw := os.fsencode(name)))
    pairs = []
    for raw in kept:
        try:
            pairs.append((raw, os.getxattr(target, raw)))
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed meanwhile
                raise
    return tuple(pairs) or None
