"""Many small files in one call: compiled and in Python, with the same results."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from lobstertrap.errors import IntegrityError
from lobstertrap.repository import batch
from lobstertrap.repository.batch import NewFile, read_files, stat_files, write_files
from lobstertrap.repository.format import Buffer
from lobstertrap.repository.status import NO_STAT, LightStatus, mark_of
from tests.fixtures.needs import missing

HOUR = 3_600_000_000_000
OWNER = os.getuid(), os.getgid()
ACL = struct.pack(
    "<I" + 5 * "HHI", 2, 1, 7, 2**32 - 1, 2, 6, 65534, 4, 5, 2**32 - 1,
    16, 7, 2**32 - 1, 32, 5, 2**32 - 1,
)  # fmt: skip
"""u::rwx,u:65534:rw-,g::r-x,m::rwx,o::r-x, as acl(5) keeps it"""


@pytest.fixture(params=["compiled", "python"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(batch, "_library", None)
    elif batch._library is None:
        missing("batch.c was not compiled here: it takes a C compiler")
    return request.param


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[int]:
    handle = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield handle
    os.close(handle)


def settle() -> None:
    """Wait for the next tick of the clock that files' times come from."""
    time.sleep(0.02)


def read(parent: int, *names: str) -> list[bytes | None]:
    stats = [os.stat(name, dir_fd=parent, follow_symlinks=False) for name in names]
    settle()
    found = read_files(
        parent,
        [os.fsencode(name) for name in names],
        [mark_of(status) for status in stats],
        stats[0].st_dev,
    )
    return [None if data is None else bytes(data) for data in found]


def new(name: bytes, content: bytes, at: int = 0, **changed: object) -> NewFile:
    mtime = 1_700_000_000_123_456_789
    file = NewFile(b"", name, at, len(content), 0o640, *OWNER, mtime)
    return file._replace(**changed)


def write(parent: int, segment: Buffer, *files: NewFile) -> list[bool]:
    """Write files, and say which are there; it was said how each looks, or nothing."""
    stats = write_files(parent, segment, files)
    for file, seen in zip(files, stats, strict=True):
        if seen is not None:
            now = os.stat(file.name, dir_fd=parent, follow_symlinks=False)
            looks = (now.st_ctime_ns, now.st_ino)
            assert seen == (looks if batch._library else NO_STAT)
    return [seen is not None for seen in stats]


def test_contents_come_in_the_order_of_the_names(either, parent, tmp_path):
    contents = {"b": b"two", "empty": b"", "a": b"one" * 9000, "\udcff\n": b"odd"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    assert read(parent, *contents) == [*contents.values()]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"grown by a lot"),
        lambda path: path.write_bytes(b"s"),
        lambda path: path.write_bytes(b"other"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("calm")),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: path.chmod(0o600),
        lambda path: path.with_name("second").hardlink_to(path),
    ],
    ids=[
        "grown",
        "shrunk",
        "rewritten",
        "gone",
        "directory",
        "link",
        "fifo",
        "mode",
        "linked",
    ],
)
def test_what_is_not_as_it_was_listed_is_left_to_the_caller(
    either, parent, tmp_path, spoil
):
    for name in ("before", "spoilt", "calm"):
        (tmp_path / name).write_bytes(b"calm!")
    names = [b"before", b"spoilt", b"calm"]
    stats = [os.stat(name, dir_fd=parent) for name in names]
    settle()
    spoil(tmp_path / "spoilt")

    found = read_files(parent, names, [mark_of(s) for s in stats], stats[0].st_dev)

    assert [data and bytes(data) for data in found] == [b"calm!", None, b"calm!"]


def test_a_file_of_this_tick_is_left_to_the_caller(either, parent, tmp_path):
    for number in range(200):
        name, tick = f"{number}", time.clock_gettime_ns(5)
        (tmp_path / name).write_bytes(b"a")
        status = (tmp_path / name).stat()
        mark = mark_of(status)
        (found,) = read_files(parent, [name.encode()], [mark], status.st_dev)
        if time.clock_gettime_ns(5) == tick:  # kernels from 6.13 on may tell it apart
            assert (found is None) == (status.st_ctime_ns == tick)


