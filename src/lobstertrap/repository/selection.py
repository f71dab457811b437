"""A selection: some paths of a snapshot as a tree that is whole in itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lobstertrap.repository.browse import Tree
from lobstertrap.repository.entry import (
    DIGEST,
    DIRECTORY,
    FILE,
    HARD_LINK,
    PATH,
    SIZE,
    TARGET,
    TYPE,
)
from lobstertrap.repository.snapshot import Snapshot
from lobstertrap.repository.tree import Known


def select(tree: Tree, paths: Sequence[bytes]) -> Iterator[Known]:
    """Yield the entries at and below `paths`, and the directories that lead to them.

    A hard link to a file that is not among them becomes the file. All entries are
    looked at, and the tree digest is proven. Raises `NotFound` for a path that is not
    there.
    """
    for path in paths:
        tree.entry(path)
    chosen = _Paths(paths)
    needed = _targets(tree, chosen)
    waiting: dict[bytes, Known] = {}
    names: dict[bytes, bytes] = {}
    for known in tree.everything():
        row = known.row
        path = row[PATH]
        if row[TYPE] == FILE and path in needed:
            waiting[path] = known
        if not (chosen.has(path) or (row[TYPE] == DIRECTORY and chosen.below(path))):
            continue
        if row[TYPE] != HARD_LINK or row[TARGET] not in needed:
            yield known
        elif row[TARGET] in names:
            yield known._replace(row=(*row[:TARGET], names[row[TARGET]]))
        else:
            names[row[TARGET]] = path
            yield _as_file(known, waiting[row[TARGET]])


def volumes_of(snapshot: Snapshot, paths: Sequence[bytes]) -> tuple[str, ...]:
    """Return the volumes that `paths` are in; all when there are none."""
    if not paths:
        return snapshot.volumes
    first = {path.partition(b"/")[0] for path in paths}
    return tuple(volume for volume in snapshot.volumes if volume.encode() in first)


def _as_file(link: Known, file: Known) -> Known:
    row = (link.row[PATH], FILE, *file.row[2:SIZE], file.row[SIZE], file.row[DIGEST])
    return file._replace(row=row)


def _targets(tree: Tree, chosen: _Paths) -> set[bytes]:
    """Return the files outside of the selection that links in it are names of."""
    found = set()
    for path in chosen.paths:
        entry = tree.entry(path)
        inside = [entry]
        if entry.row[TYPE] == DIRECTORY:
            inside.extend(
                known
                for known in tree.below(path, recursive=True)
                if known.row[TYPE] == HARD_LINK
            )
        found |= {
            known.row[TARGET]
            for known in inside
            if known.row[TYPE] == HARD_LINK and not chosen.has(known.row[TARGET])
        }
    return found


class _Paths:
    def __init__(self, paths: Sequence[bytes]) -> None:
        self.paths = tuple(paths)
        self._whole = frozenset(paths)
        self._inside = tuple(path + b"/" for path in paths)

    def has(self, path: bytes) -> bool:
        """Say whether `path` is selected."""
        return path in self._whole or path.startswith(self._inside)

    def below(self, path: bytes) -> bool:
        """Say whether something below `path` is selected."""
        return any(inside.startswith(path + b"/") for inside in self._inside)
