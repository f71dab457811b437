"""What a directory store does to the file system: durable, locked, swept."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lobstertrap import errors

_KINDS: dict[int, type[errors.LobsterTrapError]] = {
    errno.ENOSPC: errors.NoSpace,
    errno.EDQUOT: errors.NoSpace,
    errno.EACCES: errors.AccessDenied,
    errno.EPERM: errors.AccessDenied,
    errno.EROFS: errors.AccessDenied,
    errno.ENOTDIR: errors.InvalidInput,
    errno.EISDIR: errors.InvalidInput,
    errno.ENAMETOOLONG: errors.InvalidInput,
}
_HINTS: dict[type[errors.LobsterTrapError], str] = {
    errors.NoSpace: "free space on the store's disk",
    errors.AccessDenied: "let this user write the store's directory",
    errors.InvalidInput: "no object may lie below another one, or below a file",
}


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise one of our errors for every OSError in the block."""
    try:
        yield
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, errors.Unavailable)
        raise kind(
            f"{doing} failed: {error.strerror}", hint=_HINTS.get(kind)
        ) from error


def create_locked(directory: Path) -> tuple[int, Path]:
    """Return a new file that its creator has locked, and where it is."""
    while True:
        path = directory / secrets.token_hex(12)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        if try_lock(descriptor) and os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)  # a sweep was quicker: it removes the file


def look(path: Path) -> os.stat_result | None:
    """Return what the object's file is, or None when there is no such file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def make_directories(path: Path) -> list[Path]:
    """Make `path` and what is missing above; return the directories to be synced."""
    if path.is_dir():
        return []
    changed = make_directories(path.parent)
    with contextlib.suppress(FileExistsError):  # another process was quicker
        path.mkdir(mode=0o700)
    return [path.parent, *changed]


def sync_directories(paths: Sequence[Path]) -> None:
    """Make renames and new directories outlive a loss of power."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # emptied and removed by another
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the file's lock if nobody has it, and say whether; closing frees it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sweep(temporary: Path) -> None:
    """Remove the files whose writers are dead: nobody holds their locks any more."""
    for path in list(temporary.iterdir()):
        with contextlib.suppress(OSError):  # swept by another, or not ours: leave it
            descriptor = os.open(path, os.O_RDWR)
            try:
                if try_lock(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)
