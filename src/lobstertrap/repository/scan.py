"""The walk over a volume, in walk order, by handles that no link can divert."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lobstertrap.errors import AccessDenied, InvalidInput, NotFound
from lobstertrap.repository.batch import stat_files
from lobstertrap.repository.entry import shown
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.status import Status

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE}


class Found(NamedTuple):
    """One name in the walk."""

    path: bytes
    """With the volume's name in front."""
    name: str
    parent: int
    """Handle of the directory that holds it."""
    stat: Status
    handle: int
    """Of a directory itself; -1 for everything else. Closed when the walk goes on."""
    siblings: Container[bytes] = ()
    """The names in the same directory, when it was listed."""


class Run(NamedTuple):
    """Names of one directory that follow each other, and none of them a directory's."""

    paths: list[bytes]
    """With the volume's name in front."""
    names: list[bytes]
    stats: list[Status]
    parent: int
    siblings: Container[bytes] = ()

    def found(self, place: int) -> Found:
        """Return one of them."""
        return Found(
            self.paths[place],
            os.fsdecode(self.names[place]),
            self.parent,
            self.stats[place],
            -1,
            self.siblings,
        )


_RUN = 128
"""Names in a run: what is read of a file is compared with a stat that old."""

_LOST_AND_FOUND_INODE = 11
"""What mkfs.ext4 always gives it."""

_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
"""What `os.fsencode` looks up for every name."""

OnGone = Callable[[bytes], None]


def open_root(volume: str, root: Path) -> int:
    """Return a handle of a volume's root directory; it may itself be a link."""
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(
            f"volume '{volume}' does not exist at {root}",
            hint="launch the agent first, or restore a snapshot",
        ) from None
    except NotADirectoryError:
        raise InvalidInput(f"volume '{volume}' at {root} is not a directory") from None
    except PermissionError:
        raise unreadable(volume.encode()) from None


def unreadable(path: bytes) -> AccessDenied:
    """Return the error for something that the user may not read."""
    return AccessDenied(
        f"{shown(path)} is not readable",
        hint="run as a user who may read it, or exclude it in the agent's spec",
    )


def walk(root: int, volume: str, exclude: Exclude, on_gone: OnGone) -> Iterator[Found]:
    """Yield the root directory and everything below it; see `walk_runs`."""
    for found in walk_runs(root, volume, exclude, on_gone):
        if isinstance(found, Run):
            yield from map(found.found, range(len(found.paths)))
        else:
            yield found


def walk_runs(
    root: int, volume: str, exclude: Exclude, on_gone: OnGone
) -> Iterator[Found | Run]:
    """Yield directories, the root first, and runs of what is in them, in walk order.

    What vanishes meanwhile is passed to `on_gone`. Raises `AccessDenied` for a
    directory that cannot be read: left out silently, a migration would lose it.
    """
    base = volume.encode()
    yield Found(base, ".", root, os.fstat(root), root)
    stack = [(_Listing(root, base), base + b"/", root)]
    skip = len(base) + 1
    try:
        while stack:
            listing, prefix, parent = stack[-1]
            for found in _names(
                listing, prefix, parent, on_gone=on_gone, exclude=exclude, skip=skip
            ):
                if isinstance(found, Found):
                    stack.append((listing, b"", found.handle))
                    below = _Listing(found.handle, found.path)
                    stack[-1] = (below, found.path + b"/", found.handle)
                    yield found
                    break
                yield found
            else:
                stack.pop()
                if parent != root:
                    os.close(parent)
    finally:
        for _, _, handle in stack:
            if handle != root:
                os.close(handle)


def _names(
    listing: _Listing,
    prefix: bytes,
    parent: int,
    *,
    on_gone: OnGone,
    exclude: Exclude,
    skip: int,
) -> Iterator[Found | Run]:
    for part in listing.rest:
        if isinstance(part, list):
            run = _look(part, prefix, parent, on_gone, exclude=exclude, skip=skip)
            if run.paths:
                yield run._replace(siblings=listing.names)
            continue
        path = prefix + os.fsencode(part.name)
        status = _status(part.name, parent, path, on_gone)
        if status is None or exclude.matches(path[skip:], directory=True):
            continue
        if not belongs_to_file_system(path[skip:], status):
            handle = _open_directory(part.name, parent, path, on_gone)
            if handle >= 0:
                yield Found(path, part.name, parent, os.fstat(handle), handle)


