"""The placer: puts one file at its name, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence

from lobstertrap.repository.attributes import Attributes
from lobstertrap.repository.batch import NewFile, write_files
from lobstertrap.repository.digest import BLOCK, content_digest
from lobstertrap.repository.directories import Directory, temporary_name
from lobstertrap.repository.entry import (
    DIGEST,
    FILE,
    MODE,
    MTIME,
    PATH,
    SIZE,
    XATTRS,
    Row,
)
from lobstertrap.repository.source import common_fields, digest_file, same_version
from lobstertrap.repository.status import NO_STAT, read_xattrs
from lobstertrap.repository.written import Written

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Target:
    """A file that is being restored: a temporary name until everything is in it."""

    __slots__ = (
        "_writing",
        "directory",
        "handle",
        "name",
        "number",
        "row",
        "temporary",
    )

    in_place = False
    """Whether the file that is there is changed itself."""

    def __init__(
        self, row: Row, name: bytes, directory: Directory, number: int
    ) -> None:
        self.row = row
        self.number = number
        """Of the entry, among those of this restore."""
        self.name = name
        self.directory = directory.hold()
        self.handle = -1
        self.temporary: str | bytes = ""
        # The kernel lets one write to a file at a time, and the others burn a core.
        self._writing = threading.Lock()

    def open(self) -> None:
        """Make the file at its full size: what is not written is a hole."""
        self.temporary = new_name(self)
        self.handle = os.open(self.temporary, _NEW, 0o600, dir_fd=self.directory.handle)
        self.resize()

    def resize(self) -> None:
        """Give the file its full size."""
        try:
            os.ftruncate(self.handle, self.row[SIZE])
        except OSError as error:
            error.filename = self.row[PATH]
            raise

    def write(self, data: memoryview, offset: int) -> None:
        """Write a piece; pieces may come in any order and from several threads."""
        with self._writing:
            while data:
                count = os.pwrite(self.handle, data, offset)
                data, offset = data[count:], offset + count

    def keep(self, data: memoryview, offset: int) -> None:
        """Take a piece that the old file has at the same place."""
        self.write(data, offset)

    def finish(self, attributes: Attributes) -> int:
        """Give the file its attributes and then its name.

        Returns its handle, which is the caller's to close.
        """
        attributes.apply_new(self.handle, self.row)
        if self.temporary is not self.name:
            parent = self.directory.handle
            os.rename(self.temporary, self.name, src_dir_fd=parent, dst_dir_fd=parent)
        handle, self.handle = self.handle, -1
        return handle

    def abandon(self) -> None:
        """Remove the temporary file of a restore that failed."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1
            with contextlib.suppress(FileNotFoundError):  # it has its name already
                os.unlink(self.temporary, dir_fd=self.directory.handle)


def new_name(target: Target) -> str | bytes:
    """Return the name to write to: its own where nobody sees the directory yet."""
    return target.name if target.directory.fresh else temporary_name()


def place_together(
    directory: Directory,
    plain: memoryview,
    pieces: Sequence[tuple[Target, int, int]],
    attributes: Attributes,
    written: Written,
) -> None:
    """Write files of one directory, each a piece (offset, length) of `plain`.

    What is read back at once, and is what its row says, is noted in `written`.
    """
    simple = [piece for piece in pieces if not piece[0].row[XATTRS]]
    files = [
        NewFile(
            b"" if directory.fresh else temporary_name().encode(),
            target.name,
            offset,
            length,
            target.row[MODE],
            *attributes.local_owner(target.row),
            target.row[MTIME],
        )
        for target, offset, length in simple
    ]
    whole = set()
    stats = write_files(directory.handle, plain, files)
    for (target, offset, length), stat in zip(simple, stats, strict=True):
        if stat is None:
            continue
        whole.add(target)
        piece = plain[offset : offset + length]
        if stat != NO_STAT and content_digest(piece) == target.row[DIGEST]:
            written.note(target.number, stat)
    for target, offset, length in pieces:
        if target not in whole:  # by itself: what is wrong is told, or excused
            place_whole(target, plain[offset : offset + length], attributes)


def read_back(
    handle: int, target: Target, attributes: Attributes, written: Written
) -> None:
    """Read a finished file, and note it in `written` if it is what its row says."""
    status, path = os.fstat(handle), target.row[PATH]
    part = digest_file(handle, status, memoryview(bytearray(BLOCK)))
    xattrs = read_xattrs(handle)
    common = common_fields(path, FILE, attributes.owners, xattrs, status)
    alone = same_version(status, os.fstat(handle))
    if alone and (*common, part.size, part.digest) == target.row:
        written.note(target.number, (status.st_ctime_ns, status.st_ino))


def place_whole(target: Target, data: memoryview, attributes: Attributes) -> None:
    """Write a file that is there in one piece."""
    parent = target.directory.handle
    temporary = new_name(target)
    handle = os.open(temporary, _NEW, 0o600, dir_fd=parent)
    try:
        while data:
            data = data[os.write(handle, data) :]
        attributes.apply_new(handle, target.row)
        if temporary is not target.name:
            os.rename(temporary, target.name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        os.unlink(temporary, dir_fd=parent)
        raise
    finally:
        os.close(handle)
