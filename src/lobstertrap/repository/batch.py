"""Many small files in one call: compiled (batch.c) where there was a compiler.

Three functions, each in C, without the interpreter's lock, and in Python, with the same
results (tests/unit/test_repository_batch.py); but Python reads nothing back. Either
leaves alone what is not simple: the caller looks at such a file by itself, and tells
what is wrong with it.
"""

from __future__ import annotations

import ctypes
import os
import stat as st
import struct
import time
from array import array
from collections.abc import Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.format import Buffer
from lobstertrap.repository.status import (
    NO_STAT,
    LightStatus,
    Mark,
    Stat,
    Status,
    mark_of,
    open_quietly,
    read_xattrs,
)

_TICKING = 5
"""CLOCK_REALTIME_COARSE, which files' times come from; `time` has no name for it."""

_STATUS = struct.Struct("=qQQqqqqqqqQ")
"""The fields of a `LightStatus`, as `struct status` in batch.c."""

_light_status = partial(tuple.__new__, LightStatus)
"""`LightStatus._make`, without a frame of the interpreter for each."""

_SEEN = struct.Struct("=qQ")
"""ctime and inode, as `struct seen` in batch.c."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LIBRARY = Path(__file__).with_name("libbatch.so")


class NewFile(NamedTuple):
    """A file to make of one piece of a segment; it has no attributes."""

    temporary: bytes
    """The name to write to; empty where nobody sees the directory yet."""
    name: bytes
    offset: int
    length: int
    mode: int
    uid: int
    gid: int
    mtime: int


def settled(ctime: int) -> bool:
    """Say whether a write from now on would show in a file's times.

    The kernel takes them from a clock that ticks every few milliseconds, so two writes
    in one tick leave the same. (From 6.13 on it tells a write after a look apart.)
    """
    return ctime != time.clock_gettime_ns(_TICKING)


def stat_files(parent: int, names: Sequence[bytes]) -> Sequence[Status | None]:
    """Return what names are, links not followed; None for one that does not tell."""
    if _library is None:
        return [_stat_here(parent, name) for name in names]
    size = _STATUS.size
    found = bytearray(size * len(names))
    _library.stat_files(
        parent,
        len(names),
        b"".join(name + b"\0" for name in names),
        (ctypes.c_char * len(found)).from_buffer(found),
    )
    every = map(_light_status, _STATUS.iter_unpack(found))
    return [status if status.st_mode else None for status in every]


def read_files(
    parent: int, names: Sequence[bytes], marks: Sequence[Mark], device: int
) -> list[memoryview | None]:
    """Return the contents of regular files.

    None for one that is not, after it was read, what its mark and `device` say; that
    was changed a moment ago; that cannot be read; or that has attributes.
    """
    buffer = bytearray(sum(mark[3] for mark in marks))
    read = _read_here if _library is None else _read_compiled
    try:
        places = read(parent, names, marks, device, buffer)
    except OverflowError:  # an inode above 2^63
        places = _read_here(parent, names, marks, device, buffer)
    view = memoryview(buffer)
    return [
        None if place < 0 else view[place : place + mark[3]]
        for place, mark in zip(places, marks, strict=True)
    ]


def write_files(
    parent: int, segment: Buffer, files: Sequence[NewFile]
) -> list[Stat | None]:
    """Make files, give them owner, mode and time, and read them back.

    Returns how each looks then, or None for one of which nothing is left: it could not
    be made. `NO_STAT` is for one that is there, and has to be looked at again: it was
    not read back, or is not, or not only, what it should be.
    """
    if any(file.offset + file.length > len(segment) for file in files):
        raise IntegrityError("a piece of a segment is behind its end")
    write = _write_here if _library is None else _write_compiled
    return write(parent, segment, files)


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        read, write = library.read_files, library.write_files
        look = library.stat_files
    except (OSError, AttributeError):  # there was no compiler, or it is another machine
        return None
    number, pointer = ctypes.c_int, ctypes.c_void_p
    look.restype = read.restype = write.restype = None
    start: tuple[Any, ...] = (number, ctypes.c_long, ctypes.c_char_p, pointer)
    read.argtypes = [*start, ctypes.c_uint64, pointer, pointer]
    write.argtypes = [*start, pointer, pointer, pointer]
    look.argtypes = [*start]
    return library


_library = _load()


def _compiled() -> ctypes.CDLL:
    if _library is None:
        raise RuntimeError
    return _library


def _read_compiled(
    parent: int,
    names: Sequence[bytes],
    marks: Sequence[Mark],
    device: int,
    buffer: bytearray,
) -> Sequence[int]:
    """Read files into `buffer`, and return where each begins; -1 for None."""
    wanted = array("q", chain.from_iterable(marks))
    places = array("q", bytes(8 * len(names)))
    _compiled().read_files(
        parent,
        len(names),
        b"".join(name + b"\0" for name in names),
        wanted.buffer_info()[0],
        device,
        (ctypes.c_char * len(buffer)).from_buffer(buffer),
        places.buffer_info()[0],
    )
    return places


def _stat_here(parent: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return None


def _read_here(
    parent: int,
    names: Sequence[bytes],
    marks: Sequence[Mark],
    device: int,
    buffer: bytearray,
) -> Sequence[int]:
    places, place, view = [], 0, memoryview(buffer)
    for name, mark in zip(names, marks, strict=True):
        piece = view[place : place + mark[3]]
        whole = settled(mark[0]) and _read_one(parent, name, mark, device, piece)
        places.append(place if whole else -1)
        place += mark[3]
    return places


def _read_one(
    parent: int, name: bytes, mark: Mark, device: int, piece: memoryview
) -> bool:
    try:
        handle = open_quietly(name, parent)
    except OSError:
        return False
    try:
        if os.readv(handle, [piece]) != mark[3] or read_xattrs(handle) is not None:
            return False
        now = os.fstat(handle)
    except OSError:
        return False
    finally:
        os.close(handle)
    regular = st.S_ISREG(now.st_mode) and now.st_dev == device
    return regular and mark_of(now) == mark


def _write_compiled(
    parent: int, segment: Buffer, files: Sequence[NewFile]
) -> list[Stat | None]:
    names = b"".join(b"%b\0%b\0" % (file.temporary, file.name) for file in files)
    plans = array("q", chain.from_iterable(file[2:] for file in files))
    done = bytearray(len(files))
    seen = bytearray(_SEEN.size * len(files))
    _compiled().write_files(
        parent,
        len(files),
        names,
        plans.buffer_info()[0],
        _pointer(segment),
        (ctypes.c_char * len(done)).from_buffer(done),
        (ctypes.c_char * len(seen)).from_buffer(seen),
    )
    every = zip(done, _SEEN.iter_unpack(seen), strict=True)
    return [stat if whole else None for whole, stat in every]


def _pointer(segment: Buffer) -> object:
    """Return what ctypes takes for the address of the first byte."""
    view = memoryview(segment)
    if not view.readonly:
        return (ctypes.c_char * view.nbytes).from_buffer(view)
    owner = view.obj
    whole = isinstance(owner, bytes) and len(owner) == view.nbytes
    return owner if whole else bytes(view)


def _write_here(
    parent: int, segment: Buffer, files: Sequence[NewFile]
) -> list[Stat | None]:
    view = memoryview(segment)
    pieces = (view[file.offset : file.offset + file.length] for file in files)
    done = map(_write_one, repeat(parent), pieces, files)
    # Here it is quicker to read them back at the end, many in a row.
    return [NO_STAT if whole else None for whole in done]


def _write_one(parent: int, data: memoryview, file: NewFile) -> bool:
    hidden = not file.temporary
    first = file.name if hidden else file.temporary
    mode = file.mode & 0o777 if hidden else 0o600
    try:
        handle = os.open(first, _NEW, mode, dir_fd=parent)
    except OSError:
        return False
    try:
        try:
            _fill(handle, data, file)
        finally:
            os.close(handle)
        if not hidden:
            os.rename(first, file.name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError:
        os.unlink(first, dir_fd=parent)
        return False
    return True


def _fill(handle: int, data: memoryview, file: NewFile) -> None:
    """Write a file; the time comes last: what has the right one is whole."""
    while data:
        data = data[os.write(handle, data) :]
    now = os.fstat(handle)
    if (now.st_uid, now.st_gid) != (file.uid, file.gid):
        os.fchown(handle, file.uid, file.gid)
    if now.st_mode & 0o7777 != file.mode:
        os.fchmod(handle, file.mode)
    os.utime(handle, ns=(file.mtime, file.mtime))
