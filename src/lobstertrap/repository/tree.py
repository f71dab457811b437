"""The tree in the repository: entries become pages, and come back in order."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import msgpack
from blake3 import blake3

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.blobs import BlobReader
from lobstertrap.repository.crypto import Keys
from lobstertrap.repository.digest import (
    BRANCH_MASK,
    GROUP_MASK,
    MAX_GROUP,
    group_digest,
)
from lobstertrap.repository.entry import (
    FILE,
    ITEM_SIZE,
    MAX_INLINE_ITEMS,
    PATH,
    SIZE,
    TYPE,
    Content,
    Row,
    content_items,
    cut_content,
    decode_page,
    encode_page,
    encode_rows,
)
from lobstertrap.repository.format import ID_SIZE, PAGES
from lobstertrap.repository.writer import BlobWriter

_STAT = struct.Struct("<qQ")
Stat = tuple[int, int]
"""ctime in nanoseconds (0: not to be trusted) and inode."""

NO_STAT: Stat = (0, 0)


class Group(NamedTuple):
    """One entry page and what its branch says of it."""

    page_id: bytes
    digest: bytes
    rows: tuple[Row, ...]
    contents: tuple[Content | None, ...]
    """By row; None for everything but files."""
    stats: Sequence[Stat]


class Known(NamedTuple):
    """One entry of a snapshot, with its group."""

    row: Row
    content: Content | None
    stat: Stat
    group: Group


class TreeWriter:
    """Takes entries in walk order and stores pages, branches and the digest."""

    def __init__(self, blobs: BlobWriter, keys: Keys) -> None:
        self._blobs = blobs
        self._keys = keys
        self._tree = blake3()
        self._branches: list[tuple[bytes, bytes]] = []
        self._branch: list[tuple[bytes, bytes, int, bytes]] = []
        self._branch_stats: list[bytes] = []
        self._start_group()

    def _start_group(self) -> None:
        self._rows: list[Row] = []
        self._contents: list[Content] = []
        self._stats: list[int] = []
        self._origin: Group | None = None
        self._pure = True

    def add(
        self, row: Row, content: Content | None, stat: Stat, origin: Group | None
    ) -> None:
        """Append an entry; `origin` is its group in the parent when it is unchanged."""
        rows = self._rows
        if not rows:
            self._origin = origin
        elif origin is not self._origin:
            self._pure = False
        rows.append(row)
        if content is not None:
            self._contents.append(content)
        self._stats += stat
        mark = crc32(row[PATH])
        if not mark & GROUP_MASK or len(rows) >= MAX_GROUP:
            self._end_group()
            if not mark & BRANCH_MASK or len(self._branch) >= MAX_GROUP:
                self._end_branch()

    def finish(self) -> tuple[tuple[tuple[bytes, bytes], ...], bytes]:
        """Return (branch page, stat page) of every branch, and the tree digest."""
        if self._rows:
            self._end_group()
        if self._branch:
            self._end_branch()
        return tuple(self._branches), self._tree.digest()

    def _end_group(self) -> None:
        rows, origin = self._rows, self._origin
        if origin is not None and self._pure and len(rows) == len(origin.rows):
            page_id, digest = origin.page_id, origin.digest
        else:
            encoded = encode_rows(rows)
            digest = group_digest(encoded)
            page_id = self.save_page(encode_page(encoded, self._contents))
        self._tree.update(digest)
        self._branch.append((page_id, digest, len(rows), rows[0][PATH]))
        self._branch_stats.append(struct.pack("<" + "qQ" * len(rows), *self._stats))
        self._start_group()

    def _end_branch(self) -> None:
        branch = self.save_page(msgpack.packb(self._branch, use_bin_type=True))
        stats = self.save_page(b"".join(self._branch_stats))
        self._branches.append((branch, stats))
        self._branch, self._branch_stats = [], []

    def save_page(self, page: bytes) -> bytes:
        """Store a page unless it is there, and return its id."""
        page_id = self._keys.page_id(page)
        self._blobs.save(PAGES, page_id, page)
        return page_id

    def save_content(self, items: list[bytes]) -> Content:
        """Return the content of a file from its items, with pages when it is long."""
        if len(items) <= MAX_INLINE_ITEMS:
            return b"".join(items)
        return tuple(self.save_page(b"".join(page)) for page in cut_content(items))


def read_groups(
    blobs: BlobReader, branches: Sequence[tuple[bytes, bytes]], *, stats: bool
) -> Iterator[Group]:
    """Yield the groups of a snapshot in walk order; raises `IntegrityError`."""
    for branch_id, stat_id in branches:
        branch = decode_branch(blobs.page(branch_id))
        known = blobs.page(stat_id) if stats else b""
        total = sum(count for _, _, count, _ in branch)
        if stats and len(known) != total * _STAT.size:
            raise IntegrityError("a stat page is damaged")
        place = 0
        for page_id, digest, count, _ in branch:
            rows, contents = decode_page(blobs.page(page_id))
            if len(rows) != count:
                raise IntegrityError("a branch page is damaged")
            here: Sequence[Stat] = [NO_STAT] * count
            if stats:
                end = place + count * _STAT.size
                here = [*_STAT.iter_unpack(known[place:end])]
                place = end
            source = iter(contents)
            by_row = tuple(next(source) if row[TYPE] == FILE else None for row in rows)
            yield Group(page_id, digest, rows, by_row, here)


def read_entries(
    blobs: BlobReader, branches: Sequence[tuple[bytes, bytes]], *, stats: bool = False
) -> Iterator[Known]:
    """Yield the entries of a snapshot in walk order."""
    for group in read_groups(blobs, branches, stats=stats):
        for row, content, stat in zip(
            group.rows, group.contents, group.stats, strict=True
        ):
            yield Known(row, content, stat, group)


def read_content(
    blobs: BlobReader, row: Row, content: Content
) -> Iterator[tuple[bytes, int]]:
    """Yield (chunk id, length) of a file in order; the zero id is a hole."""
    size = row[SIZE]
    total = 0
    pages = [content] if isinstance(content, bytes) else map(blobs.page, content)
    for page in pages:
        for chunk_id, length in content_items(page, size):
            total += length
            yield chunk_id, length
    if total != size:
        raise IntegrityError(f"the content of {row[PATH]!r} is not as long as its size")


def item(chunk_id: bytes, length: int) -> bytes:
    """Return one item of a content."""
    return chunk_id + length.to_bytes(ITEM_SIZE - ID_SIZE, "little")


def decode_branch(page: bytes) -> tuple[tuple[bytes, bytes, int, bytes], ...]:
    """Return (entry page id, group digest, count, first path) of every group."""
    try:
        branch: Any = msgpack.unpackb(page, use_list=False)
        for page_id, digest, count, first in branch:
            ok = type(page_id) is bytes and len(page_id) == ID_SIZE
            ok = ok and type(digest) is bytes and type(first) is bytes
            if not ok or type(count) is not int or not 0 < count <= MAX_GROUP:
                raise ValueError
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise IntegrityError("a branch page is damaged") from None
    return branch  # type: ignore[no-any-return]
