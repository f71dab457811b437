"""Check: whether every snapshot could be restored, and if not, which files are lost."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from lobstertrap.errors import IntegrityError, InvalidInput, NotFound
from lobstertrap.job import OnProgress, Progress
from lobstertrap.repository.blobs import BlobReader
from lobstertrap.repository.digest import group_digest
from lobstertrap.repository.entry import (
    FILE,
    PATH,
    SIZE,
    TYPE,
    Content,
    Row,
    check_row,
    content_items,
    decode_page,
    encode_rows,
    shown,
)
from lobstertrap.repository.format import HOLE
from lobstertrap.repository.inventory import Inventory, take_inventory
from lobstertrap.repository.order import Order, Shape, shape_of
from lobstertrap.repository.read_data import read_packs
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.snapshot import Snapshot
from lobstertrap.repository.tree import decode_branch

LISTED = 1000
"""Lost files that are named for one snapshot; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotVerdict:
    """What is wrong with one snapshot."""

    id: str
    agent: str
    created_at: float
    lost_files: tuple[str, ...] = ()
    """At most `LISTED` paths; a file with several names has the first here."""
    lost: int = 0
    problems: tuple[str, ...] = ()
    """What is lost besides: entries whose names are lost too."""

    @property
    def ok(self) -> bool:
        """Whether it can be restored whole."""
        return not self.lost and not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a check found."""

    snapshots: tuple[SnapshotVerdict, ...]
    problems: tuple[str, ...]
    """Objects that are damaged or missing, whether a snapshot needs them or not."""
    notes: tuple[str, ...]
    """What is no damage, but worth knowing."""
    packs: int
    packs_read: int
    bytes_read: int

    @property
    def ok(self) -> bool:
        """Whether everything that was looked at is as it should be."""
        return not self.problems and all(verdict.ok for verdict in self.snapshots)


class Damage(NamedTuple):
    """Something that a tree lacks: a file's content, or entries without a name."""

    path: bytes | None
    what: str


