"""What the operating system says and does: its errors in our words, and syncfs."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from lobstertrap.errors import AccessDenied, NoSpace, Permanent

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def translated() -> Iterator[None]:
    """Turn an `OSError` of the block into an error of ours."""
    try:
        yield
    except OSError as error:
        where = f": {os.fsdecode(error.filename)!r}" if error.filename else ""
        text = f"{(error.strerror or str(error)).lower()}{where}"
        if error.errno in _FULL:
            raise NoSpace(text, hint="free space there and run it again") from error
        if error.errno in _DENIED:
            raise AccessDenied(text, hint="run as a user who may do this") from error
        if error.errno == errno.EMFILE:
            raise Permanent(text, hint="raise the limit of open files") from error
        raise Permanent(text) from error


def sync_file_system(handle: int) -> None:
    """Return when everything written to the file system of `handle` is on the disk."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(handle) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def syncing(handles: Iterable[int]) -> Iterator[None]:
    """Sync file systems while the block, which writes nothing, runs."""
    with ThreadPoolExecutor(1, "sync") as pool:
        futures = [pool.submit(sync_file_system, handle) for handle in handles]
        yield
        for future in futures:
            future.result()


def spare_handles() -> int:
    """Return how many files this process may open, with some kept for others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else max(soft - 256, 64)


def raise_file_limit() -> None:
    """Let this process open as many files as it may: deep trees need handles."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return
