"""The import: a tar from anywhere, unpacked into an empty directory and nowhere else.

People arrive with `podman volume export` files. What comes out is an ordinary
directory, ready for an ordinary snapshot.
"""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Any, cast

from lobstertrap.errors import InvalidInput
from lobstertrap.repository.attributes import Attributes
from lobstertrap.repository.entry import (
    DIRECTORY,
    FIFO,
    FILE,
    SYMLINK,
    Row,
    kept_xattr,
    shown,
)
from lobstertrap.repository.scan import DIRECTORY_FLAGS
from lobstertrap.repository.snapshot import Owners
from lobstertrap.repository.system import translated
from lobstertrap.repository.warnings import Warnings

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20
_NAME_MAX = 255
_PREFIX = "SCHILY.xattr."
_IDENTITY = Owners(local=(0, 0), canonical=(0, 0))

DEVICE = "is a device and was left out"
UNKNOWN = "is of a kind that volumes do not hold and was left out"


@dataclass(slots=True, kw_only=True)
class Unpacked:
    """What came out of a tar."""

    files: int = 0
    """Everything but directories."""
    bytes: int = 0
    warnings: tuple[str, ...] = ()


class _Member(tarfile.TarInfo):
    """A member whose broken header is an error: `tarfile` takes it for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile)
        except _HEADER_ERROR as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise _broken("it has no end, or something else in it") from error


_HEADER_ERROR = tarfile.HeaderError


def unpack(source: IO[bytes], directory: Path) -> Unpacked:
    """Unpack the tar in `source` (perhaps gz, bz2 or xz) into the empty `directory`.

    Nothing is written anywhere else: every name is taken apart, and no link is ever
    followed. Absolute names, `..`, names that occur twice and hard links to what is not
    in the tar are refused with the name; devices are left out and said. Owners are set
    as far as the user may. Raises `InvalidInput` for what is no tar, or not all of one.
    """
    try:
        with (
            translated(),
            tarfile.open(
                fileobj=source,
                mode="r|*",
                tarinfo=_Member,
                encoding="utf-8",
                errors="surrogateescape",
            ) as tar,
        ):
            return _Unpacking(tar, directory).run()
    except tarfile.TarError as error:
        raise _broken(str(error)) from error
    except (EOFError, ValueError) as error:  # from a compressed stream, or its numbers
        raise _broken(str(error)) from error


def _broken(why: str) -> InvalidInput:
    return InvalidInput(
        f"this is not a whole tar archive: {why}",
        hint="make it again, for example with `podman volume export`",
    )


@dataclass(slots=True)
class _Unpacking:
    tar: tarfile.TarFile
    directory: Path
    warnings: Warnings = field(default_factory=Warnings)
    result: Unpacked = field(default_factory=Unpacked)
    _seen: dict[bytes, int] = field(default_factory=dict)
    _directories: list[Row] = field(default_factory=list)

    def run(self) -> Unpacked:
        root = os.open(self.directory, DIRECTORY_FLAGS)
        attributes = Attributes(_IDENTITY, self.warnings)
        try:
            if os.listdir(root):  # noqa: PTH208 - by handle
                raise InvalidInput(f"{self.directory} is not empty")
            self._seen[b""] = DIRECTORY
            for member in self.tar:
                self._member(root, member, attributes)
            if not self._directories and not self.result.files:
                raise _broken("there is nothing in it")
            # The deepest first: what is made in a directory changes its time.
            for row in sorted(self._directories, key=lambda r: r[0], reverse=True):
                handle = _walk_to(root, row[0])
                try:
                    attributes.apply_existing(handle, row, os.fstat(handle))
                finally:
                    os.close(handle)
        finally:
            os.close(root)
        self.result.warnings = self.warnings.finish()
        return self.result

    def _member(
        self, root: int, member: tarfile.TarInfo, attributes: Attributes
    ) -> None:
        path = _plain(member.name)
        kind = _kind(member)
        if kind is None:
            device = member.ischr() or member.isblk()
            self.warnings.add(path, DEVICE if device else UNKNOWN)
            return
        if kind == DIRECTORY:
            self._make_directories(root, path)
            self._directories.append(_row(path, kind, member))
            return
        if path in self._seen:
            raise _dangerous(path, "occurs twice")
        parent, _, name = path.rpartition(b"/")
        self._make_directories(root, parent)
        self._seen[path] = -1 if member.islnk() else kind
        handle = _walk_to(root, parent)
        try:
            if member.islnk():
                self._link(root, member, handle, name)
            else:
                self._make(member, handle, name, _row(path, kind, member), attributes)
        finally:
            os.close(handle)
        self.result.files += 1

    def _make_directories(self, root: int, path: bytes) -> None:
        """Make what is missing of a path of directories, open to their owner."""
        parts = path.split(b"/") if path else []
        for depth in range(1, len(parts) + 1):
            here = b"/".join(parts[:depth])
            known = self._seen.setdefault(here, DIRECTORY)
            if known != DIRECTORY:
                raise _dangerous(path, f"leads through {shown(here)}, no directory")
            handle = _walk_to(root, b"/".join(parts[: depth - 1]))
            try:
                os.mkdir(parts[depth - 1], 0o755, dir_fd=handle)
            except FileExistsError:
                pass
            finally:
                os.close(handle)

    def _make(
        self,
        member: tarfile.TarInfo,
        parent: int,
        name: bytes,
        row: Row,
        attributes: Attributes,
    ) -> None:
        if row[1] == FILE:
            handle = os.open(name, _NEW, 0o600, dir_fd=parent)
            try:
                self._fill(handle, member)
                attributes.apply_new(handle, row)
            finally:
                os.close(handle)
            return
        if row[1] == SYMLINK:
            os.symlink(_raw(member.linkname), name, dir_fd=parent)
        else:
            os.mkfifo(name, 0o600, dir_fd=parent)
        text = os.fsdecode(name)
        attributes.apply_by_name(text, parent, row, link=row[1] == SYMLINK)

    def _fill(self, handle: int, member: tarfile.TarInfo) -> None:
        # Straight from the stream: there the data of all extents is in one piece, and
        # `extractfile` wants to seek.
        stream = cast("Any", self.tar.fileobj)
        stream.seek(member.offset_data)
        os.ftruncate(handle, member.size)
        for offset, length in _extents(member):
            done = 0
            while done < length:
                data = memoryview(stream.read(min(_PIECE, length - done)))
                if not data:
                    raise _broken("it was cut off")
                while data:
                    count = os.pwrite(handle, data, offset + done)
                    data, done = data[count:], done + count
        self.result.bytes += member.size

    def _link(
        self, root: int, member: tarfile.TarInfo, parent: int, name: bytes
    ) -> None:
        target = _plain(member.linkname)
        if self._seen.get(target) not in (FILE, -1):
            path = _plain(member.name)
            raise _dangerous(path, f"is a link to {shown(target)}, no file before it")
        above, _, first = target.rpartition(b"/")
        handle = _walk_to(root, above)
        try:
            os.link(
                first, name, src_dir_fd=handle, dst_dir_fd=parent, follow_symlinks=False
            )
        finally:
            os.close(handle)


def _walk_to(root: int, path: bytes) -> int:
    """Return a new handle of the directory `path`; no link is followed."""
    handle = os.dup(root)
    for part in path.split(b"/") if path else []:
        try:
            below = os.open(part, DIRECTORY_FLAGS, dir_fd=handle)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise _dangerous(path, "leads through a link") from error
            raise
        finally:
            os.close(handle)
        handle = below
    return handle


def _plain(name: str) -> bytes:
    """Return the path of a member below the root; b"" is the root itself."""
    raw = _raw(name)
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if raw.startswith(b"/") or b".." in parts or b"\0" in raw:
        raise _dangerous(raw, "would be written elsewhere")
    if any(len(part) > _NAME_MAX for part in parts):
        raise _dangerous(raw, "is too long a name")
    return b"/".join(parts)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _dangerous(path: bytes, why: str) -> InvalidInput:
    return InvalidInput(
        f"{shown(path)} in the archive {why}",
        hint="make the archive again, from the volume's root directory",
    )


def _kind(member: tarfile.TarInfo) -> int | None:
    if member.isdir():
        return DIRECTORY
    if member.issym():
        return SYMLINK
    if member.isfifo():
        return FIFO
    return FILE if member.isreg() or member.islnk() else None


def _row(path: bytes, kind: int, member: tarfile.TarInfo) -> Row:
    """Return the fields of an entry that `Attributes` needs."""
    xattrs = tuple(sorted(_xattrs(member.pax_headers))) or None
    mode = member.mode & 0o7777
    return (path, kind, mode, member.uid, member.gid, _mtime(member), xattrs)


def _xattrs(headers: Mapping[str, str]) -> Iterator[tuple[bytes, bytes]]:
    for key, value in headers.items():
        if key.startswith(_PREFIX):
            name = _raw(key.removeprefix(_PREFIX))
            name = name.replace(b"%3D", b"=").replace(b"%25", b"%")
            if kept_xattr(name):
                yield name, _raw(value)


def _mtime(member: tarfile.TarInfo) -> int:
    """Return nanoseconds; `tarfile` itself goes through a float and loses some."""
    text = member.pax_headers.get("mtime")
    if text is None:
        return int(member.mtime) * 10**9
    try:
        return int(Decimal(text).scaleb(9))
    except (InvalidOperation, ValueError, OverflowError):
        raise _broken(f"{member.name!r} has a time that is no number") from None


def _extents(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    if member.issparse():
        found = cast("Any", member.sparse)  # a list of pairs, whatever the stubs say
        return [(offset, length) for offset, length in found if length]
    return [(0, member.size)] if member.size else []