def test_a_file_with_attributes_is_left_to_the_caller(either, parent, tmp_path):
    for name in ("plain", "marked"):
        (tmp_path / name).write_bytes(b"x")
    try:
        os.setxattr(tmp_path / "marked", "user.note", b"1")
    except OSError:
        missing("a file system with user attributes")

    assert read(parent, "plain", "marked") == [b"x", None]


def test_a_file_of_another_file_system_is_left_to_the_caller(either, parent, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    status = (tmp_path / "file").stat()
    settle()

    found = read_files(parent, [b"file"], [mark_of(status)], status.st_dev + 1)

    assert found == [None]


def test_an_inode_above_two_to_the_63_is_no_fault(either, parent, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    status = (tmp_path / "file").stat()
    mark = (status.st_ctime_ns, 1 << 63, status.st_mtime_ns, 1, 1)

    assert read_files(parent, [b"file"], [mark], status.st_dev) == [None]


def test_reading_leaves_access_times_alone(either, parent, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x")
    written = file.stat().st_mtime_ns
    os.utime(file, ns=(written - 48 * HOUR, written))  # relatime would renew it
    before = file.stat().st_atime_ns

    assert read(parent, "file") == [b"x"]
    assert file.stat().st_atime_ns == before


def test_files_are_made_as_they_should_be(either, parent, tmp_path):
    segment = b"onethree" + b"x" * 50_000
    files = [
        new(b"one", b"one"),
        new(b"three", b"three", 3, mode=0o4755, mtime=-1_500_000_000),
        new(b"empty", b"", 8, mode=0),
        new(b"large", segment[8:], 8, mtime=0, temporary=b".tmp"),
    ]

    assert write(parent, segment, *files) == [True] * 4
    made = {path.name: path.stat() for path in tmp_path.iterdir()}
    assert sorted(made) == ["empty", "large", "one", "three"]
    for file in files:
        status = made[file.name.decode()]
        assert status.st_mode & 0o7777 == file.mode
        assert status.st_mtime_ns == file.mtime
        assert (status.st_uid, status.st_gid) == OWNER
        content = (tmp_path / file.name.decode()).read_bytes()
        assert content == segment[file.offset : file.offset + file.length]


def test_a_new_file_replaces_one_by_its_temporary_name_only(either, parent, tmp_path):
    (tmp_path / "old").write_bytes(b"old")

    assert write(parent, b"new", new(b"old", b"new")) == [False]
    assert (tmp_path / "old").read_bytes() == b"old"
    file = new(b"old", b"new", temporary=b".tmp")
    assert write(parent, b"new", file) == [True]
    assert (tmp_path / "old").read_bytes() == b"new"


def test_of_a_file_that_cannot_be_made_nothing_is_left(either, parent, tmp_path):
    (tmp_path / "directory").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"e")
    (tmp_path / "link").symlink_to("elsewhere")
    files = [
        new(b"directory", b"data", temporary=b".tmp"),
        new(b"link", b"data"),
        new(b"x" * 256, b"data"),
        new(b"fine", b"data"),
    ]

    assert write(parent, b"data", *files) == [False, False, False, True]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "directory",
        "elsewhere",
        "fine",
        "link",
    ]
    assert (tmp_path / "elsewhere").read_bytes() == b"e"


def test_a_full_disk_leaves_no_half_file(either, tmp_path):
    if os.geteuid() != 0:
        missing("root, to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)]
    subprocess.run(mount, check=True)
    try:
        handle = os.open(small, os.O_RDONLY)
        data = b"x" * 100_000
        assert write(handle, data, new(b"big", data)) == [False]
        assert [*small.iterdir()] == []
        os.close(handle)
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_segment_may_be_any_buffer(either, parent, tmp_path, kind):
    segment = kind(b"abcdef")

    assert write(parent, segment, new(b"file", b"def", 3)) == [True]
    assert (tmp_path / "file").read_bytes() == b"def"


def test_a_part_of_a_buffer_is_a_segment_too(either, parent, tmp_path):
    part = memoryview(b"abcdef")[2:]

    assert write(parent, part, new(b"file", b"de", 1)) == [True]
    assert (tmp_path / "file").read_bytes() == b"de"


def test_nothing_behind_a_segment_is_written(either, parent, tmp_path):
    with pytest.raises(IntegrityError, match="behind its end"):
        write_files(parent, b"abc", [new(b"file", b"abc", 1)])

    assert [*tmp_path.iterdir()] == []


def test_what_the_directory_hands_down_is_left_to_be_looked_at(
    either, parent, tmp_path
):
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", ACL)
    except OSError:
        missing("a file system with ACLs")

    assert write_files(parent, b"data", [new(b"file", b"data")]) == [NO_STAT]
    assert (tmp_path / "file").read_bytes() == b"data"
    assert "system.posix_acl_access" in os.listxattr(tmp_path / "file")


FLIPPING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

ssize_t pread(int file, void *out, size_t size, off_t at) {
    ssize_t (*real)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
    ssize_t count = real(file, out, size, at);
    if (count > 0 && at)
        ((char *)out)[count - 1] ^= 1;
    return count;
}
"""
"""A disk that loses a bit of what is far behind in a file."""


def test_a_disk_that_loses_a_bit_is_seen_at_once(tmp_path):
    if batch._library is None:
        missing("batch.c was not compiled here: it takes a C compiler")
    (tmp_path / "flip.c").write_text(FLIPPING)
    build = ["cc", "-shared", "-fPIC", "-o", "flip.so", "flip.c", "-ldl"]
    subprocess.run(build, cwd=tmp_path, check=True)
    program = """
import os
from lobstertrap.repository.batch import NewFile, write_files
data = bytes(100_000)
owner = os.getuid(), os.getgid()
sizes = {b"a": 65_536, b"b": 65_537}
plans = [NewFile(b"", n, 0, size, 0o600, *owner, 1) for n, size in sizes.items()]
found = write_files(os.open(".", 0), data, plans)
print([stat == (0, 0) for stat in found])
"""
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"LD_PRELOAD": str(tmp_path / "flip.so")},
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout == "[False, True]\n"


def test_names_are_looked_at_as_they_are(either, parent, tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "file").chmod(0o4711)
    os.utime(tmp_path / "file", ns=(0, -1_500_000_000))
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    if os.geteuid() == 0:
        os.mknod(tmp_path / "null", 0o20666, os.makedev(1, 3))
    names = sorted(os.fsencode(path.name) for path in tmp_path.iterdir())

    found = stat_files(parent, [*names, b"gone"])

    assert found[-1] is None
    for name, light in zip(names, found, strict=False):
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        for field in LightStatus._fields:
            assert getattr(light, field) == getattr(status, field), (name, field)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(contents=some.lists(some.binary(max_size=3000), min_size=1, max_size=40))
def test_what_is_written_is_read_again(either, tmp_path, contents):
    place = tmp_path / "place"
    place.mkdir()
    handle = os.open(place, os.O_RDONLY)
    files, at = [], 0
    for number, content in enumerate(contents):
        files.append(new(f"{number}".encode(), content, at))
        at += len(content)
    try:
        assert all(write(handle, b"".join(contents), *files))
        assert read(handle, *(file.name.decode() for file in files)) == contents
    finally:
        os.close(handle)
        shutil.rmtree(place)


def test_without_a_compiler_the_package_is_built_and_works(tmp_path):
    checkout = Path(__file__).parents[2]
    copied = tmp_path / "checkout"
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        copied.mkdir(exist_ok=True)
        shutil.copy(checkout / name, copied)
    shutil.copytree(checkout / "src", copied / "src")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]

    without = subprocess.run(
        build,
        cwd=copied,
        env=os.environ | {"CC": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "batch.c was not compiled" in without.stderr
    assert [path.name for path in (copied / "dist").iterdir()] == [
        "lobstertrap-0.1.0-py3-none-any.whl"
    ]
