"""How one file system object becomes a row, and how a file's content is read."""

from __future__ import annotations

import errno
import os
import stat as st
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from lobstertrap.repository.batch import settled
from lobstertrap.repository.chunker import BUFFER, Chunker
from lobstertrap.repository.digest import BLOCK, ContentDigest
from lobstertrap.repository.entry import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    SYMLINK,
    Row,
)
from lobstertrap.repository.scan import GONE, Found, data_extents, unreadable
from lobstertrap.repository.snapshot import Owners
from lobstertrap.repository.status import Status, open_quietly, read_xattrs

MAX_HOLE_ITEM = 1 << 31
_TICK = 0.01
"""Seconds; the longest there is."""
_TICKS = 3
_LINK_MODE = 0o777


def common_fields(
    path: bytes, kind: int, owners: Owners, xattrs: object, status: Status
) -> tuple[Any, ...]:
    """Return the first seven fields of a row."""
    uid, gid = owners.swap(status.st_uid, status.st_gid)
    mode = _LINK_MODE if kind == SYMLINK else status.st_mode & 0o7777
    return (path, kind, mode, uid, gid, status.st_mtime_ns, xattrs)


def special_row(found: Found, owners: Owners) -> Row | None:
    """Return the row of anything but a regular file; None for a socket.

    Raises `OSError` when it vanished meanwhile.
    """
    mode = found.stat.st_mode
    if st.S_ISDIR(mode):
        xattrs = read_xattrs(found.handle)
        return common_fields(found.path, DIRECTORY, owners, xattrs, found.stat)
    if st.S_ISLNK(mode):
        target = os.fsencode(os.readlink(found.name, dir_fd=found.parent))
        return (*common_fields(found.path, SYMLINK, owners, None, found.stat), target)
    if st.S_ISFIFO(mode):
        return common_fields(found.path, FIFO, owners, _by_path(found), found.stat)
    if st.S_ISCHR(mode) or st.S_ISBLK(mode):
        kind = CHARACTER_DEVICE if st.S_ISCHR(mode) else BLOCK_DEVICE
        device = found.stat.st_rdev
        common = common_fields(found.path, kind, owners, _by_path(found), found.stat)
        return (*common, os.major(device), os.minor(device))
    return None


def _by_path(found: Found) -> object:
    # A fifo or a device must not be opened: that can block or do something.
    return read_xattrs(f"/proc/self/fd/{found.parent}/{found.name}")


def open_file(found: Found) -> int:
    """Open a regular file for reading; -1 when it is gone or no file any more."""
    try:
        return open_quietly(found.name, found.parent)
    except PermissionError:
        raise unreadable(found.path) from None
    except OSError as error:
        if error.errno in GONE or error.errno == errno.ENXIO:  # now a socket
            return -1
        raise


def same_version(a: Status, b: Status) -> bool:
    """Say whether a file was left alone between two looks at it."""
    return (
        a.st_mtime_ns == b.st_mtime_ns
        and a.st_ctime_ns == b.st_ctime_ns
        and a.st_size == b.st_size
        and a.st_ino == b.st_ino
        and a.st_dev == b.st_dev
    )


def settled_status(handle: int) -> Status:
    """Return the status of an open file, after a short wait until it is settled."""
    for _ in range(_TICKS):
        status = os.fstat(handle)
        if settled(status.st_ctime_ns):
            break
        time.sleep(_TICK)
    return status


@dataclass(slots=True)
class Part:
    """How much of a file was read, and its digest."""

    size: int
    digest: bytes


def read_small(handle: int, size: int) -> bytes:
    """Return up to `size` bytes, and one more when the file has grown."""
    data = os.pread(handle, size + 1, 0)
    while len(data) < size and (
        more := os.pread(handle, size + 1 - len(data), len(data))
    ):  # a short read; nothing more: the file has shrunk
        data += more
    return data


def read_large(
    handle: int,
    status: Status,
    chunker: Chunker,
    on_chunk: Callable[[memoryview], None],
    on_hole: Callable[[int], None],
    *,
    watch: Callable[[memoryview], None] | None = None,
) -> Part:
    """Read a file by its data extents; chunks and holes are passed on in order.

    `watch` sees what `on_chunk` does, in larger pieces.
    """
    digest = ContentDigest()

    def on_data(data: memoryview) -> None:
        digest.update(data)
        if watch is not None:
            watch(data)

    size = status.st_size
    sparse = status.st_blocks * 512 < size
    extents = data_extents(handle, size) if sparse else [(0, size)]
    position = 0
    for start, end in extents:
        _hole(digest, start - position, on_hole)
        position = start
        for chunk in chunker.chunks(_reader(handle, start, end), on_data):
            on_chunk(chunk)
            position += len(chunk)
        if position < end:  # it has shrunk
            return Part(position, digest.finish())
    _hole(digest, size - position, on_hole)
    return Part(size, digest.finish())


def digest_file(handle: int, status: Status, buffer: memoryview) -> Part:
    """Return size and content digest of an open file, holes not read."""
    size = status.st_size
    digest = ContentDigest()
    sparse = status.st_blocks * 512 < size
    position = 0
    for start, end in data_extents(handle, size) if sparse else [(0, size)]:
        digest.zeros(start - position)
        position = start
        for piece in _pieces(handle, start, end, buffer):
            digest.update(piece)
            position += len(piece)
        if position < end:
            return Part(position, digest.finish())
    digest.zeros(size - position)
    return Part(size, digest.finish())


def digest_blocks(handle: int, start: int, end: int) -> tuple[int, list[bytes]]:
    """Return how much of a part was read, and the BLAKE3s of its blocks.

    `start` is a multiple of the block; less is read of a file that has shrunk.
    """
    buffer = memoryview(bytearray(BLOCK))
    position, blocks = start, []
    while position < end:
        filled, view = 0, buffer[: min(BLOCK, end - position)]
        while filled < len(view) and (
            count := os.preadv(handle, [view[filled:]], position + filled)
        ):
            filled += count
        blocks.append(blake3(view[:filled]).digest())
        position += filled
        if filled < len(view):
            break
    return position - start, blocks


def _pieces(
    handle: int, start: int, end: int, buffer: memoryview
) -> Iterator[memoryview]:
    position = start
    while position < end:
        view = buffer[: min(len(buffer), end - position)]
        count = os.preadv(handle, [view], position)
        if count == 0:
            return
        yield view[:count]
        position += count


def _reader(handle: int, start: int, end: int) -> Callable[[memoryview], int]:
    position = start

    def read_into(view: memoryview) -> int:
        nonlocal position
        left = end - position
        if left <= 0:
            return 0
        count = os.preadv(handle, [view[:left]], position)
        position += count
        if position < end:  # the disk goes on while this is cut and hashed
            os.posix_fadvise(handle, position, BUFFER, os.POSIX_FADV_WILLNEED)
        return count

    return read_into


def _hole(digest: ContentDigest, length: int, on_hole: Callable[[int], None]) -> None:
    digest.zeros(length)
    while length > 0:
        step = min(length, MAX_HOLE_ITEM)
        on_hole(step)
        length -= step
