"""The tree of a snapshot, opened for looking: list, find and read without restoring."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence

from blake3 import blake3

from lobstertrap.errors import IntegrityError, InvalidInput, NotFound
from lobstertrap.repository.blame import blaming
from lobstertrap.repository.blobs import BlobReader
from lobstertrap.repository.digest import ContentDigest, ends_group, group_digest
from lobstertrap.repository.entry import (
    DIGEST,
    DIRECTORY,
    FILE,
    HARD_LINK,
    PATH,
    SIZE,
    TARGET,
    TYPE,
    Row,
    check_row,
    decode_page,
    encode_rows,
    shown,
)
from lobstertrap.repository.format import HOLE
from lobstertrap.repository.index import Index
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.restorer import checked
from lobstertrap.repository.snapshot import Snapshot
from lobstertrap.repository.status import NO_STAT
from lobstertrap.repository.tree import (
    Group,
    Known,
    decode_branch,
    read_content,
    read_entries,
)

KINDS = (
    "file",
    "directory",
    "symlink",
    "fifo",
    "hard link",
    "character device",
    "block device",
)
"""What the types of entries are called, by their numbers."""

_PIECE = 1 << 20

Piece = bytes | int
"""Some of a file's bytes, or the length of a hole."""

_Wanted = Callable[[bytes, bytes | None], bool]
"""Whether a page is worth reading: the first key in it, and the first in the next."""


def walk_key(path: bytes) -> bytes:
    """Return what paths are ordered by: `/` sorts before every other byte."""
    return path.replace(b"/", b"\0")


