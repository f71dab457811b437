"""Reading ahead: files that are not in memory are asked for before they are read."""

import ctypes
import mmap
import os
import time
from pathlib import Path

import pytest

from lobstertrap.repository.ahead import ReadAhead
from lobstertrap.repository.scan import Run

SIZE = 20_000


def in_memory(path: Path) -> bool:
    """Say whether reading a file would not wait for the disk (mincore(2))."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as view:
        first = ctypes.addressof(ctypes.c_char.from_buffer(view))
        pages = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
        libc = ctypes.CDLL(None, use_errno=True)
        size = ctypes.c_size_t(len(view))
        assert libc.mincore(ctypes.c_void_p(first), size, pages) == 0
    return all(page & 1 for page in pages)


def forget(path: Path) -> None:
    """Have the kernel drop a file from memory."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)
    if in_memory(path):
        pytest.skip(f"the file system of {path} keeps files in memory")


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{number:02d}" for number in range(40)]
    for path in paths:
        path.write_bytes(os.urandom(SIZE))
    for path in paths:
        forget(path)
    return paths


@pytest.fixture
def run(files):
    parent = os.open(files[0].parent, os.O_RDONLY)
    names = [path.name for path in files]
    stats = [path.lstat() for path in files]
    yield Run([n.encode() for n in names], names, stats, parent, ())
    os.close(parent)


def test_after_a_read_from_the_disk_the_next_files_are_asked_for(files, run):
    ahead = ReadAhead()
    files[0].read_bytes()

    ahead.ask(run, 1)

    deadline = time.monotonic() + 10
    while not all(map(in_memory, files[1:33])) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [in_memory(path) for path in files] == [True] * 33 + [False] * 7


def test_while_all_is_in_memory_nothing_is_asked_for(files, run):
    ahead = ReadAhead()

    ahead.ask(run, 0)

    assert not any(map(in_memory, files))


def test_what_cannot_be_opened_any_more_is_left_to_whoever_reads_it(files, run):
    ahead = ReadAhead()
    files[0].read_bytes()
    files[1].unlink()
    files[2].unlink()
    os.mkfifo(files[2])

    ahead.ask(run, 1)

    deadline = time.monotonic() + 10
    while not in_memory(files[3]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert in_memory(files[3])
