"""Entries of the tree as rows, and the pages that hold them.

A row is a tuple, not a class: a snapshot of a million files makes a million of them,
and msgpack reads and writes tuples at C speed. The fields are in
docs/repository-format.md.
"""

from __future__ import annotations

import re
from typing import Any

import msgpack

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.digest import MAX_GROUP
from lobstertrap.repository.format import ID_SIZE

FILE = 0
DIRECTORY = 1
SYMLINK = 2
FIFO = 3
HARD_LINK = 4
CHARACTER_DEVICE = 5
BLOCK_DEVICE = 6

PATH, TYPE, MODE, UID, GID, MTIME, XATTRS = range(7)
SIZE, DIGEST = 7, 8  # of a regular file
TARGET = 7  # of a symbolic or a hard link
MAJOR, MINOR = 7, 8  # of a device

ITEM_SIZE = ID_SIZE + 4
MAX_INLINE_ITEMS = 64
MIN_PAGE_ITEMS = 32
MAX_PAGE_ITEMS = 1024

Row = tuple[Any, ...]
Content = bytes | tuple[bytes, ...]
"""Chunks of a file: items joined, or the ids of content pages."""

_FIELDS = {FILE: 9, DIRECTORY: 7, SYMLINK: 8, FIFO: 7, HARD_LINK: 8}
_FIELDS |= {CHARACTER_DEVICE: 9, BLOCK_DEVICE: 9}
_NAME = rb"(?!\.\.?(?:/|\Z))[^/\0]{1,255}"  # 255: NAME_MAX
_PLAIN_PATH = re.compile(_NAME + b"(?:/" + _NAME + b")*")
_INT64 = 1 << 63
_UINT32 = 1 << 32


def encode_rows(rows: list[Row]) -> bytes:
    """Return the first half of an entry page, which the group digest covers."""
    return bytes(msgpack.packb(rows, use_bin_type=True))


def encode_page(encoded_rows: bytes, contents: list[Content]) -> bytes:
    """Return an entry page."""
    return encoded_rows + bytes(msgpack.packb(contents, use_bin_type=True))


def decode_page(page: bytes) -> tuple[tuple[Row, ...], tuple[Content, ...]]:
    """Return rows, and one content for each row of a file; raises `IntegrityError`.

    The rows are only looked at as far as the program would stumble: use `check_row`
    before anything is done to a disk.
    """
    reader = msgpack.Unpacker(use_list=False, raw=False, max_buffer_size=len(page))
    try:
        reader.feed(page)
        rows, contents = reader.unpack(), reader.unpack()
        sizes = [_FIELDS[row[TYPE]] == len(row) for row in rows]
        files = sum(row[TYPE] == FILE for row in rows)
        if reader.tell() != len(page) or not all(sizes):
            raise ValueError
        if files != len(contents) or not 0 < len(rows) <= MAX_GROUP:
            raise ValueError
        if not all(type(row[PATH]) is bytes for row in rows):
            raise TypeError
        if not all(type(item) is bytes or _are_ids(item) for item in contents):
            raise TypeError
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        RecursionError,
        msgpack.UnpackException,
    ):
        raise IntegrityError("an entry page is damaged") from None
    return rows, contents


def _are_ids(content: object) -> bool:
    return type(content) is tuple and all(
        type(page_id) is bytes and len(page_id) == ID_SIZE for page_id in content
    )


def check_row(row: Row) -> None:
    """Raise `IntegrityError` unless every field has its type and range."""
    path, kind, mode, uid, gid, mtime, xattrs = row[: XATTRS + 1]
    ok = (
        type(path) is bytes
        and _PLAIN_PATH.fullmatch(path) is not None
        and type(kind) is type(mode) is type(uid) is type(gid) is type(mtime) is int
        and 0 <= mode <= 0o7777  # noqa: PLR2004 - twelve bits
        and 0 <= uid < _UINT32
        and 0 <= gid < _UINT32
        and -_INT64 <= mtime < _INT64
        and (xattrs is None or _xattrs_fit(xattrs))
        and _tail_fits(row)
    )
    if not ok:
        raise IntegrityError(f"the entry {shown(path)} is damaged or dangerous")


def shown(path: object) -> str:
    """Return a path for a message."""
    return repr(
        path.decode("utf-8", "backslashreplace") if isinstance(path, bytes) else path
    )


def _xattrs_fit(xattrs: object) -> bool:
    return isinstance(xattrs, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2  # noqa: PLR2004 - name and value
        and all(type(part) is bytes for part in pair)
        and kept_xattr(pair[0])
        for pair in xattrs
    )


def _tail_fits(row: Row) -> bool:
    kind = row[TYPE]
    if kind == FILE:
        size, digest = row[SIZE], row[DIGEST]
        return (
            type(size) is int
            and 0 <= size < _INT64
            and type(digest) is bytes
            and len(digest) == 32  # noqa: PLR2004 - BLAKE3
        )
    if kind == SYMLINK:
        target = row[TARGET]
        return type(target) is bytes and b"\0" not in target and 0 < len(target) < 4096  # noqa: PLR2004 - PATH_MAX
    if kind == HARD_LINK:
        target = row[TARGET]
        return type(target) is bytes and _PLAIN_PATH.fullmatch(target) is not None
    if kind in (CHARACTER_DEVICE, BLOCK_DEVICE):
        return all(type(n) is int and 0 <= n < _UINT32 for n in row[MAJOR:])
    return True


def kept_xattr(name: bytes) -> bool:
    """Say whether an extended attribute belongs to the data and not to the machine."""
    return name.startswith(b"user.") or name in (
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    )


def content_items(content: bytes, size: int) -> list[tuple[bytes, int]]:
    """Return (id, length) of inline content or of one content page."""
    if len(content) == ID_SIZE:
        return [(content, size)]
    if type(content) is not bytes or len(content) % ITEM_SIZE:
        raise IntegrityError("a list of chunks is damaged")
    return [
        (
            content[i : i + ID_SIZE],
            int.from_bytes(content[i + ID_SIZE : i + ITEM_SIZE], "little"),
        )
        for i in range(0, len(content), ITEM_SIZE)
    ]


def cut_content(items: list[bytes]) -> list[list[bytes]]:
    """Cut a long list of items where ids say, so that an insertion moves few cuts."""
    pages: list[list[bytes]] = []
    page: list[bytes] = []
    for item in items:
        page.append(item)
        count = len(page)
        if count >= MAX_PAGE_ITEMS or (count >= MIN_PAGE_ITEMS and item[15] == 0):
            pages.append(page)
            page = []
    if page:
        pages.append(page)
    return pages
