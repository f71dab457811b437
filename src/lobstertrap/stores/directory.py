"""A store in a directory: one file per object, safe between threads and processes.

Keys hold no `~`, so two names at the top are free for ourselves: `~lock`, on which
whoever changes the directory holds a flock for the moment of the rename, and `~tmp`,
where files are written first. The kernel frees the locks of a process that dies.

An etag is the file's time of modification, inode and size. The time is set by hand in
nanoseconds and always later than that of the file that is replaced, so it is never the
same twice, whatever the file system's own clock ticks.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from lobstertrap import errors
from lobstertrap.errors import Conflict, IntegrityError, NotFound
from lobstertrap.stores.base import ObjectInfo, StoredObject
from lobstertrap.stores.files import (
    create_locked,
    look,
    make_directories,
    sweep,
    sync_directories,
    translated,
    try_lock,
)
from lobstertrap.stores.keys import (
    as_buffers,
    check_condition,
    check_key,
    check_prefix,
    check_range,
    is_segment,
)

_LOCK_SECONDS = 30
_COARSEST_CLOCK_NS = 2_000_000_000
"""FAT keeps times in steps of two seconds."""


class DirectoryStore:
    """Objects as files below `path`, which the first put makes (mode 0700)."""

    def __init__(self, path: Path, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._root = path.absolute()
        self._now_ns = now_ns
        self._swept = False

    @property
    def url(self) -> str:
        """`file:///absolute/path`."""
        return self._root.as_uri()

    def put(
        self,
        key: str,
        data: bytes | Sequence[bytes],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Store `data`: written and synced aside, then renamed under the lock."""
        path = self._path(key)
        check_condition(if_absent=if_absent, if_match=if_match)
        with self._translated("writing", key):
            self._prepare()
            with self._written_aside(as_buffers(data)) as (descriptor, aside):
                with self._locked():
                    present = look(path)
                    etag = None if present is None else _etag(present)
                    if (if_absent and etag is not None) or if_match not in {None, etag}:
                        raise Conflict(
                            f"object {key!r} of {self.url} is not as expected"
                        )
                    made = make_directories(path.parent)
                    self._stamp(descriptor, present)
                    aside.rename(path)
                sync_directories([path.parent, *made])
                return _etag(os.fstat(descriptor))

    def get(self, key: str) -> StoredObject:
        """Return the whole object; raises `NotFound`."""
        with self._opened(key) as descriptor:
            found = os.fstat(descriptor)
            data = self._read(key, descriptor, 0, found.st_size)
        return StoredObject(data=data, etag=_etag(found))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`."""
        check_range(start, length)
        with self._opened(key) as descriptor:
            if os.fstat(descriptor).st_size < start + length:
                raise self._too_short(key, start + length)
            return self._read(key, descriptor, start, length)

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of the object; raises `NotFound`."""
        with self._translated("looking at", key):
            found = look(self._path(key))
        if found is None:
            raise self._missing(key)
        return _info(key, found)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield objects sorted by key, with one directory of each level in memory."""
        check_prefix(prefix)
        parent = prefix.rpartition("/")[0]
        return self._walk(self._root / parent, f"{parent}/" if parent else "", prefix)

    def delete(self, key: str) -> None:
        """Remove the object, and the directories that are empty then."""
        path = self._path(key)
        with self._translated("deleting", key):
            if look(path) is None:
                return
            with self._locked():
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # the first one that is not empty
                    for parent in path.parents:
                        if parent == self._root:
                            break
                        parent.rmdir()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _prepare(self) -> None:
        """Make the store's own directories, and sweep what killed writers left."""
        temporary = self._root / "~tmp"
        if not temporary.is_dir():
            sync_directories(make_directories(temporary))
        if not self._swept:
            sweep(temporary)
            self._swept = True

    @contextmanager
    def _written_aside(self, buffers: Sequence[bytes]) -> Iterator[tuple[int, Path]]:
        """Write and sync a file in `~tmp`; remove it unless it was renamed away.

        It is locked while its writer lives, which is how a sweep knows.
        """
        descriptor, aside = create_locked(self._root / "~tmp")
        try:
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                while len(view):
                    view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
            yield descriptor, aside
        finally:
            aside.unlink(missing_ok=True)
            os.close(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the store's lock; raises `Unavailable` when it cannot be had in time."""
        descriptor = os.open(self._root / "~lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + _LOCK_SECONDS
            while not try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise errors.Unavailable(
                        f"the lock of {self.url} is held for {_LOCK_SECONDS} s",
                        hint="look for a stopped process that holds it",
                    )
                time.sleep(random.uniform(0.0005, 0.005))  # noqa: S311 - only a pause
            yield
        finally:
            os.close(descriptor)

    def _stamp(self, descriptor: int, present: os.stat_result | None) -> None:
        """Give the file a time of modification later than that of the present one."""
        before = 0 if present is None else present.st_mtime_ns
        wanted = max(self._now_ns(), before + 1)
        os.utime(descriptor, ns=(wanted, wanted))
        if os.fstat(descriptor).st_mtime_ns <= before:
            wanted = before + _COARSEST_CLOCK_NS
            os.utime(descriptor, ns=(wanted, wanted))

    @contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        with self._translated("reading", key):
            try:
                descriptor = os.open(self._path(key), os.O_RDONLY)
            except (FileNotFoundError, NotADirectoryError):
                raise self._missing(key) from None
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise self._missing(key)
                yield descriptor
            finally:
                os.close(descriptor)

    def _read(self, key: str, descriptor: int, start: int, length: int) -> bytes:
        data = os.pread(descriptor, length, start)
        while len(data) < length:  # one read returns at most 2 GiB
            more = os.pread(descriptor, length - len(data), start + len(data))
            if not more:
                raise self._too_short(key, start + length)
            data += more
        return data

    def _walk(self, directory: Path, base: str, prefix: str) -> Iterator[ObjectInfo]:
        with self._translated("listing", base):
            entries = _entries(directory)
        for name, entry in entries:
            key = base + name
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(directory / name, key, prefix)
            elif key.startswith(prefix):
                with self._translated("listing", key):
                    found = look(Path(entry))
                if found is not None:  # it may have been deleted meanwhile
                    yield _info(key, found)

    def _missing(self, key: str) -> NotFound:
        return NotFound(f"object {key!r} does not exist in {self.url}")

    def _too_short(self, key: str, end: int) -> IntegrityError:
        return IntegrityError(
            f"object {key!r} of {self.url} ends before byte {end}",
            hint="check the repository: the object is shorter than its index says",
        )

    def _translated(self, doing: str, key: str) -> AbstractContextManager[None]:
        return translated(f"{doing} {key!r} in {self.url}")


def _etag(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}"


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        size=found.st_size,
        etag=_etag(found),
        modified=found.st_mtime_ns / 1e9,
    )


def _entries(directory: Path) -> list[tuple[str, str]]:
    """Return (name, path) of what may be an object's, a directory's ending in `/`.

    Sorted so, a walk yields keys in their own order: `a-b` before `a/b`.
    """
    try:
        with os.scandir(directory) as found:
            return sorted(
                (f"{e.name}/" if e.is_dir() else e.name, e.path)
                for e in found
                if is_segment(e.name)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
