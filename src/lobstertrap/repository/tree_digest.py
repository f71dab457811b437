"""The tree digest of what is on a disk, without any repository."""

from __future__ import annotations

import os
import stat as st
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from blake3 import blake3

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.chunker import WHOLE
from lobstertrap.repository.digest import tree_digest_of
from lobstertrap.repository.entry import FILE, HARD_LINK, Row, shown
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.scan import Found, close_all, open_roots, walk
from lobstertrap.repository.snapshot import Owners
from lobstertrap.repository.source import (
    common_fields,
    digest_file,
    open_file,
    read_small,
    special_row,
)
from lobstertrap.repository.status import read_xattrs

Excludes = Mapping[str, Sequence[str]]


def tree_digest(
    roots: Mapping[str, Path], owners: Owners, exclude: Excludes | None = None
) -> str:
    """Return the 64 hex digits that a snapshot of `roots` would have.

    Everything is read. Raises `IntegrityError` when something changes meanwhile.
    """
    handles = open_roots(roots)
    try:
        return tree_digest_of(_rows(handles, owners, exclude or {})).hex()
    finally:
        close_all(handles)


def _rows(
    handles: Mapping[str, int], owners: Owners, exclude: Excludes
) -> Iterator[Row]:
    buffer = memoryview(bytearray(1 << 20))
    for volume, root in handles.items():
        first: dict[tuple[int, int], Row] = {}
        patterns = Exclude(exclude.get(volume, ()))
        for found in walk(root, volume, patterns, _vanished):
            row = disk_row(found, owners, first, buffer)
            if row is not None:
                yield row


def disk_row(
    found: Found, owners: Owners, first: dict[tuple[int, int], Row], buffer: memoryview
) -> Row | None:
    """Return the row of what was found, read from the disk; None for a socket.

    `first` remembers files with several names.
    """
    if not st.S_ISREG(found.stat.st_mode):
        return special_row(found, owners)
    linked = found.stat.st_nlink > 1
    inode = (found.stat.st_dev, found.stat.st_ino)
    if linked and inode in first:
        return link_row(found.path, first[inode])
    row = file_row(found, owners, buffer)
    if linked:
        first[inode] = row
    return row


def link_row(path: bytes, first: Row) -> Row:
    """Return the row of one more name of the file in `first`."""
    return (path, HARD_LINK, *first[2:7], first[0])


def file_row(found: Found, owners: Owners, buffer: memoryview) -> Row:
    """Return the row of a regular file, read through `buffer` when it is large.

    `IntegrityError` when it changes or vanishes meanwhile.
    """
    handle = open_file(found)
    if handle < 0:
        raise gone(found.path)
    size = found.stat.st_size
    try:
        if size <= WHOLE:  # most files: no buffer, no extents
            data = read_small(handle, size)
            length, digest = len(data), blake3(data).digest()
        else:
            part = digest_file(handle, found.stat, buffer)
            length, digest = part.size, part.digest
        xattrs = read_xattrs(handle)
    finally:
        os.close(handle)
    if length != size:
        raise changed(found.path)
    common = common_fields(found.path, FILE, owners, xattrs, found.stat)
    return (*common, size, digest)


def changed(path: bytes) -> IntegrityError:
    """Return the error for a file that was not left alone."""
    return IntegrityError(f"{shown(path)} changed while it was read")


def gone(path: bytes) -> IntegrityError:
    """Return the error for a file that is not there any more."""
    return IntegrityError(f"{shown(path)} vanished while it was read")


def _vanished(path: bytes) -> None:
    raise gone(path)
