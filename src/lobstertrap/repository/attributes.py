"""Owners, modes, extended attributes and times: set as far as the user may."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import lru_cache, partial

from lobstertrap.repository.entry import GID, MODE, MTIME, UID, XATTRS, Row, kept_xattr
from lobstertrap.repository.snapshot import Owners
from lobstertrap.repository.status import read_xattrs
from lobstertrap.repository.warnings import Warnings

SET_ID_BITS = 0o6000

OWNERS_LEFT = "owners could not be set as this user: files belong to the invoking user"
XATTRS_LEFT = "some extended attributes or ACLs could not be set here"
SET_ID_LEFT = "some setuid or setgid bits could not be set as this user"
OTHERS_LEFT = "modes or times of directories that belong to others could not be set"
DEVICES_LEFT = "device files were left out: they can be made only by root"


class Attributes:
    """Sets what a row says; what is not permitted is remembered and excused later."""

    def __init__(self, owners: Owners, warnings: Warnings) -> None:
        self.owners = owners
        self._swap = lru_cache(owners.swap)
        self._warnings = warnings
        self._root = os.geteuid() == 0
        self.excused: set[str] = set()

    def excuse(self, line: str) -> None:
        """Remember, and say once, that something is left as it is."""
        self.excused.add(line)
        self._warnings.once(line)

    def local_owner(self, row: Row) -> tuple[int, int]:
        """Return the (uid, gid) that the row's object has on this machine."""
        return self._swap(row[UID], row[GID])

    def apply_new(self, handle: int, row: Row, mode: int = 0o600) -> None:
        """Set everything on a file that this process has just made with `mode`."""
        owner = self.local_owner(row)
        status = os.fstat(handle)  # in a setgid directory the group is another one
        if owner != (status.st_uid, status.st_gid):
            self._chown(handle, owner)
        if row[XATTRS]:
            self._set_xattrs(handle, row)
        if row[MODE] != mode:
            self._chmod(handle, row)
        os.utime(handle, ns=(row[MTIME], row[MTIME]))

    def apply_existing(self, handle: int, row: Row, status: os.stat_result) -> bool:
        """Set what differs on something that was there; says whether anything did."""
        changed = False
        owner = self.local_owner(row)
        if (status.st_uid, status.st_gid) != owner:
            self._chown(handle, owner)
            status = os.fstat(handle)  # a chown may clear bits
            changed = True
        if read_xattrs(handle) != row[XATTRS]:
            self._set_xattrs(handle, row)
            status = os.fstat(handle)  # an ACL is part of the mode
            changed = True
        if status.st_mode & 0o7777 != row[MODE]:
            self._chmod(handle, row)
            changed = True
        if os.fstat(handle).st_mtime_ns != row[MTIME]:
            os.utime(handle, ns=(row[MTIME], row[MTIME]))
            changed = True
        return changed

    def apply_directory(self, handle: int, row: Row) -> None:
        """Set what differs on a directory, which may belong to somebody else."""
        try:
            self.apply_existing(handle, row, os.fstat(handle))
        except PermissionError:
            self.excuse(OTHERS_LEFT)

    def apply_by_name(self, name: str, parent: int, row: Row, *, link: bool) -> None:
        """Set what can be set on a link, a fifo or a device without opening it."""
        owner = self.local_owner(row)
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if owner != (status.st_uid, status.st_gid):
            try:
                os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)
            except PermissionError:
                self.excuse(OWNERS_LEFT)
        if not link:
            path = f"/proc/self/fd/{parent}/{name}"
            if row[XATTRS]:
                self._set_xattrs(path, row)
            os.chmod(path, row[MODE])  # noqa: PTH101 - we have just made it: no link
        times = (row[MTIME], row[MTIME])
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _chown(self, handle: int, owner: tuple[int, int]) -> None:
        try:
            os.fchown(handle, *owner)
        except PermissionError:
            self._chown_group(handle, owner[1])
            self.excuse(OWNERS_LEFT)
        except OSError as error:
            if error.errno != errno.EINVAL:  # an id that this user namespace lacks
                raise
            self.excuse(OWNERS_LEFT)

    @staticmethod
    def _chown_group(handle: int, group: int) -> None:
        try:
            os.fchown(handle, -1, group)
        except OSError:
            return

    def _chmod(self, handle: int, row: Row) -> None:
        mode = row[MODE]
        try:
            os.fchmod(handle, mode)
        except PermissionError:
            if not mode & SET_ID_BITS:
                raise
            os.fchmod(handle, mode & ~SET_ID_BITS)
            self.excuse(SET_ID_LEFT)
            return
        if mode & SET_ID_BITS and not self._root:
            now = os.fstat(handle).st_mode
            if (now ^ mode) & SET_ID_BITS:
                self.excuse(SET_ID_LEFT)

    def _set_xattrs(self, target: int | str, row: Row) -> None:
        wanted = dict(row[XATTRS] or ())
        try:
            present = [os.fsencode(name) for name in os.listxattr(target)]
        except OSError:
            present = []
        for name in present:
            if kept_xattr(name) and name not in wanted:
                self._try_xattr(partial(os.removexattr, target, name))
        for name, value in wanted.items():
            self._try_xattr(partial(os.setxattr, target, name, value))

    def _try_xattr(self, change: Callable[[], None]) -> None:
        try:
            change()
        except OSError as error:
            soft = (
                errno.EPERM,
                errno.EACCES,
                errno.ENOTSUP,
                errno.EINVAL,
                errno.ENODATA,
            )
            if error.errno not in soft:
                raise
            if error.errno != errno.ENODATA:
                self.excuse(XATTRS_LEFT)
