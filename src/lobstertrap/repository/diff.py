"""The differences between two snapshots, or between a snapshot and directories."""

from __future__ import annotations

import stat as st
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lobstertrap.errors import NotFound
from lobstertrap.repository.browse import Tree, walk_key
from lobstertrap.repository.entry import (
    DIGEST,
    FILE,
    GID,
    MODE,
    MTIME,
    PATH,
    SIZE,
    TARGET,
    TYPE,
    UID,
    XATTRS,
    Row,
)
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.scan import Found, close_all, open_roots, walk
from lobstertrap.repository.selection import select, volumes_of
from lobstertrap.repository.snapshot import Owners
from lobstertrap.repository.source import common_fields
from lobstertrap.repository.status import read_xattrs
from lobstertrap.repository.system import translated
from lobstertrap.repository.tree_digest import disk_row, link_row

Kind = Literal["added", "removed", "changed"]
_FIELDS = ((MODE, "mode"), (MTIME, "mtime"), (XATTRS, "xattrs"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One path that is not the same on both sides."""

    path: bytes
    kind: Kind
    what: tuple[str, ...] = ()
    """Of a change: `type`, `content`, `target`, `mode`, `owner`, `mtime`, `xattrs`."""
    old: Row | None = None
    new: Row | None = None


def diff(old: Tree, new: Tree) -> Iterator[Change]:
    """Yield what changed from one snapshot to another, in walk order.

    Pages that both have are not read: the cost is that of the difference.
    """
    common = frozenset(_branches(old) & _branches(new))
    before, after = old.pages(common), new.pages(common)
    shared = before.keys() & after.keys()
    left, right = _rows(old, before, shared), _rows(new, after, shared)
    yield from compare(left, right, owners=True)


def _branches(tree: Tree) -> set[bytes]:
    return {branch_id for branch_id, _ in tree.snapshot.branches}


def diff_directories(
    old: Tree, roots: Mapping[str, Path], *, owners: Owners | None = None
) -> Iterator[Change]:
    """Yield what changed from a snapshot to directories (path by volume).

    Everything is read. What the snapshot's patterns exclude is passed over; owners are
    compared when `owners` says who the agent is here.
    """
    missing = sorted(set(old.snapshot.volumes) - set(roots))
    if missing:
        raise NotFound(
            f"no directory for the volumes {', '.join(missing)}",
            hint="give a directory that holds one directory for each volume",
        )
    chosen = {volume: roots[volume] for volume in old.snapshot.volumes}
    with translated(), ExitStack() as stack:
        handles = open_roots(chosen)
        stack.callback(close_all, handles)
        here = owners or Owners(local=(0, 0), canonical=(0, 0))
        there = _disk_rows(old, handles, here)
        rows = (known.row for known in old.everything())
        yield from compare(rows, there, owners=owners is not None)


def plan_restore(
    tree: Tree,
    roots: Mapping[str, Path],
    owners: Owners,
    *,
    delete_extra: bool = False,
    paths: Sequence[bytes] = (),
) -> Iterator[Change]:
    """Yield what a restore into `roots`, maybe only of `paths`, would do; do nothing.

    `added` would be made, `changed` be written or given other attributes, `removed`
    deleted. No content is read: a file of the right size and time counts as right, as
    it does for a restore until it is read back. Directories need not exist.
    """
    volumes = volumes_of(tree.snapshot, paths)
    chosen = {v: roots[v] for v in volumes if v in roots and roots[v].exists()}
    with translated(), ExitStack() as stack:
        handles = open_roots(chosen)
        stack.callback(close_all, handles)
        here = _disk_rows(tree, handles, owners, quick=True)
        entries = select(tree, paths) if paths else tree.everything()
        there = (known.row for known in entries)
        for change in compare(here, there, owners=True, quick=True):
            if change.kind != "removed" or delete_extra:
                yield change


def compare(
    old: Iterable[Row], new: Iterable[Row], *, owners: bool, quick: bool = False
) -> Iterator[Change]:
    """Join two sequences of rows in walk order and yield where they differ.

    With `quick`, files of the same size and time have the same content.
    """
    left, right = iter(old), iter(new)
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if other is None or (one and walk_key(one[PATH]) < walk_key(other[PATH])):
            assert one is not None  # noqa: S101 - the loop's condition
            yield Change(path=one[PATH], kind="removed", old=one)
            one = next(left, None)
        elif one is None or walk_key(other[PATH]) < walk_key(one[PATH]):
            yield Change(path=other[PATH], kind="added", new=other)
            other = next(right, None)
        else:
            what = tuple(_differences(one, other, owners=owners, quick=quick))
            if what:
                path = one[PATH]
                yield Change(path=path, kind="changed", what=what, old=one, new=other)
            one, other = next(left, None), next(right, None)


def _differences(old: Row, new: Row, *, owners: bool, quick: bool) -> Iterator[str]:
    if old[TYPE] != new[TYPE]:
        yield "type"
    elif old[TYPE] == FILE:
        mark = MTIME if quick else DIGEST
        if (old[SIZE], old[mark]) != (new[SIZE], new[mark]):
            yield "content"
    elif old[TARGET:] != new[TARGET:]:
        yield "target"
    if owners and (old[UID], old[GID]) != (new[UID], new[GID]):
        yield "owner"
    for field, name in _FIELDS:
        if old[field] != new[field]:
            yield name


def _rows(
    tree: Tree, pages: Mapping[bytes, int], shared: AbstractSet[bytes]
) -> Iterator[Row]:
    for page_id, count in pages.items():
        if page_id not in shared:
            for known in tree.page(page_id, count):
                yield known.row


def _disk_rows(
    tree: Tree, handles: Mapping[str, int], owners: Owners, *, quick: bool = False
) -> Iterator[Row]:
    buffer = memoryview(bytearray(1 << 20))
    for volume, root in handles.items():
        first: dict[tuple[int, int], Row] = {}
        exclude = Exclude(tree.snapshot.excludes.get(volume, ()))
        for found in walk(root, volume, exclude, _pass_over):
            if quick and st.S_ISREG(found.stat.st_mode):
                yield _quick_row(found, owners, first)
                continue
            row = disk_row(found, owners, first, buffer)
            if row is not None:
                yield row


def _quick_row(found: Found, owners: Owners, first: dict[tuple[int, int], Row]) -> Row:
    inode = (found.stat.st_dev, found.stat.st_ino)
    if inode in first:
        return link_row(found.path, first[inode])
    xattrs = read_xattrs(f"/proc/self/fd/{found.parent}/{found.name}")
    common = common_fields(found.path, FILE, owners, xattrs, found.stat)
    row = (*common, found.stat.st_size, b"")
    if found.stat.st_nlink > 1:
        first[inode] = row
    return row


def _pass_over(_path: bytes) -> None:
    """Say nothing of what vanishes meanwhile: it is not there any more."""
