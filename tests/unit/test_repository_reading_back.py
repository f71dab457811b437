"""Files read back by threads give the rows that one look at each would give."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from lobstertrap.errors import IntegrityError
from lobstertrap.repository import reading_back
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.reading_back import ReadingBack
from lobstertrap.repository.scan import Run, walk_runs
from lobstertrap.repository.tree_digest import file_row
from tests.fixtures.trees import OWNERS

MIB = 1 << 20
SIZES = [0, 1, 65_536, 65_537, 3 * MIB - 1, 3 * MIB, 3 * MIB + 1, 7 * MIB + 5, 8 * MIB]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(reading_back, "_LARGE", 3 * MIB)
    for number, size in enumerate(SIZES):
        content = (b"%d" % number + os.urandom(1000)) * (size // 1000 + 1)
        (tmp_path / f"{number}").write_bytes(content[:size])
    with (tmp_path / "with a hole").open("wb") as file:
        file.truncate(9 * MIB)
        file.seek(4 * MIB)
        file.write(b"x" * MIB)
    handle = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield handle
    os.close(handle)


def open_handles() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def only_run(root: int) -> Run:
    found = [*walk_runs(root, "v", Exclude(()), pytest.fail)]
    (run,) = (one for one in found if isinstance(one, Run))
    return run


def test_rows_are_those_of_one_file_after_the_other(root: int) -> None:
    run = only_run(root)
    places = range(len(run.paths))
    handles = open_handles()

    with ReadingBack(OWNERS) as reading:
        begun = reading.begin(run, places)
        rows = [*chain.from_iterable(waiting() for waiting in begun)]

    buffer = memoryview(bytearray(MIB))
    assert rows == [file_row(run.found(place), OWNERS, buffer) for place in places]
    assert open_handles() == handles


@pytest.mark.parametrize("size", [0, 10, 4 * MIB])
def test_a_file_that_shrinks_is_named(root: int, size: int) -> None:
    run = only_run(root)
    place = run.names.index(b"8")
    os.truncate(f"/proc/self/fd/{root}/8", size)

    with ReadingBack(OWNERS) as reading:
        (waiting,) = reading.begin(run, [place])
        with pytest.raises(IntegrityError, match="'v/8' changed while it was read"):
            waiting()


@pytest.mark.parametrize("name", [b"1", b"8"])
def test_a_file_that_is_gone_is_named(root: int, name: bytes) -> None:
    run = only_run(root)
    os.unlink(name, dir_fd=root)

    with ReadingBack(OWNERS) as reading, pytest.raises(IntegrityError, match="vanish"):
        _ = [waiting() for waiting in reading.begin(run, [run.names.index(name)])]


def test_what_nobody_waits_for_leaves_no_handle(root: int) -> None:
    run = only_run(root)
    handles = open_handles()

    with ReadingBack(OWNERS) as reading:
        reading.begin(run, range(len(run.paths)))

    assert open_handles() == handles


def test_a_directory_of_many_files_is_opened_once(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}").write_bytes(b"x" * 70_000)
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)

    try:
        with ReadingBack(OWNERS) as reading:
            (waiting,) = reading.begin(only_run(root), range(100))
            rows = waiting()
    finally:
        os.close(root)

    assert len(rows) == len({row[0] for row in rows}) == 100
