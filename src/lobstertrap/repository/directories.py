"""Handles of the directories that a restore writes into; no link diverts them."""

from __future__ import annotations

import errno
import os
import secrets
import stat as st
from collections.abc import Mapping

from blake3 import blake3

from lobstertrap.errors import Conflict, IntegrityError
from lobstertrap.repository.entry import shown
from lobstertrap.repository.scan import DIRECTORY_FLAGS

TEMPORARY_PREFIX = ".lobstertrap-tmp-"
_TEMPORARY_LENGTH = len(TEMPORARY_PREFIX) + 16


def temporary_name() -> str:
    """Return a new name that a later restore recognises and sweeps."""
    return TEMPORARY_PREFIX + secrets.token_hex(8)


def is_temporary(name: str) -> bool:
    """Say whether a killed restore may have left this."""
    return name.startswith(TEMPORARY_PREFIX) and len(name) == _TEMPORARY_LENGTH


class Directory:
    """An open directory; closed when nobody holds it any more."""

    __slots__ = ("_holders", "fresh", "handle", "path", "staged")

    def __init__(
        self, path: bytes, handle: int, *, fresh: bool, staged: bytes = b""
    ) -> None:
        self.path = path
        self.handle = handle
        self.fresh = fresh
        """This restore has made it, and nobody else sees it yet."""
        self.staged = staged
        """The name that it has until the end, when that is another one."""
        self._holders = 1

    def hold(self) -> Directory:
        """Count one more holder."""
        self._holders += 1
        return self

    def release(self) -> None:
        """Count one less; the last one closes."""
        self._holders -= 1
        if self._holders == 0:
            os.close(self.handle)
            self.handle = -1


def look(name: str | bytes, parent: int) -> os.stat_result | None:
    """Return what is called `name`, or None."""
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def make_directory(
    parent: Directory, name: bytes, path: bytes, *, replace: bool
) -> Directory:
    """Open the directory `name` in `parent`, made when it is not there.

    A new one in an old one gets a name of its own until everything is in it
    (`staged`), so files in it need no temporary names. Anything else called `name` is
    removed when `replace` says so, else `Conflict`.
    """
    present = None if parent.fresh else look(name, parent.handle)
    if present is not None and not st.S_ISDIR(present.st_mode):
        if not replace:
            raise in_the_way(path, "not a directory")
        os.unlink(name, dir_fd=parent.handle)
        present = None
    fresh = present is None
    staged = b""
    if fresh and not parent.fresh:
        staged = staging_name(path)
        # A killed restore may have filled it: what is right in it is kept.
        fresh = look(staged, parent.handle) is None
    if fresh:
        os.mkdir(staged or name, 0o700, dir_fd=parent.handle)
    try:
        handle = os.open(staged or name, DIRECTORY_FLAGS, dir_fd=parent.handle)
    except PermissionError:
        handle = _open_own(staged or name, parent.handle)
    return Directory(path, handle, fresh=fresh, staged=staged)


def staging_name(path: bytes) -> bytes:
    """Return the temporary name of a new directory: the same for every restore."""
    return (TEMPORARY_PREFIX + blake3(path).hexdigest(8)).encode()


def in_the_way(path: bytes, what: str) -> Conflict:
    """Return the error for something that a restore will not replace by itself."""
    return Conflict(
        f"{shown(path)} is in the way: it is {what} here but not in the snapshot",
        hint="restore into an empty directory, or ask for extra files to be removed",
    )


def _open_own(name: bytes, parent: int) -> int:
    # Our own directory, but closed to us; its mode is set again at the end.
    handle = os.open(name, os.O_PATH | DIRECTORY_FLAGS, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)  # noqa: PTH101 - by handle
    finally:
        os.close(handle)
    return os.open(name, DIRECTORY_FLAGS, dir_fd=parent)


class DirectoryPaths:
    """Opens directories below the roots by path, keeping the last chain open."""

    def __init__(self, roots: Mapping[bytes, int]) -> None:
        self._roots = roots
        self._chain: list[tuple[bytes, int]] = []

    def open(self, path: bytes) -> int:
        """Return a handle that is valid until the next call; never follows a link."""
        volume = path.partition(b"/")[0]
        if volume not in self._roots:
            raise IntegrityError(f"{shown(path)} is in no volume of the snapshot")
        while self._chain and not _within(path, self._chain[-1][0]):
            os.close(self._chain.pop()[1])
        at = self._chain[-1][0] if self._chain else volume
        handle = self._chain[-1][1] if self._chain else self._roots[volume]
        rest = path[len(at) + 1 :] if path != at else b""
        for part in rest.split(b"/") if rest else []:
            handle = self._step(handle, part, path)
            at += b"/" + part
            self._chain.append((at, handle))
        return handle

    @staticmethod
    def _step(handle: int, part: bytes, path: bytes) -> int:
        try:
            return os.open(part, DIRECTORY_FLAGS, dir_fd=handle)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                raise IntegrityError(
                    f"{shown(path)} was changed by something else during the restore"
                ) from error
            raise

    def close(self) -> None:
        """Close what is still open."""
        while self._chain:
            os.close(self._chain.pop()[1])


def _within(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory + b"/")


def remove_tree(name: bytes, parent: int) -> int:
    """Remove `name` and everything below it without following links; says how much."""
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        pass
    except PermissionError:  # POSIX allows this answer for a directory
        present = look(name, parent)
        if present is None or not st.S_ISDIR(present.st_mode):
            raise
    except FileNotFoundError:
        return 0
    else:
        return 1
    try:
        handle = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
    except PermissionError:
        handle = _open_own(name, parent)
    removed = 1
    try:
        for below in os.listdir(handle):  # noqa: PTH208 - by handle
            removed += remove_tree(os.fsencode(below), handle)
    finally:
        os.close(handle)
    os.rmdir(name, dir_fd=parent)
    return removed