class Tree:
    """One snapshot's tree; reads as few pages as it can. For one thread.

    Every error of the repository names the snapshot, and the file when it has one.
    """

    def __init__(
        self, repo: Repository, snapshot: Snapshot, index: Index | None = None
    ) -> None:
        self.snapshot = snapshot
        self._keys = repo.keys
        self._index = index or repo.load_index()
        self._blobs: BlobReader = repo.blob_reader(self._index)

    def everything(self) -> Iterator[Known]:
        """Yield all entries in walk order, each checked, and prove the tree digest.

        Raises `IntegrityError` at the end when it is not the snapshot's.
        """
        with blaming(self.snapshot):
            tree, group = blake3(), list[Row]()
            for known in checked(read_entries(self._blobs, self.snapshot.branches)):
                group.append(known.row)
                if ends_group(known.row[PATH], len(group)):
                    tree.update(group_digest(encode_rows(group)))
                    group = []
                yield known
            if group:
                tree.update(group_digest(encode_rows(group)))
            if tree.hexdigest() != self.snapshot.tree_digest:
                raise IntegrityError("its tree is not what its tree digest says")

    def entry(self, path: bytes) -> Known:
        """Return the entry called `path`; raises `NotFound`."""
        key = walk_key(path)

        def wanted(first: bytes, following: bytes | None) -> bool:
            return first <= key and (following is None or key < following)

        for known in self._some(wanted):
            if known.row[PATH] == path:
                return known
        raise NotFound(
            f"snapshot {self.snapshot.short_id} has no {shown(path)}",
            hint="`lobstertrap ls SNAPSHOT` lists what it has",
        )

    def below(self, path: bytes, *, recursive: bool = False) -> Iterator[Known]:
        """Yield what is in the directory `path`, in walk order; b"" holds the volumes.

        Without `recursive`, what lies wholly in its subdirectories is not read.
        """
        if path and self.entry(path).row[TYPE] != DIRECTORY:
            raise InvalidInput(f"{shown(path)} is not a directory")
        prefix = walk_key(path) + b"\0" if path else b""
        depth = prefix.count(b"\0") + 1

        def wanted(first: bytes, following: bytes | None) -> bool:
            if following is not None and following <= prefix:
                return False
            if first > prefix and not first.startswith(prefix):
                return False
            inside = first.split(b"\0")
            if recursive or following is None or len(inside) <= depth:
                return True
            return following.split(b"\0")[:depth] != inside[:depth]

        for known in self._some(wanted):
            key = walk_key(known.row[PATH])
            if key.startswith(prefix) and (recursive or key.count(b"\0") < depth):
                yield known

    def read(self, known: Known) -> Iterator[Piece]:
        """Yield the content of a file's entry, proven: bytes, or the length of a hole.

        Every chunk is proven before it is given out, the whole file after the last.
        """
        row, digest = known.row, ContentDigest()
        with blaming(self.snapshot, row[PATH]):
            for chunk_id, length in self.items(known):
                if chunk_id == HOLE:
                    digest.zeros(length)
                    yield length
                    continue
                chunk = self._chunk(chunk_id, length)
                digest.update(memoryview(chunk))
                yield chunk
            if digest.finish() != row[DIGEST]:
                raise IntegrityError("its content is not what its digest says")

    def items(self, known: Known) -> Iterator[tuple[bytes, int]]:
        """Yield (chunk id, length) of a file's entry; the zero id is a hole."""
        with blaming(self.snapshot, known.row[PATH]):
            if known.content is None:
                raise InvalidInput(f"it is a {KINDS[known.row[TYPE]]}")
            yield from read_content(self._blobs, known.row, known.content)

    def cat(self, path: bytes) -> Iterator[bytes]:
        """Return the bytes of the file called `path`, holes as zeros.

        Another name of a file (a hard link) reads as the file; other kinds are
        refused at once.
        """
        known = self.entry(path)
        if known.row[TYPE] == HARD_LINK:
            known = self.entry(known.row[TARGET])
        kind = known.row[TYPE]
        if kind != FILE:
            leads = f" to {shown(known.row[TARGET])}" if kind == 2 else ""  # noqa: PLR2004 - a symlink
            raise InvalidInput(
                f"{shown(path)} is a {KINDS[kind]}{leads}, not a file",
                hint="`lobstertrap ls` lists a directory",
            )
        return self._flat(known)

    def _flat(self, known: Known) -> Iterator[bytes]:
        for piece in self.read(known):
            if isinstance(piece, bytes):
                yield piece
                continue
            for done in range(0, piece, _PIECE):
                yield bytes(min(_PIECE, piece - done))

    def _chunk(self, chunk_id: bytes, length: int) -> bytes:
        where = self._index.find(chunk_id)
        segment = self._blobs.segment(where.segment)
        chunk = bytes(segment[where.offset : where.offset + where.length])
        if len(chunk) != length or self._keys.chunk_id(chunk) != chunk_id:
            raise IntegrityError(f"chunk {chunk_id.hex()} is not what its id says")
        return chunk

    def _some(self, wanted: _Wanted) -> Iterator[Known]:
        """Yield the entries of the pages that are wanted, each checked."""
        with blaming(self.snapshot):
            pages = [
                (page_id, count, walk_key(first))
                for branch_id, _ in self.snapshot.branches
                for page_id, _, count, first in decode_branch(
                    self._blobs.page(branch_id)
                )
            ]
            followers = [first for _, _, first in pages[1:]]
            for number, (page_id, count, first) in enumerate(pages):
                following = followers[number] if number < len(followers) else None
                if wanted(first, following):
                    yield from self.page(page_id, count)

    def page(self, page_id: bytes, count: int) -> Iterator[Known]:
        """Yield the entries of one page, each checked, but not where they belong."""
        rows, contents = decode_page(self._blobs.page(page_id))
        if len(rows) != count:
            raise IntegrityError("a branch page is damaged")
        group = Group(page_id, b"", rows, contents, [NO_STAT] * count)
        for place, row in enumerate(rows):
            check_row(row)
            yield group.known(place)

    def pages(self, unless: frozenset[bytes] = frozenset()) -> dict[bytes, int]:
        """Return how many entries each page has, in walk order, but for some branches.

        Pages are named by their content: two trees with a page in common have all its
        entries in common.
        """
        with blaming(self.snapshot):
            return {
                page_id: count
                for branch_id, _ in self.snapshot.branches
                if branch_id not in unless
                for page_id, _, count, _ in decode_branch(self._blobs.page(branch_id))
            }


class Finder:
    """Entries whose names match a pattern, through many snapshots.

    A pattern with a `/` is for whole paths, otherwise for the last part of them. Pages
    that snapshots share are searched once.
    """

    def __init__(self, pattern: str) -> None:
        source = fnmatch.translate(os.fsencode(pattern).decode("latin-1"))
        self._match = re.compile(source.encode("latin-1")).match
        self._whole = "/" in pattern
        self._found: dict[bytes, Sequence[Row]] = {}

    def find(self, tree: Tree) -> Iterator[Row]:
        """Yield what matches in one snapshot, in walk order."""
        for page_id, count in tree.pages().items():
            if page_id not in self._found:
                rows = (known.row for known in tree.page(page_id, count))
                self._found[page_id] = tuple(filter(self._matches, rows))
            yield from self._found[page_id]

    def _matches(self, row: Row) -> bool:
        path: bytes = row[PATH]
        name = path if self._whole else path.rpartition(b"/")[2]
        return self._match(name) is not None


def size_of(row: Row) -> int | None:
    """Return the size of a file's entry; None for everything else."""
    return int(row[SIZE]) if row[TYPE] == FILE else None
