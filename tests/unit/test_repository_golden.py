"""Repositories of every version of the format, kept as they were written."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Owners, Repository, restore, take_snapshot
from lobstertrap.stores.directory import DirectoryStore
from tests.golden.make_v1 import PASSPHRASE, SECOND, contents

GOLDEN = Path(__file__).parents[1] / "golden"
OWNERS = Owners(local=(os.getuid(), os.getgid()), canonical=(1000, 1000))


@pytest.fixture(params=[PASSPHRASE, SECOND])
def repo(tmp_path: Path, request: pytest.FixtureRequest) -> Repository:
    bucket = tmp_path / "bucket"
    shutil.copytree(GOLDEN / "v1" / "bucket", bucket)
    return Repository.open(DirectoryStore(bucket), SecretValue(request.param))


def test_version_1_is_restored(repo: Repository, tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / "v1" / "expected.json").read_text())
    snapshots = repo.snapshots("golden")

    assert [s.id for s in snapshots] == [e["id"] for e in expected]
    for number, (snapshot, known) in enumerate(zip(snapshots, expected, strict=True)):
        out = tmp_path / f"out{number}"
        result = restore(repo, snapshot, roots={"state": out}, owners=OWNERS)

        assert result.tree_digest == known["tree_digest"]
        assert contents(out) == known["contents"]
        assert snapshot.tags == {"number": str(number)}
        assert (out / "run.sh").stat().st_nlink == 2
        assert (out / "memory").stat().st_mtime_ns // 10**9 == 1_700_000_000


def test_version_1_is_gone_on_with(repo: Repository, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restore(repo, repo.find("latest"), roots={"state": out}, owners=OWNERS)

    snapshot = take_snapshot(repo, agent="golden", roots={"state": out}, owners=OWNERS)

    assert snapshot.new_bytes == 0
    assert snapshot.tree_digest == repo.snapshots()[1].tree_digest
