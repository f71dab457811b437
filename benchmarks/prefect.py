"""What Prefect costs: around a run of a deployment, between its tasks, and by command.

    python -m benchmarks.prefect [--rounds 3]

tally, on two host targets with a store in a directory, is migrated there and back by
`prefect deployment run`, and `lobstertrap snapshot` is run with and without a `serve`.
A step is a task of the flow; the domain is called in it. Seconds are medians; CPU is
that of a command and of all its children that have ended.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from lobstertrap.cli.checkout import find_checkout

CONFIG = """
[store]
url = "file://{directory}/store"
[repository]
key = {{ source = "env", id = "REPOSITORY_KEY" }}
[targets.laptop]
kind = "host"
root = "laptop"
[targets.server]
kind = "host"
root = "server"
"""
AROUND = "in the flow, but in no step"
BIN = Path(sys.executable).parent


class Place:
    """A directory with a configuration, and the commands that are run in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(
            find_checkout() / "agents" / "tally", directory / "agents/tally"
        )
        text = CONFIG.format(directory=directory)
        (directory / "lobstertrap.toml").write_text(text)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        self.environ = kept | {
            "HOME": str(directory),
            "XDG_DATA_HOME": str(directory / "data"),
            "LOBSTERTRAP_CONFIG": str(directory / "lobstertrap.toml"),
            "REPOSITORY_KEY": "a key for a benchmark",
            "TALLY_TOKEN": "a token for a benchmark",
            "DO_NOT_TRACK": "1",
        }

    def run(self, *command: str, **variables: str) -> tuple[str, float, float]:
        """Run a command of ours; returns its output, its seconds, and its CPU's."""
        before, began = _children_cpu(), time.monotonic()
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=find_checkout(),
            env=self.environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr}")
        return done.stdout, time.monotonic() - began, _children_cpu() - before


@contextmanager
def served(place: Place) -> Iterator[str]:
    """Run `lobstertrap serve` in the background; yields its API's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    asked = ("serve", "--background", "--port", port, "--json")
    said, *_ = place.run("lobstertrap", *asked)
    try:
        yield json.loads(said)["PREFECT_API_URL"]
    finally:
        place.run("lobstertrap", "serve", "--stop")


def around_runs(place: Place, api: str, rounds: int) -> list[dict[str, float]]:
    """Migrate there and back; return the times around the tasks of each run."""
    rows = []
    for number in range(rounds * 2):
        to = ("server", "laptop")[number % 2]
        asked = ["deployment", "run", "migrate-agent/default", "--watch"]
        asked += [f"--param=to={to}", "--param=agent=tally"]
        began = time.time()
        said, *_ = place.run("prefect", *asked, PREFECT_API_URL=api)
        run = re.search(r"UUID: (\S+)", said)
        if run is None:
            sys.exit(said)
        rows.append(_times(api, run[1], began))
    return rows


def _times(api: str, run_id: str, began: float) -> dict[str, float]:
    os.environ["PREFECT_API_URL"] = api
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - see above

    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        found = client.request(
            "POST",
            "/task_runs/filter",
            json={"flow_runs": {"id": {"any_": [run_id]}}, "sort": "END_TIME_DESC"},
        ).json()
    tasks = sorted((_seconds(t["start_time"]), _seconds(t["end_time"])) for t in found)
    start, end = _seconds(run.start_time), _seconds(run.end_time)
    gaps = sum(max(later[0] - one[1], 0.0) for one, later in pairwise(tasks))
    around = (tasks[0][0] - start) + gaps + (end - tasks[-1][1])
    return {
        "typed until asked for": _seconds(run.created) - began,
        "asked for until its process runs the flow": start - _seconds(run.created),
        "from there until the first step": tasks[0][0] - start,
        f"between all {len(tasks)} steps": gaps,
        "last step until the run has ended": end - tasks[-1][1],
        "typed until the first step": tasks[0][0] - began,
        AROUND: around,
        "typed until the end": end - began,
    }


def by_command(place: Place, name: str, rounds: int) -> str:
    """Run `lobstertrap snapshot`; returns a row of the table."""
    snapshot = ("lobstertrap", "snapshot", "tally", "--live")
    took = [place.run(*snapshot)[1:] for _ in range(rounds)]
    seconds, used = zip(*took, strict=True)
    return f"| {name} | {_median(seconds)} | {_median(used)} |"


def _seconds(when: Any) -> float:
    from datetime import datetime  # noqa: PLC0415 - only here

    moment = datetime.fromisoformat(when) if isinstance(when, str) else when
    return float(moment.timestamp())


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _median(rows: Sequence[float]) -> str:
    return f"{statistics.median(rows):.2f}"


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"load at the start: {os.getloadavg()[0]:.1f}\n")
    with tempfile.TemporaryDirectory() as directory:
        place = Place(Path(directory))
        print("| command | s | s of CPU |\n|---|---|---|")
        _, first, cpu = place.run("lobstertrap", "launch", "tally", "--on", "laptop")
        print(f"| the first of all, a launch | {first:.1f} | {cpu:.1f} |")
        try:
            alone = "no `serve` runs: a server is started for the command"
            print(by_command(place, alone, rounds))
            with served(place) as api:
                print(by_command(place, "a `serve` runs", rounds))
                rows = around_runs(place, api, rounds)
            print("\n| of a migration | s |\n|---|---|")
            for name in rows[0]:
                print(f"| {name} | {_median([row[name] for row in rows])} |")
            around = statistics.median(row[AROUND] for row in rows)
            print(f"| its share of a migration of 60 s | {around / 60:.1%} |")
        finally:
            place.run("lobstertrap", "stop", "tally")
    print(f"\nload at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