def check(
    repo: Repository,
    *,
    sample: float = 0.0,
    chance: random.Random | None = None,
    on_progress: OnProgress = lambda _: None,
) -> CheckReport:
    """Look at every object's structure, and read `sample` percent of the packs.

    With 100 all data is read, decrypted and hashed; `chance` chooses with less. It
    needs no lease and changes nothing. Snapshots taken meanwhile are not looked at.
    """
    if not 0 <= sample <= 100:  # noqa: PLR2004 - percent
        raise InvalidInput(f"a sample is 0 to 100 percent, not {sample:g}")
    repo.use_cache(None)  # what is in the store counts
    found = take_inventory(repo)
    chosen = [pack for pack in found.index.packs if pack in found.packs]
    if sample < 100:  # noqa: PLR2004 - percent
        wanted = -int(-len(chosen) * sample // 100)
        chosen = (chance or random.Random()).sample(sorted(chosen), wanted)  # noqa: S311 - chooses, hides nothing
    read = read_packs(repo, found, chosen, on_progress)
    found.prefer_whole()
    trees = TreeChecker(repo.blob_reader(found.index), found)
    verdicts = []
    for number, snapshot in enumerate(found.snapshots):
        total = len(found.snapshots)
        on_progress(Progress(phase="check", done_files=number, total_files=total))
        verdicts.append(verdict_of(snapshot, trees.check(snapshot)))
    return CheckReport(
        snapshots=tuple(verdicts),
        problems=(*found.unreadable.values(), *found.lost_packs(), *read.problems),
        notes=_notes(found, trees),
        packs=len(found.packs),
        packs_read=read.packs,
        bytes_read=read.bytes,
    )


class TreeChecker:
    """Checks trees; a page that several snapshots share is looked at once."""

    def __init__(self, blobs: BlobReader, found: Inventory) -> None:
        self._blobs = blobs
        self._found = found
        self._shapes: dict[bytes, Shape] = {}
        self._bad: dict[bytes, list[Damage]] = {}
        self.lost_stats = 0

    def check(self, snapshot: Snapshot) -> Iterator[Damage]:
        """Yield what a snapshot's tree lacks."""
        tree, order = blake3(), Order()
        whole = ordered = True
        for branch_id, stat_id in snapshot.branches:
            self.lost_stats += not self._found.has(stat_id)
            try:
                branch = decode_branch(self._blobs.page(branch_id))
            except (IntegrityError, NotFound) as error:
                whole = ordered = False
                yield Damage(None, f"a whole branch of entries: {error.message}")
                continue
            for page_id, digest, count, first in branch:
                tree.update(digest)
                yield from self._check_page(page_id, digest, count, first)
                try:
                    ordered = ordered and self._follow(order, page_id)
                except IntegrityError as error:
                    ordered = False
                    yield Damage(None, error.message)
        if whole and tree.hexdigest() != snapshot.tree_digest:
            yield Damage(None, "the tree digest is not that of its entries")

    def _check_page(
        self, page_id: bytes, digest: bytes, count: int, first: bytes
    ) -> Iterable[Damage]:
        if page_id in self._bad:
            return self._bad[page_id]
        if page_id in self._shapes:
            return ()
        damages = [*self.page_damages(page_id, digest, count, first)]
        if damages:
            self._bad[page_id] = damages
        return damages

    def _follow(self, order: Order, page_id: bytes) -> bool:
        """Say whether the next page of a tree is known to come where it belongs."""
        shape = self._shapes.get(page_id)
        if shape is not None:
            order.follow(shape)
        return shape is not None

    def page_damages(
        self, page_id: bytes, digest: bytes, count: int, first: bytes
    ) -> Iterator[Damage]:
        """Yield what the entries of one page lack."""
        try:
            rows, contents = decode_page(self._blobs.page(page_id))
            if len(rows) != count or group_digest(encode_rows([*rows])) != digest:
                raise IntegrityError("an entry page is not what its branch says")
            for row in rows:
                check_row(row)
            self._shapes[page_id] = shape_of(rows)
        except (IntegrityError, NotFound) as error:
            what = f"{count} entries from {shown(first)} on: {error.message}"
            yield Damage(None, what)
            return
        files = (row for row in rows if row[TYPE] == FILE)
        for row, content in zip(files, contents, strict=True):
            if not self.is_readable(row, content):
                yield Damage(row[PATH], "its content is lost")

    def is_readable(self, row: Row, content: Content) -> bool:
        """Say whether every chunk of a file is there."""
        total = 0
        try:
            pages = (
                [content]
                if isinstance(content, bytes)
                else map(self._blobs.page, content)
            )
            for page in pages:
                for chunk_id, length in content_items(page, row[SIZE]):
                    total += length
                    if chunk_id != HOLE and not self._found.has(chunk_id):
                        return False
        except (IntegrityError, NotFound):
            return False
        return bool(total == row[SIZE])


def verdict_of(snapshot: Snapshot, damages: Iterable[Damage]) -> SnapshotVerdict:
    """Return what a person is told of a snapshot with these damages."""
    files: list[str] = []
    problems: list[str] = []
    lost = 0
    for path, what in damages:
        if path is None:
            problems.append(what)
            continue
        lost += 1
        if lost <= LISTED:
            files.append(path.decode("utf-8", "backslashreplace"))
    return SnapshotVerdict(
        id=snapshot.id,
        agent=snapshot.agent,
        created_at=snapshot.created_at,
        lost_files=tuple(files),
        lost=lost,
        problems=tuple(problems),
    )


def _notes(found: Inventory, trees: TreeChecker) -> tuple[str, ...]:
    notes = [f"'{key}' is none of ours" for key in found.strays]
    unknown = found.packs.keys() - found.index.packs.keys()
    if unknown:
        size = sum(found.packs[pack_id].size for pack_id in unknown)
        notes.append(
            f"{len(unknown)} packs ({size} bytes) are in no index: work of snapshots "
            "that go on or were interrupted; a prune removes what is old"
        )
    if trees.lost_stats:
        notes.append(
            "what shows unchanged files is lost in places: the next snapshot reads "
            "more than it would have to"
        )
    return tuple(notes)
