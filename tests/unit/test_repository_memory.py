"""How much memory a mover needs: bounded, however large the volume is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import make_bytes, make_files
from lobstertrap import job

LIMIT = 300
"""MB, for any volume."""

MOVER = """
import resource, sys
from lobstertrap import mover
status = mover.main()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak, file=sys.stderr)
sys.exit(status)
"""


def peak_of(command: str, base: Path, root: Path, **more: Any) -> float:
    """Run the mover and return the MB of its peak."""
    request = {
        "version": 1,
        "command": command,
        "agent": "ada",
        "volumes": {"state": str(root)},
        "local_owner": [os.getuid(), os.getgid()],
        "owner": [1000, 1000],
        "store": {"url": (base / "store").as_uri()},
        "key": "a key that nobody knows",
        "cache": True,
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-c", MOVER],
        env={**os.environ, "XDG_CACHE_HOME": str(base / "cache")},
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    job.read_events(done.stdout.splitlines(), lambda _: None)
    return int(done.stderr.split()[-1]) / 1024


def peaks(base: Path, make: Callable[[Path], None]) -> list[float]:
    """Return the peaks of a first and a second snapshot and of a restore."""
    root = base / "in"
    make(root)
    found = [peak_of("snapshot", base, root) for _ in range(2)]
    more = {"snapshot": "latest", "delete_extra": True}
    return [*found, peak_of("restore", base, base / "out", **more)]


@pytest.mark.slow
def test_eight_times_the_files_take_little_more_memory(tmp_path: Path) -> None:
    make_files(tmp_path / "few", 1_000)
    few = peak_of("snapshot", tmp_path, tmp_path / "few")

    many = peaks(tmp_path, partial(make_files, count=8_000))

    assert max(many) < few + 20


@pytest.mark.long
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(partial(make_files, count=1_000_000), id="a million files"),
        pytest.param(partial(make_bytes, gigabytes=20), id="20 GB"),
    ],
)
def test_a_mover_stays_below_300_mb(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    assert max(peaks(tmp_path, make)) < LIMIT