def _look(
    names: list[bytes],
    prefix: bytes,
    parent: int,
    on_gone: OnGone,
    *,
    exclude: Exclude,
    skip: int,
) -> Run:
    """Return what of these names is there, shall be kept, and is no directory."""
    excluding = bool(exclude)
    stats = stat_files(parent, names)
    files = [light for light in stats if light and not stat.S_ISDIR(light.st_mode)]
    if len(files) == len(names) and not excluding:
        return Run([prefix + raw for raw in names], names, files, parent)
    run = Run([], [], [], parent)
    for raw, light in zip(names, stats, strict=True):
        path = prefix + raw
        if excluding and exclude.matches(path[skip:], directory=False):
            continue
        status = light or _status(raw, parent, path, on_gone)
        if status is None:
            continue
        if stat.S_ISDIR(status.st_mode):  # since it was listed
            on_gone(path)
            continue
        run.paths.append(path)
        run.names.append(raw)
        run.stats.append(status)
    return run


def _status(
    name: str | bytes, parent: int, path: bytes, on_gone: OnGone
) -> Status | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno not in GONE:
            raise unreadable(path) from error
        on_gone(path)
        return None


def _open_directory(name: str, parent: int, path: bytes, on_gone: OnGone) -> int:
    try:
        return os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
    except PermissionError:
        raise unreadable(path) from None
    except OSError as error:
        if error.errno not in GONE:
            raise
        on_gone(path)
        return -1


class _Listing:
    """The names of one directory, and those that the walk has not come to."""

    __slots__ = ("names", "rest")

    def __init__(self, handle: int, path: bytes) -> None:
        try:
            with os.scandir(handle) as entries:
                self.names = {
                    entry.name.encode(_ENCODING, _ERRORS): entry for entry in entries
                }
        except PermissionError:
            raise unreadable(path) from None
        self.rest = self._parts()

    def _parts(self) -> Iterator[list[bytes] | os.DirEntry[str]]:
        """Yield directories, and between them the names of everything else."""
        run: list[bytes] = []
        for name, entry in sorted(self.names.items()):
            directory = _is_directory(entry)
            if not directory:
                run.append(name)
            if run and (directory or len(run) == _RUN):
                yield run
                run = []
            if directory:
                yield entry
        if run:
            yield run


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:  # whoever looks closer tells
        return False


def belongs_to_file_system(relative: bytes, status: Status) -> bool:
    """Say whether this is ext4's own `lost+found`, which no agent's data is in."""
    return (
        relative == b"lost+found"
        and status.st_ino == _LOST_AND_FOUND_INODE
        and status.st_uid == 0
        and stat.S_ISDIR(status.st_mode)
    )


def data_extents(handle: int, size: int) -> list[tuple[int, int]]:
    """Return (start, end) of what is not a hole."""
    extents = []
    position = 0
    while position < size:
        try:
            start = os.lseek(handle, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            if error.errno == errno.EINVAL:  # a file system without holes
                return [(0, size)]
            raise
        end = min(os.lseek(handle, start, os.SEEK_HOLE), size)
        if start >= size:
            break
        extents.append((start, end))
        position = end
    return extents


def open_roots(roots: Mapping[str, Path]) -> dict[str, int]:
    """Return handles by volume, in walk order; closes all of them when one fails."""
    handles: dict[str, int] = {}
    try:
        for volume in sorted(roots, key=str.encode):
            handles[volume] = open_root(volume, Path(roots[volume]))
    except BaseException:
        close_all(handles)
        raise
    return handles


def close_all(handles: Mapping[str, int]) -> None:
    """Close handles that `open_roots` returned."""
    for handle in handles.values():
        os.close(handle)
