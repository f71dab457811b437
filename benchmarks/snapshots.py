"""Snapshots measured beside peers: same data, same store, same run, medians.

    python benchmarks/snapshots.py [WORK_DIRECTORY] [--sets agent small big]
        [--scale 0.5] [--rounds 3] [--store directory|s3] [--requests]
        [--programs lobstertrap restic borg tar+zstd limit] [--into DIR] [--json]

Steps: first snapshot, unchanged, restore into an empty directory, after a change of 1%
and appends, restore onto the copy from before the change. Wall and client CPU seconds,
peak RSS, and by how much the store grew. The peers are those that are installed; borg
has a local directory, tar+zstd is not encrypted, and the limit is a first snapshot
that only reads, compresses and uploads. `s3` needs rclone from the test group. `--into`
restores elsewhere (tmpfs, say); `--requests` counts them in one more round, through a
proxy.

Trees of many files are removed when all is measured, not between steps: for minutes
ext4 passes over freed inodes one by one, which the next restore would pay for. So the
disk has to hold them: about 3.5 GB for each program and round of `agent` and `small`.
Before a restore as much memory is used and freed as it will take: see `touch_memory`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import Measured, Store, open_store
from benchmarks.programs import PROGRAMS, Program, present

HERE = Path(__file__).resolve().parent
FIELDS = ("wall", "cpu", "rss", "stored")
Steps = dict[str, Measured]


def run_steps(
    program: Program, store: Store, data: Path, asked: argparse.Namespace
) -> Steps:
    """Run every step once and return what each cost."""
    kind = data.name.split("-")[1]
    name = f"{kind}-{program.name}-{time.time_ns()}"
    source, place = asked.work / "trees" / name, asked.into / "restored" / name
    for directory in (source.parent, place):
        directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", data, source], check=True)
    os.sync()
    time.sleep(2.5)  # so that the files are old enough to be trusted
    steps: Steps = {}

    def note(step: str, run: Callable[[Path], Measured], path: Path) -> None:
        before, asked_before = store.stored(), Counter(store.requests or {})
        cost = run(path)
        os.sync()
        requests = dict(Counter(store.requests or {}) - asked_before)
        grown = store.stored() - before
        steps[step] = cost = replace(cost, stored=grown, requests=requests)
        print(f"{kind} {program.name} {step}: {cost}", file=sys.stderr, flush=True)

    out, old = place / "out", place / "old"
    note("first", program.snapshot, source)
    if program.restores:
        note("unchanged", program.snapshot, source)
        touch_memory(data)
        note("restore", program.restore, out)
        generate = [sys.executable, HERE / "generate.py", "change", kind, source]
        subprocess.run(generate, check=True)
        note("changed", program.snapshot, source)
        out.rename(old)
        touch_memory(data)
        note("restore onto old", program.restore, old)
    few = kind == "big"  # nothing that ext4 would have to pass over
    if few:
        shutil.rmtree(source)
    if few or asked.into != asked.work:
        shutil.rmtree(place)
    return steps


def touch_memory(data: Path) -> None:
    """Use as much memory as `data` has bytes, and half as much again, and free it.

    A virtual machine's host takes memory back that was free for a minute or two. To
    get it again cost 2.5 s for each GB, more than a restore's own work.
    """
    files = (path for path in data.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files) * 3 // 2
    # In a process of its own: whoever is started from here would begin with its peak.
    program = f"memory = bytearray({size}); memory[::4096] = bytes(-(-{size} // 4096))"
    subprocess.run([sys.executable, "-c", program], check=True)


def compare(
    kind: str, programs: list[type[Program]], asked: argparse.Namespace
) -> dict[str, Any]:
    """Measure all programs on one data set, in turns; medians by step."""
    data = asked.work / f"data-{kind}-{asked.scale}"
    if not data.exists():
        command = [sys.executable, HERE / "generate.py", "make", kind, data]
        subprocess.run([*command, "--scale", str(asked.scale)], check=True)
    runs: dict[str, list[Steps]] = {program.name: [] for program in programs}
    counted: dict[str, Steps] = {}
    for number in range(asked.rounds + asked.requests):
        count = number == asked.rounds
        for program in programs:
            shutil.rmtree(asked.work / f"cache-{program.name}", ignore_errors=True)
            with open_store(asked.store, asked.work, count=count) as store:
                steps = run_steps(program(store, asked.work), store, data, asked)
            if count:
                counted[program.name] = steps
            else:
                runs[program.name].append(steps)
    return {name: _medians(runs[name], counted.get(name, {})) for name in runs}


def _medians(runs: list[Steps], counted: Steps) -> dict[str, dict[str, Any]]:
    return {
        step: {
            field: statistics.median(getattr(run[step], field) for run in runs)
            for field in FIELDS
        }
        | ({"requests": counted[step].requests} if step in counted else {})
        for step in runs[0]
    }


def show(kind: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print one table, and what the peers need as multiples of what we do."""
    print(f"\n{kind}: s wall / s client CPU / MB peak RSS / MB stored [requests]\n")
    print("| step | " + " | ".join(rows) + " |")
    print("|---" * (len(rows) + 1) + "|")
    steps = [*next(iter(rows.values()))]
    for step in steps:
        cells = (_cell(row.get(step)) for row in rows.values())
        print(f"| {step} | " + " | ".join(cells) + " |")
    ours = rows.get("lobstertrap", {})
    peers = {name: row for name, row in rows.items() if ours and row is not ours}
    for step in ours if peers else ():
        ratios = (_ratios(row.get(step), ours[step]) for row in peers.values())
        print(f"| {step}: ratio | | " + " | ".join(ratios) + " |")


def _cell(cost: dict[str, Any] | None) -> str:
    if cost is None:
        return ""
    text = f"{cost['wall']:.2f} / {cost['cpu']:.2f} / {cost['rss']:.0f}"
    text += f" / {cost['stored']:.1f}"
    if "requests" in cost:
        counts = sorted(cost["requests"].items())
        text += " [" + " ".join(f"{n} {count}" for n, count in counts) + "]"
    return text


def _ratios(peer: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    if peer is None:
        return ""
    return " / ".join(
        f"{peer[field] / ours[field]:.2f}" if ours[field] > 0.05 else "-"  # noqa: PLR2004 - less means nothing
        for field in FIELDS
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, nargs="?", default=Path(".bench"))
    parser.add_argument("--sets", nargs="+", default=["agent", "small", "big"])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", choices=("directory", "s3"), default="s3")
    parser.add_argument(
        "--programs", nargs="+", choices=PROGRAMS, default=[*PROGRAMS], metavar="NAME"
    )
    parser.add_argument("--requests", action="store_true", help="count them too (s3)")
    parser.add_argument("--into", type=Path, help="restore below this directory")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    asked.work = asked.work.resolve()
    asked.into = (asked.into or asked.work).resolve()
    for directory in (asked.work, asked.into):
        directory.mkdir(parents=True, exist_ok=True)
    tables = {}
    programs = present(asked.programs)
    for kind in asked.sets:
        tables[kind] = compare(kind, programs, asked)
        if not asked.json:
            show(kind, tables[kind])
    for trees in (asked.work / "trees", asked.into / "restored"):
        shutil.rmtree(trees, ignore_errors=True)
    if asked.json:
        print(json.dumps({"machine": platform.platform(), "sets": tables}))


if __name__ == "__main__":
    main()
