"""What snapshots cost as a volume grows: files, bytes, and snapshots already there.

    python -m benchmarks.scale [WORK_DIRECTORY] [--files 1000 10000 100000 1000000]
        [--gigabytes 20] [--snapshots 10 100] [--json]

Each row is our mover's: first snapshot, unchanged, restore into an empty directory, and
the same restore again; wall and client CPU seconds, peak RSS, requests (counted by a
proxy before rclone's S3 server, which costs a little time). The files are small and all
different; the bytes are in files of 1 GB that compress well, so that only one copy of
them is on the disk at a time. `--snapshots` are of 1,000 files of which 10 change.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from benchmarks.measure import Measured, Store, open_store
from benchmarks.programs import LobsterTrap

GIGABYTE = 10**9
BLOCK = 1 << 20
PER_DIRECTORY = 1000
Steps = dict[str, Measured]


def make_files(root: Path, count: int) -> None:
    """Write small files, each with something of its own, a thousand a directory."""
    for first in range(0, count, PER_DIRECTORY):
        folder = root / f"{first // PER_DIRECTORY:05}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + PER_DIRECTORY, count)):
            text = f"note {number}: {number * 7919:x}\n" * (1 + number % 9)
            (folder / f"note-{number}.md").write_text(text)


def make_bytes(root: Path, gigabytes: float) -> None:
    """Write files of up to 1 GB; no block is like another, and all compress well."""
    root.mkdir(parents=True)
    left = int(gigabytes * GIGABYTE)
    number = 0
    while left > 0:
        with (root / f"{number}.bin").open("wb") as file:
            here = min(left, GIGABYTE)
            for _ in range(0, here, BLOCK):
                number += 1
                file.write((b"%016x" % (number * 2654435761) * 4096)[: BLOCK // 16])
                file.write(os.urandom(64) * (BLOCK * 15 // 16 // 64))
            left -= here


def volume_steps(work: Path, make: Callable[[Path], None]) -> Steps:
    """Return what each step costs for one volume; nothing of it is left."""
    source, out = work / "source", work / "out"
    for left in (source, out, work / "cache-lobstertrap"):
        shutil.rmtree(left, ignore_errors=True)
    make(source)
    os.sync()
    time.sleep(2.5)  # so that the files are old enough to be trusted
    steps: Steps = {}
    with open_store("s3", work, count=True) as store:
        program = LobsterTrap(store, work)
        steps["first"] = _counted(store, lambda: program.snapshot(source))
        steps["unchanged"] = _counted(store, lambda: program.snapshot(source))
        shutil.rmtree(source)
        steps["restore"] = _counted(store, lambda: program.restore(out))
        steps["restore again"] = _counted(store, lambda: program.restore(out))
    shutil.rmtree(out)
    return steps


def snapshot_steps(work: Path, count: int) -> Steps:
    """Return what a snapshot and a restore cost when there are `count` already."""
    source, out = work / "source", work / "out"
    for left in (source, out, work / "cache-lobstertrap"):
        shutil.rmtree(left, ignore_errors=True)
    make_files(source, PER_DIRECTORY)
    with open_store("s3", work, count=True) as store:
        program = LobsterTrap(store, work)
        for number in range(count):
            program.snapshot(source)
            for file in range(10):
                path = source / "00000" / f"note-{(number * 10 + file) % 1000}.md"
                path.write_text(f"changed {number}\n")
        steps = {
            "changed": _counted(store, lambda: program.snapshot(source)),
            "restore": _counted(store, lambda: program.restore(out)),
        }
    shutil.rmtree(source)
    shutil.rmtree(out)
    return steps


def _counted(store: Store, run: Callable[[], Measured]) -> Measured:
    before, size = Counter(store.requests or {}), store.stored()
    cost = run()
    requests = dict(Counter(store.requests or {}) - before)
    cost = replace(cost, stored=store.stored() - size, requests=requests)
    print(cost, file=sys.stderr, flush=True)
    return cost


def show(rows: dict[str, Steps]) -> None:
    """Print a table."""
    print("| volume | step | s | s CPU | MB RSS | MB stored | requests |")
    print("|---|---|---|---|---|---|---|")
    for name, steps in rows.items():
        for step, cost in steps.items():
            asked = " ".join(f"{n} {m}" for n, m in sorted(cost.requests.items()))
            print(
                f"| {name} | {step} | {cost.wall:.1f} | {cost.cpu:.1f} "
                f"| {cost.rss:.0f} | {cost.stored:.1f} | {asked} |"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, nargs="?", default=Path(".bench/scale"))
    parser.add_argument(
        "--files", type=int, nargs="*", default=[10**3, 10**4, 10**5, 10**6]
    )
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[20])
    parser.add_argument("--snapshots", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    work = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Steps] = {}
    for count in asked.snapshots:
        rows[f"after {count} snapshots"] = snapshot_steps(work, count)
    for count in asked.files:
        rows[f"{count:,} files"] = volume_steps(work, partial(make_files, count=count))
    for size in asked.gigabytes:
        make = partial(make_bytes, gigabytes=size)
        rows[f"{size:g} GB"] = volume_steps(work, make)
    if asked.json:
        plain = {
            name: {step: asdict(cost) for step, cost in steps.items()}
            for name, steps in rows.items()
        }
        print(json.dumps(plain))
    else:
        show(rows)


if __name__ == "__main__":
    main()
