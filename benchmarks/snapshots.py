"""Snapshots measured against restic: same data, same store, same run, medians.

    python benchmarks/snapshots.py [WORK_DIRECTORY] [--sets agent small big]
        [--scale 0.5] [--rounds 3] [--store directory|s3] [--json]

Steps: first snapshot, unchanged, after a change of 1% and appends, restore into an
empty directory, restore onto the copy from before the change. Wall and client CPU
seconds, peak RSS, and what the store holds. restic is the one that is installed;
without it only our own numbers are printed. `s3` needs rclone from the test group.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).resolve().parent
KEY = "benchmark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of one program."""

    wall: float
    cpu: float
    rss: float


def measure(
    command: list[str], environment: dict[str, str], text: str | None = None
) -> Measured:
    """Run a program to its end and return what it cost."""
    started = time.monotonic()
    with subprocess.Popen(
        command,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError
        process.stdin.write(text or "")
        process.stdin.close()
        output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[:3]} failed: {output[-2000:]}")
    return Measured(
        wall=time.monotonic() - started,
        cpu=used.ru_utime + used.ru_stime,
        rss=used.ru_maxrss / 1024,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where both programs put their objects."""

    directory: Path
    endpoint: str | None = None


class Program(Protocol):
    """One of the programs that are compared."""

    name: str

    def snapshot(self, source: Path) -> Measured:
        """Take a snapshot."""

    def restore(self, into: Path) -> Measured:
        """Restore the latest one."""


class LobsterTrap:
    """Our mover, as targets run it."""

    name = "lobstertrap"

    def __init__(self, store: Store, work: Path) -> None:
        self._store = store
        self._environment = {"XDG_CACHE_HOME": str(work / "cache-lobstertrap")}

    def snapshot(self, source: Path) -> Measured:
        """Take a snapshot."""
        return self._run("snapshot", source, consistency="stopped", tags={})

    def restore(self, into: Path) -> Measured:
        """Restore the latest one."""
        return self._run("restore", into, snapshot="latest", delete_extra=True)

    def _run(self, command: str, path: Path, **more: Any) -> Measured:
        place = {"url": self._store.directory.joinpath("lobstertrap").as_uri()}
        if self._store.endpoint:
            place = {
                "url": "s3://bench/lobstertrap",
                "endpoint": self._store.endpoint,
                "access_key": "bench",
                "secret_key": "benchmark",
                "region": "us-east-1",
            }
        owner = [os.getuid(), os.getgid()]
        request = {
            "version": 1,
            "command": command,
            "agent": "bench",
            "volumes": {"data": str(path)},
            "local_owner": owner,
            "owner": owner,
            "store": place,
            "key": KEY,
            "cache": True,
            **more,
        }
        mover = [sys.executable, "-m", "lobstertrap.mover"]
        return measure(mover, self._environment, json.dumps(request) + "\n")


class Restic:
    """The peer."""

    name = "restic"

    def __init__(self, store: Store, work: Path) -> None:
        place = str(store.directory / "restic")
        if store.endpoint:
            place = f"s3:{store.endpoint}/bench/restic"
        self._environment = {
            "RESTIC_REPOSITORY": place,
            "RESTIC_PASSWORD": KEY,
            "RESTIC_CACHE_DIR": str(work / "cache-restic"),
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
        }
        measure(["restic", "init", "-q"], self._environment)

    def snapshot(self, source: Path) -> Measured:
        """Take a snapshot."""
        return measure(["restic", "backup", "-q", str(source)], self._environment)

    def restore(self, into: Path) -> Measured:
        """Restore the latest one."""
        command = ["restic", "restore", "-q", "latest", "--target", str(into)]
        return measure(command, self._environment)


def run_steps(
    program: Program, data: Path, work: Path, kind: str
) -> dict[str, Measured]:
    """Run every step once and return what each cost."""
    source = work / "source"
    _copy(data, source)
    time.sleep(2.5)  # so that the files are old enough to be trusted
    steps: dict[str, Measured] = {}

    def note(step: str, cost: Measured) -> None:
        steps[step] = cost
        print(f"{kind} {program.name} {step}: {cost}", file=sys.stderr, flush=True)

    note("first", program.snapshot(source))
    note("unchanged", program.snapshot(source))
    out, old = work / "out", work / "old"
    note("restore", program.restore(out))
    os.sync()
    generate = [sys.executable, HERE / "generate.py", "change", kind, source]
    subprocess.run(generate, check=True)
    note("changed", program.snapshot(source))
    out.rename(old)
    note("restore onto old", program.restore(old))
    shutil.rmtree(source)
    shutil.rmtree(old)
    return steps


def _copy(data: Path, source: Path) -> None:
    shutil.rmtree(source, ignore_errors=True)
    subprocess.run(["cp", "-a", data, source], check=True)
    os.sync()


@contextmanager
def open_store(kind: str, work: Path) -> Iterator[Store]:
    """Yield a fresh store; for `s3` behind rclone's server, which costs least."""
    directory = work / "store"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "bench").mkdir(parents=True)
    if kind == "directory":
        yield Store(directory=directory)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    rclone = Path(sys.executable).with_name("rclone")
    options = ["--auth-key", "bench,benchmark", "--vfs-cache-mode", "off"]
    command = [rclone, "serve", "s3", directory, "--addr", address, *options]
    with subprocess.Popen(
        [*command, "--config", "/dev/null"], stderr=subprocess.DEVNULL
    ) as server:
        try:
            time.sleep(1)
            yield Store(directory=directory, endpoint=f"http://{address}")
        finally:
            server.terminate()


