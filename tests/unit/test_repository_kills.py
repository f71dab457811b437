"""Processes of upkeep that are killed with SIGKILL, on a store in a directory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lobstertrap.repository.check import check
from lobstertrap.repository.prune import GRACE, prune
from lobstertrap.repository.repair import repair
from lobstertrap.stores.directory import DirectoryStore
from tests.fixtures.repositories import bring_back, contents, fill, reopened, snap
from tests.fixtures.trees import KEY, new_repository

PROGRAM = """
import sys
from pathlib import Path
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository
from lobstertrap.repository.copy import copy
from lobstertrap.repository.prune import prune
from lobstertrap.repository.repair import repair
from lobstertrap.stores.directory import DirectoryStore

what, store, there, key = sys.argv[1:]
repo = Repository.open(DirectoryStore(Path(store)), SecretValue(key))
print("open", flush=True)
if what == "prune":
    prune(repo)
elif what == "repair":
    repair(repo, read_data=True)
else:
    copy(repo, DirectoryStore(Path(there)))
"""


def age_all(directory: Path, seconds: float) -> None:
    """Make the store think that time has passed."""
    for path in (directory / "repository").rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))


def run_and_kill(what: str, base: Path, after: float) -> bool:
    """Start one upkeep and kill it; says whether it was killed before its end."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, what, base / "store", base / "there", KEY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after)
        process.kill()
        _, errors = process.communicate()
    assert process.returncode in (0, -9), errors
    return process.returncode == -9


@pytest.mark.slow
@pytest.mark.parametrize("what", ["prune", "repair", "copy"])
def test_a_kill_at_any_moment_leaves_all_well(tmp_path: Path, what: str) -> None:
    chance = random.Random(what)  # noqa: S311 - a test
    store = DirectoryStore(tmp_path / "store")
    repo = new_repository(store)
    root = tmp_path / "in"
    killed, longest = 0, 0.1  # seconds; moved so that about half are killed
    for number in range(8):
        fill(root, {f"{n}": 150_000 for n in range(number, number + 6)}, seed=number)
        taken = snap(repo, root)
        for old in repo.snapshots()[:-2]:
            repo.delete_snapshot(old)
        age_all(tmp_path / "store", GRACE + 60)

        early = run_and_kill(what, tmp_path, chance.uniform(0, longest))
        killed, longest = killed + early, longest * (1.6 if early else 0.4)

        assert check(reopened(store), sample=100).ok
    out = tmp_path / "out"
    bring_back(reopened(store), taken, out)
    assert contents(out) == contents(root)
    assert killed > 2
    prune(reopened(store))  # nothing has to be unlocked
    repair(reopened(store), read_data=True)
    assert check(reopened(store), sample=100).notes == ()
