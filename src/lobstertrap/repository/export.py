"""The export: a snapshot as a standard tar (pax), which GNU tar and others unpack.

In it are nanosecond times, extended attributes (SCHILY.xattr), sparse files (GNU's
sparse format 1.0), hard links, and names of any bytes. Owners are the canonical ones.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from itertools import chain
from typing import Protocol

from lobstertrap.errors import IntegrityError, NotFound
from lobstertrap.repository.browse import Tree
from lobstertrap.repository.entry import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    GID,
    HARD_LINK,
    MAJOR,
    MINOR,
    MODE,
    MTIME,
    PATH,
    SIZE,
    SYMLINK,
    TARGET,
    TYPE,
    UID,
    XATTRS,
    Row,
    shown,
)
from lobstertrap.repository.format import HOLE
from lobstertrap.repository.selection import select
from lobstertrap.repository.tree import Known

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_RECORD = 20 * _BLOCK
_BILLION = 10**9
_TYPES = {
    FILE: tarfile.REGTYPE,
    DIRECTORY: tarfile.DIRTYPE,
    SYMLINK: tarfile.SYMTYPE,
    FIFO: tarfile.FIFOTYPE,
    HARD_LINK: tarfile.LNKTYPE,
    CHARACTER_DEVICE: tarfile.CHRTYPE,
    BLOCK_DEVICE: tarfile.BLKTYPE,
}


class Sink(Protocol):
    """Where the tar goes: a file, a pipe."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""


def export(
    tree: Tree, out: Sink, *, volume: str | None = None, paths: Sequence[bytes] = ()
) -> int:
    """Write a snapshot as a tar to `out` and return its size in bytes.

    With `volume`, only that one, and names begin at its root, as `podman volume import`
    wants them. With `paths`, only these, what is below them, and the directories that
    lead to them; a file of which only a later name is among them comes under that name.

    All entries are looked at, so that the tree digest is proven. The tar's end is
    written only after every digest has been: one that was cut off by an
    `IntegrityError` is no valid archive.
    """
    if volume is not None and volume not in tree.snapshot.volumes:
        raise NotFound(
            f"snapshot {tree.snapshot.short_id} has no volume '{volume}'",
            hint=f"it has: {', '.join(tree.snapshot.volumes)}",
        )
    writer = _Writer(tree, out, volume.encode() if volume is not None else None)
    chosen = select(tree, paths) if paths else tree.everything()
    for known in chosen:
        writer.add(known)
    writer.finish()
    return writer.size


class _Writer:
    def __init__(self, tree: Tree, out: Sink, volume: bytes | None) -> None:
        self._tree = tree
        self._out = out
        self._volume = volume
        self.size = 0

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self.size += len(data)

    def _pad(self, unit: int) -> None:
        self._write(bytes(-self.size % unit))

    def add(self, known: Known) -> None:
        """Write one entry, unless it is of another volume."""
        row = known.row
        if self._volume not in (None, row[PATH].partition(b"/")[0]):
            return
        headers = _pax(row)
        if row[TYPE] != FILE:
            self._write(self._header(row, 0, headers))
            return
        extents = self._extents(known)
        if extents is None:
            self._write(self._header(row, row[SIZE], headers))
        else:
            name = _text(self._name(row[PATH]))
            table = _sparse_map(extents)
            headers |= {
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": name,
                "GNU.sparse.realsize": str(row[SIZE]),
            }
            stored = len(table) + sum(length for _, length in extents)
            self._write(self._header(row, stored, headers))
            self._write(table)
        self._write_content(known)

    def finish(self) -> None:
        """Write the end of the archive."""
        self._write(_END)
        self._pad(_RECORD)

    def _write_content(self, known: Known) -> None:
        for piece in self._tree.read(known):
            if isinstance(piece, bytes):
                self._write(piece)
        self._pad(_BLOCK)

    def _extents(self, known: Known) -> list[tuple[int, int]] | None:
        """Return (offset, length) of what is not a hole; None when there is no hole."""
        content = known.content
        if isinstance(content, bytes) and HOLE not in content:
            return None
        extents, place, holes = list[tuple[int, int]](), 0, False
        for chunk_id, length in self._tree.items(known):
            if chunk_id == HOLE:
                holes = True
            elif extents and sum(extents[-1]) == place:
                extents[-1] = (extents[-1][0], extents[-1][1] + length)
            else:
                extents.append((place, length))
            place += length
        if not extents or sum(extents[-1]) < place:
            extents.append((place, 0))  # so that GNU tar makes the hole at the end
        return extents if holes else None

    def _name(self, path: bytes) -> bytes:
        if self._volume is None:
            return path
        volume, _, below = path.partition(b"/")
        if volume != self._volume:
            raise IntegrityError(f"{shown(path)} is in another volume than its link")
        return b"./" + below

    def _header(self, row: Row, size: int, headers: dict[str, str]) -> bytes:
        info = tarfile.TarInfo(_text(self._name(row[PATH])))
        info.type = _TYPES[row[TYPE]]
        info.mode, info.uid, info.gid = row[MODE], row[UID], row[GID]
        info.mtime = max(0, row[MTIME] // _BILLION)
        info.size = size
        if row[TYPE] == SYMLINK:
            info.linkname = _text(row[TARGET])
        elif row[TYPE] == HARD_LINK:
            info.linkname = _text(self._name(row[TARGET]))
        elif row[TYPE] in (CHARACTER_DEVICE, BLOCK_DEVICE):
            info.devmajor, info.devminor = row[MAJOR], row[MINOR]
        info.pax_headers = headers
        try:
            return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        except ValueError as error:
            raise IntegrityError(
                f"{shown(row[PATH])} does not fit into a tar: {error}"
            ) from error


def _pax(row: Row) -> dict[str, str]:
    headers = {"mtime": _seconds(row[MTIME])}
    for name, value in row[XATTRS] or ():
        key = _text(name).replace("%", "%25").replace("=", "%3D")
        headers[f"SCHILY.xattr.{key}"] = _text(value)
    return headers


def _seconds(nanoseconds: int) -> str:
    whole, rest = divmod(abs(nanoseconds), _BILLION)
    sign = "-" if nanoseconds < 0 else ""
    return f"{sign}{whole}.{rest:09d}" if rest else f"{sign}{whole}"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _sparse_map(extents: list[tuple[int, int]]) -> bytes:
    """Return the map that stands before the data in GNU's sparse format 1.0."""
    numbers = chain.from_iterable(extents)
    lines = b"".join(b"%d\n" % n for n in chain((len(extents),), numbers))
    return lines + bytes(-len(lines) % _BLOCK)
