"""The reader that knows only the format document, against real repositories."""

import json
import os
import shutil
import struct
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Owners, Repository, Snapshot, take_snapshot
from lobstertrap.stores.directory import DirectoryStore
from tests.fixtures.trees import KEY, describe, later, make_everything, new_repository
from tests.golden.make_v1 import PASSPHRASE, SECOND, contents

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
READER = Path(__file__).parents[2] / "docs" / "restore_without_lobstertrap.py"
ME = (os.getuid(), os.getgid())
OWNERS = Owners(local=ME, canonical=ME)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots of two volumes with one of everything, as a bucket on a disk."""
    base = tmp_path_factory.mktemp("reader")
    make_everything(base / "in" / "state")
    (base / "in" / "state" / "long").write_bytes(os.urandom(9_000_000))
    (base / "in" / "work").mkdir()
    for number in range(1500):
        (base / "in" / "work" / f"{number}").write_text(f"file {number}")
    if os.geteuid() == 0:
        os.mknod(base / "in" / "work" / "null", 0o020666, os.makedev(1, 3))
        (base / "in" / "work" / "theirs").write_text("x")
        os.chown(base / "in" / "work" / "theirs", 1234, 4321)
    repo = new_repository(DirectoryStore(base / "bucket"))
    snap(repo, base)
    (base / "in" / "state" / "later").write_text("only in the second snapshot")
    snap(repo, base)
    return base / "bucket"


def snap(repo: Repository, base: Path) -> Snapshot:
    roots = {name: base / "in" / name for name in ("state", "work")}
    return take_snapshot(repo, agent="ada", roots=roots, owners=OWNERS, now=later)


def read(*arguments: object, key: str = KEY) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "LOBSTERTRAP_PASSPHRASE": key}
    return subprocess.run(
        [sys.executable, "-I", READER, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_reader_is_one_short_file_without_lobstertrap() -> None:
    source = READER.read_text()

    assert len(source.splitlines()) < 300
    assert "import lobstertrap" not in source
    assert "from lobstertrap" not in source


def test_everything_comes_back_without_lobstertrap(
    bucket: Path, tmp_path: Path
) -> None:
    listed = read(bucket).stdout.splitlines()
    second = listed[1].split()[0]

    result = read(bucket, second[:8], tmp_path / "out")

    assert (result.returncode, result.stderr) == (0, "")
    assert len(listed) == 2
    for volume in ("state", "work"):
        found = describe(tmp_path / "out" / volume)
        assert found == describe(bucket.parent / "in" / volume)
    assert (tmp_path / "out" / "state" / "hole").stat().st_blocks == 0


@pytest.mark.parametrize("passphrase", [PASSPHRASE, SECOND])
def test_golden_repositories_are_restored(tmp_path: Path, passphrase: str) -> None:
    bucket = GOLDEN / "bucket"
    expected = json.loads((GOLDEN / "expected.json").read_text())

    for number, known in enumerate(expected):
        out = tmp_path / str(number)
        result = read(bucket, known["id"], out, key=passphrase)

        assert (result.returncode, result.stderr) == (0, "")
        assert contents(out / "state") == known["contents"]


def test_it_does_not_need_the_index(bucket: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bucket, tmp_path / "copy")
    shutil.rmtree(copy / "repository" / "index")
    first = read(copy).stdout.split()[0]

    result = read(copy, first, tmp_path / "out")

    assert result.returncode == 0
    assert not (tmp_path / "out" / "state" / "later").exists()


def test_a_wrong_passphrase_is_said(bucket: Path) -> None:
    result = read(bucket, key="wrong")

    assert result.returncode == 1
    assert result.stderr == "no key slot opens with this passphrase\n"


def test_it_never_writes_into_what_exists(bucket: Path, tmp_path: Path) -> None:
    first = read(bucket).stdout.split()[0]

    result = read(bucket, first, tmp_path)

    assert result.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_is_found(bucket: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bucket, tmp_path / "copy")
    largest = max(
        (copy / "repository/packs").glob("*/*"), key=lambda p: p.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[1000] ^= 1
    largest.write_bytes(data)
    first = read(copy).stdout.split()[0]

    result = read(copy, first, tmp_path / "out")

    assert result.returncode == 1
    assert f"part 0 of {largest} is damaged" in result.stderr


def test_index_objects_are_as_the_document_says(bucket: Path) -> None:
    repo = Repository.open(DirectoryStore(bucket), SecretValue(KEY))
    found = set()
    for path in (bucket / "repository" / "index").iterdir():
        found |= set(_index_rows(repo.keys.encryption, path.read_bytes()))

    index = repo.load_index()

    assert len(found) > 1500
    for blob, pack, kind, offset, stored, inner, length in found:
        where = index.find(blob)
        assert (where.segment.pack.id, where.segment.pack.kind) == (pack, kind)
        assert (where.segment.offset, where.segment.stored) == (offset, stored)
        assert (where.offset, where.length) == (inner, length)


def _index_rows(key: bytes, data: bytes):
    """Parse an index object by the document, with nothing of the engine."""
    header, nonce = data[:24], bytes(12)
    assert header[:8] == b"LTRPI\1\0\0"
    cipher = AESGCM(blake3(header, key=key).digest())
    plain = cipher.decrypt(nonce, data[24:], header + nonce)
    r, p, s, b, f = struct.unpack_from("<5I", plain)
    sizes = (16 * r, 16 * p, 4 * p, 4 * p, 4 * p, 4 * s, 4 * s)
    sizes += (4 * (2**f + 1), 16 * b, 4 * b, 4 * b, 4 * b)
    ends = [*accumulate(sizes, initial=20)]
    assert ends[-1] == len(plain)

    def numbers(column: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{sizes[column] // 4}I", plain, ends[column])

    def ids(column: int) -> list[bytes]:
        return [plain[i : i + 16] for i in range(ends[column], ends[column + 1], 16)]

    segments, row = [], 0
    for pack, kind, count in zip(ids(1), numbers(3), numbers(4), strict=True):
        offset = 24
        for _ in range(count):
            stored = numbers(5)[row]
            segments.append((pack, kind, offset, stored))
            offset += stored
            row += 1
    blobs = ids(8)
    assert blobs == sorted(blobs)
    fan = [
        sum(int.from_bytes(x, "big") >> (128 - f) < i for x in blobs) for i in (0, 1)
    ]
    assert [*numbers(7)[:2]] == fan
    for blob, segment, inner, length in zip(
        blobs, numbers(9), numbers(10), numbers(11), strict=True
    ):
        yield (blob, *segments[segment], inner, length)