def stored_bytes(directory: Path) -> int:
    """Return what the objects below a directory take."""
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def compare(kind: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Measure all programs on one data set; medians by step."""
    work: Path = asked.work
    data = work / f"data-{kind}-{asked.scale}"
    if not data.exists():
        command = [sys.executable, HERE / "generate.py", "make", kind, data]
        subprocess.run([*command, "--scale", str(asked.scale)], check=True)
    programs = [LobsterTrap] + ([Restic] if shutil.which("restic") else [])
    rows: dict[str, dict[str, Any]] = {}
    for program in programs:
        runs = []
        for _ in range(asked.rounds):
            shutil.rmtree(work / f"cache-{program.name}", ignore_errors=True)
            with open_store(asked.store, work) as store:
                runs.append(run_steps(program(store, work), data, work, kind))
                size = stored_bytes(store.directory)
        rows[program.name] = {
            step: {
                field: statistics.median(asdict(run[step])[field] for run in runs)
                for field in ("wall", "cpu", "rss")
            }
            for step in runs[0]
        } | {"stored": size}
    return rows


def show(kind: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print one table."""
    ours, peer = rows["lobstertrap"], rows.get("restic")
    print(f"\n{kind}: seconds wall / client CPU / MB RSS; ratio = restic / lobstertrap")
    for step, here in ours.items():
        if step == "stored":
            there = f" restic {peer['stored'] / 1e6:.0f} MB" if peer else ""
            print(f"  {'stored after all':18} {here / 1e6:.0f} MB{there}")
            continue
        line = f"  {step:18} {_cell(here)}"
        if peer:
            that = peer[step]
            wall, cpu = that["wall"] / here["wall"], that["cpu"] / here["cpu"]
            line += f"   restic {_cell(that)}   ratio {wall:.2f} / {cpu:.2f}"
        print(line)


def _cell(cost: dict[str, float]) -> str:
    return f"{cost['wall']:6.2f} /{cost['cpu']:6.2f} /{cost['rss']:4.0f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, nargs="?", default=Path(".bench"))
    parser.add_argument("--sets", nargs="+", default=["agent", "small", "big"])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", choices=("directory", "s3"), default="s3")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    asked.work = asked.work.resolve()
    asked.work.mkdir(parents=True, exist_ok=True)
    tables = {}
    for kind in asked.sets:
        tables[kind] = compare(kind, asked)
        if not asked.json:
            show(kind, tables[kind])
    if asked.json:
        print(json.dumps({"machine": platform.platform(), "sets": tables}))


if __name__ == "__main__":
    main()
