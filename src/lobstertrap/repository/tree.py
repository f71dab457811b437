"""The tree in the repository: entries become pages, and come back in order."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
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
    ends_branch,
    ends_group,
    group_digest,
)
from lobstertrap.repository.entry import (
    DIRECTORY,
    FILE,
    HARD_LINK,
    ITEM_SIZE,
    MAX_INLINE_ITEMS,
    MTIME,
    PATH,
    SIZE,
    SYMLINK,
    TARGET,
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
from lobstertrap.repository.status import NO_STAT, Mark, Stat
from lobstertrap.repository.writer import BlobWriter

_STAT = struct.Struct("<qQ")


class Group:
    """One entry page, and what its branch and the stat page say of it."""

    __slots__ = (
        "_by_row",
        "_contents",
        "_marks",
        "_paths",
        "digest",
        "page_id",
        "rows",
        "stats",
    )

    def __init__(
        self,
        page_id: bytes,
        digest: bytes,
        rows: tuple[Row, ...],
        contents: tuple[Content, ...],
        stats: Sequence[Stat],
    ) -> None:
        self.page_id = page_id
        self.digest = digest
        self.rows = rows
        self.stats = stats
        self._contents = contents
        self._by_row: list[Content | None] | None = None
        self._marks: list[Mark | None] | None = None
        self._paths: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def with_stats(self, stats: Sequence[Stat]) -> Group:
        """Return the same group as it is at another place."""
        return Group(self.page_id, self.digest, self.rows, self._contents, stats)

    @property
    def contents(self) -> list[Content | None]:
        """By row; None for everything but files."""
        if self._by_row is None:
            source = iter(self._contents)
            self._by_row = [
                next(source) if row[TYPE] == FILE else None for row in self.rows
            ]
        return self._by_row

    @property
    def paths(self) -> list[bytes]:
        """By row."""
        if self._paths is None:
            self._paths = [row[PATH] for row in self.rows]
        return self._paths

    @property
    def marks(self) -> list[Mark | None]:
        """By row, what its name has to look like to be unchanged.

        None where that takes more than one look: directories, names of hard links.
        """
        if self._marks is None:
            self._marks = [
                (*stat, row[MTIME], _size_on_disk(row), 1)
                if row[TYPE] not in (DIRECTORY, HARD_LINK)
                else None
                for row, stat in zip(self.rows, self.stats, strict=True)
            ]
        return self._marks

    def known(self, place: int) -> Known:
        """Return one entry."""
        row = self.rows[place]
        content = self.contents[place] if row[TYPE] == FILE else None
        return Known(row, content, self.stats[place], self, place)


class Known(NamedTuple):
    """One entry of a snapshot, with its group and its place there."""

    row: Row
    content: Content | None
    stat: Stat
    group: Group
    place: int


def _size_on_disk(row: Row) -> int:
    kind = row[TYPE]
    if kind == FILE:
        return int(row[SIZE])
    return len(row[TARGET]) if kind == SYMLINK else 0


class TreeWriter:
    """Takes entries in walk order and stores pages, branches and the digest."""

    def __init__(self, blobs: BlobWriter, keys: Keys) -> None:
        self._blobs = blobs
        self._keys = keys
        self._tree = blake3()
        self._branches: list[tuple[bytes, bytes]] = []
        self._branch: list[tuple[bytes, bytes, int, bytes]] = []
        self._branch_stats: list[bytes] = []
        self._kept: Group | None = None
        self._kept_count = 0
        self._start_group()

    def _start_group(self) -> None:
        self._rows: list[Row] = []
        self._contents: list[Content] = []
        self._stats: list[int] = []

    def add(self, row: Row, content: Content | None, stat: Stat) -> None:
        """Append an entry."""
        if self._kept is not None:
            self._spill()
        rows = self._rows
        rows.append(row)
        if content is not None:
            self._contents.append(content)
        self._stats += stat
        mark = crc32(row[PATH])
        if not mark & GROUP_MASK or len(rows) >= MAX_GROUP:
            self._end_group()
            if not mark & BRANCH_MASK or len(self._branch) >= MAX_GROUP:
                self._end_branch()

    def keep(self, group: Group, start: int, stop: int) -> None:
        """Append the entries from `start` to before `stop` of the parent's `group`.

        A group that is kept as a whole goes into its branch without a look at its
        entries: groups are cut by what is in them, so it would be cut the same again.
        """
        if self._kept is None and not self._rows and start == 0:
            self._kept, self._kept_count = group, stop
        elif self._kept is group and self._kept_count == start:
            self._kept_count = stop
        else:
            self._spill()
            self._add_from(group, start, stop)
            return
        if stop == len(group) and ends_group(group.rows[-1][PATH], stop):
            self._pass_on(group)
            if ends_branch(group.rows[-1][PATH], len(self._branch)):
                self._end_branch()

    def finish(self) -> tuple[tuple[tuple[bytes, bytes], ...], bytes]:
        """Return (branch page, stat page) of every branch, and the tree digest."""
        if self._kept is not None and self._kept_count == len(self._kept):
            self._pass_on(self._kept)
        self._spill()
        if self._rows:
            self._end_group()
        if self._branch:
            self._end_branch()
        return tuple(self._branches), self._tree.digest()

    def _spill(self) -> None:
        """Take what was kept of a group one by one: the group is not whole any more."""
        group, self._kept = self._kept, None
        if group is not None:
            self._add_from(group, 0, self._kept_count)

    def _add_from(self, group: Group, start: int, stop: int) -> None:
        for place in range(start, stop):
            self.add(group.rows[place], group.contents[place], group.stats[place])

    def _pass_on(self, group: Group) -> None:
        self._kept = None
        stats = list(chain.from_iterable(group.stats))
        self._append(group.page_id, group.digest, group.rows, stats)

    def _end_group(self) -> None:
        rows = self._rows
        encoded = encode_rows(rows)
        page_id = self.save_page(encode_page(encoded, self._contents))
        self._append(page_id, group_digest(encoded), rows, self._stats)
        self._start_group()

    def _append(
        self, page_id: bytes, digest: bytes, rows: Sequence[Row], stats: list[int]
    ) -> None:
        self._tree.update(digest)
        self._branch.append((page_id, digest, len(rows), rows[0][PATH]))
        self._branch_stats.append(struct.pack("<" + "qQ" * len(rows), *stats))

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
            yield Group(page_id, digest, rows, contents, here)


def read_entries(
    blobs: BlobReader, branches: Sequence[tuple[bytes, bytes]], *, stats: bool = False
) -> Iterator[Known]:
    """Yield the entries of a snapshot in walk order."""
    for group in read_groups(blobs, branches, stats=stats):
        rows, places = group.rows, range(len(group))
        yield from map(Known, rows, group.contents, group.stats, repeat(group), places)


def read_rows(
    blobs: BlobReader, branches: Sequence[tuple[bytes, bytes]]
) -> Iterator[Row]:
    """Yield the rows of the entries of a snapshot in walk order."""
    for group in read_groups(blobs, branches, stats=False):
        yield from group.rows


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
