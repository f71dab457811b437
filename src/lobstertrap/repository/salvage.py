"""Salvage: a snapshot of what is left of a damaged one, which names what is lost."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace

from lobstertrap.errors import IntegrityError, NotFound
from lobstertrap.repository.blobs import BlobReader
from lobstertrap.repository.check import TreeChecker
from lobstertrap.repository.commit import commit
from lobstertrap.repository.entry import (
    DIRECTORY,
    FILE,
    GID,
    HARD_LINK,
    MTIME,
    PATH,
    SIZE,
    TARGET,
    TYPE,
    UID,
    Content,
    Row,
    decode_page,
    shown,
)
from lobstertrap.repository.format import ID_SIZE
from lobstertrap.repository.inventory import Inventory
from lobstertrap.repository.order import Order
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.snapshot import Snapshot
from lobstertrap.repository.status import NO_STAT
from lobstertrap.repository.tree import TreeWriter, decode_branch
from lobstertrap.repository.warnings import Warnings

REPAIRED = "repaired-from"
"""The tag with the id of the snapshot that this one took the place of."""


def salvage(repo: Repository, found: Inventory, snapshot: Snapshot) -> Snapshot | None:
    """Put a snapshot of all that can be read of `snapshot`; None if that is nothing.

    A directory whose own entry is lost is made up when something in it is left.
    """
    warnings = Warnings()
    for line in snapshot.warnings:
        warnings.once(line)
    writer = repo.blob_writer(found.index)
    try:
        tree = TreeWriter(writer, repo.keys)
        left = _Left(repo.blob_reader(found.index), found, warnings)
        volumes: set[bytes] = set()
        files = size = 0
        order = Order()
        for row, content in left.with_parents(left.entries(snapshot)):
            if not order.allows(row):
                warnings.add(row[PATH], "is out of order and was left out")
                continue
            tree.add(row, content, NO_STAT)
            volumes.add(row[PATH].partition(b"/")[0])
            files += row[TYPE] != DIRECTORY
            size += row[SIZE] if row[TYPE] == FILE else 0
        if not volumes:
            return None
        branches, digest = tree.finish()
        writer.finish()
    finally:
        writer.close()
    warnings.once(f"what is lost of snapshot {snapshot.short_id} was left out")
    new = replace(
        snapshot,
        id=secrets.token_hex(ID_SIZE),
        tree_digest=digest.hex(),
        branches=branches,
        status="complete_with_warnings",
        warnings=warnings.finish(),
        files=files,
        bytes=size,
        new_bytes=0,
        uploaded_bytes=writer.uploaded_bytes,
        tags={**snapshot.tags, REPAIRED: snapshot.id},
        volumes=tuple(v for v in snapshot.volumes if v.encode() in volumes),
        places={},  # it knows no inodes: any other parent is the better one
    )
    commit(repo, found.index, new)
    return new


class _Left:
    """What is left of a tree."""

    def __init__(self, blobs: BlobReader, found: Inventory, warnings: Warnings) -> None:
        self._blobs = blobs
        self._trees = TreeChecker(blobs, found)
        self._warnings = warnings
        self._lost: set[bytes] = set()
        self._gaps: list[tuple[bytes, bytes]] = []
        """Where entries are lost whose names are lost too: from and to, as keys."""
        self._last = b""
        self._in_gap = False

    def entries(self, snapshot: Snapshot) -> Iterator[tuple[Row, Content | None]]:
        """Yield the entries that can be read, but for files whose content is lost."""
        for branch_id, _ in snapshot.branches:
            try:
                branch = decode_branch(self._blobs.page(branch_id))
            except (IntegrityError, NotFound):
                self._warnings.once("entries whose names are lost were left out")
                self._in_gap = True
                continue
            for page_id, digest, count, first in branch:
                damages = self._trees.page_damages(page_id, digest, count, first)
                lost = [damage.path for damage in damages]
                if None in lost:
                    self._warnings.once(
                        f"{count} entries from {shown(first)} on are lost"
                    )
                    self._in_gap = True
                    continue
                self._lost.update(path for path in lost if path is not None)
                yield from self._of_page(page_id)

    def _of_page(self, page_id: bytes) -> Iterator[tuple[Row, Content | None]]:
        rows, contents = decode_page(self._blobs.page(page_id))
        source = iter(contents)
        for row in rows:
            content = next(source) if row[TYPE] == FILE else None
            key = _key(row[PATH])
            if self._in_gap:
                self._gaps.append((self._last, key))
                self._in_gap = False
            self._last = key
            linked = row[TYPE] == HARD_LINK and self._is_lost(row[TARGET])
            if linked or row[PATH] in self._lost:
                self._warnings.add(row[PATH], "is lost")
            else:
                yield row, content

    def _is_lost(self, path: bytes) -> bool:
        key = _key(path)
        return path in self._lost or any(a < key < b for a, b in self._gaps)

    def with_parents(
        self, entries: Iterator[tuple[Row, Content | None]]
    ) -> Iterator[tuple[Row, Content | None]]:
        """Yield entries, each after a directory that it is in."""
        parents: list[bytes] = []
        for row, content in entries:
            parts = row[PATH].split(b"/")
            above = [b"/".join(parts[:n]) for n in range(1, len(parts))]
            kept = 0
            while kept < min(len(above), len(parents)) and above[kept] == parents[kept]:
                kept += 1
            del parents[kept:]
            for path in above[kept:]:
                self._warnings.add(path, "is a directory that was made up")
                made_up = (path, DIRECTORY, 0o700, row[UID], row[GID], row[MTIME], None)
                yield made_up, None
                parents.append(path)
            if row[TYPE] == DIRECTORY:
                parents.append(row[PATH])
            yield row, content


def _key(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")
