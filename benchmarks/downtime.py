"""How long an agent is down when it moves, by a client that never stops asking.

    python -m benchmarks.downtime WORK_DIRECTORY [--megabytes 10 300 3000] [--rounds 2]
        [--only migrate restart by-hand] [--minutes 12]

tally runs on one Podman engine of two on this machine, and a client sends it messages
as fast as it answers, at most one every 20 ms. Downtime is the time from the last
message that was acknowledged before to the first one after. The state is 8 MB files;
after every snapshot 1% of it is overwritten in place.

migrate: `lobstertrap migrate`, with a Prefect server, through SeaweedFS. restart: the
same container stopped and started where it is. by-hand: `podman stop`, `volume export |
zstd | upload`, `download | unzstd | volume import`, start, each as fast as it goes.

What fails is shown and passed over, and after `--minutes` nothing more is begun; the
table has what there is: medians, and all values in brackets.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Self

from lobstertrap.cli.checkout import find_checkout
from lobstertrap.cli.demo_stage import AGENT, DESTINATION, SOURCE, TOKEN, Stage
from lobstertrap.errors import LobsterTrapError
from lobstertrap.lease import read_record
from lobstertrap.stores.base import ObjectStore

PORT = 18473
INTERVAL = 0.02
VOLUME = "lobstertrap-tally-state"
CONTAINER = "lobstertrap-tally"
STATE = "/home/tally/state"
PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One size, one way of moving."""

    megabytes: int
    way: str
    downtime: float
    seconds: float
    notes: dict[str, Any] = field(default_factory=dict)


class Client:
    """Sends messages all the time and remembers when they were acknowledged."""

    def __init__(self) -> None:
        self._acknowledged: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Return what tally answers; raises OSError or HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=600)
        with closing(connection) as server:
            headers = {"Authorization": f"Bearer {os.environ[TOKEN]}"}
            server.request(method, path, json.dumps(body), headers)
            answer = server.getresponse()
            text = answer.read()
            if answer.status != http.client.OK:
                raise http.client.HTTPException(text.decode())
            return dict(json.loads(text))

    def gap(self, since: float) -> float:
        """Return the longest time without an acknowledgement after `since`."""
        self.wait()
        times = [at for at, _ in self._acknowledged if at >= since - 1]
        return max(after - before for before, after in pairwise(times))

    def check(self) -> None:
        """Every acknowledged message has a number of its own, and none is missing."""
        numbers = [number for _, number in self._acknowledged]
        if numbers != sorted(set(numbers)):
            raise AssertionError("a message was lost or doubled")

    def forget(self) -> None:
        """Let the next check begin here: the copy that answered until now is gone."""
        self._acknowledged.clear()

    def wait(self) -> None:
        """Return when two more messages were acknowledged."""
        count = len(self._acknowledged)
        while len(self._acknowledged) < count + 2:
            time.sleep(0.01)

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                number = self.ask("POST", "/message", {"text": "tick"})["sequence"]
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.002)
                continue
            self._acknowledged.append((time.monotonic(), number))
            time.sleep(max(0.0, INTERVAL - (time.monotonic() - began)))


@contextmanager
def changing(store: ObjectStore, archive: Path) -> Iterator[list[int]]:
    """Overwrite 1% of the state after every snapshot; yields the bytes of each."""
    changed: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        last = _last_snapshot(store)
        while not stop.wait(0.05):
            now = _last_snapshot(store)
            if now is None:
                return
            if now != last:
                last = now
                changed.append(change(archive))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield changed
    finally:
        stop.set()
        thread.join()


def _last_snapshot(store: ObjectStore) -> str | None:
    record = read_record(store, AGENT)
    if record is None or (record.migration and record.migration.step != "staging"):
        return None  # the source is stopped: nobody may write there any more
    return record.snapshot or "none yet"


def change(archive: Path) -> int:
    """Overwrite 1% of the bytes below `archive`, in a few places; return how many."""
    files = sorted(archive.iterdir())
    wanted = math.ceil(sum(file.stat().st_size for file in files) / 100)
    left = wanted
    while left > 0:
        file = random.choice(files)
        length = min(left, PIECE)
        place = random.randrange(max(1, file.stat().st_size - length))
        with file.open("r+b") as opened:
            opened.seek(place)
            opened.write(random.randbytes(length))
        left -= length
    return wanted


def migrate(stage: Stage, client: Client, megabytes: int) -> Row:
    """Move the agent by `lobstertrap migrate`."""
    source = _home(stage)
    to = DESTINATION if source == SOURCE else SOURCE
    archive = _archive(stage, source)
    began = time.monotonic()
    with changing(stage.config.open_store(), archive) as changed:
        program = Path(sys.executable).with_name("lobstertrap")
        command = [str(program), "migrate", AGENT, "--to", to, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - began
    receipt = json.loads(done.stdout)
    names = ("downtime_seconds", "rounds", "bytes_in_cutover", "cutover")
    notes = {name: receipt[name] for name in names if name in receipt}
    return Row(
        megabytes=megabytes,
        way="migrate",
        downtime=client.gap(began),
        seconds=seconds,
        notes={**notes, "changed": changed},
    )


def restart(stage: Stage, client: Client, megabytes: int) -> Row:
    """Stop and start the container where it is."""
    engine = stage.engines[_home(stage)]
    began = time.monotonic()
    engine.run("stop", CONTAINER)
    engine.run("start", CONTAINER)
    downtime = client.gap(began)
    seconds = time.monotonic() - began
    return Row(megabytes=megabytes, way="restart", downtime=downtime, seconds=seconds)


def by_hand(stage: Stage, client: Client, megabytes: int) -> Row:
    """Do what people do; the copy goes to the other engine and, in the end, back."""
    here = _home(stage)
    there = SOURCE if here == DESTINATION else DESTINATION
    source, destination = stage.engines[here], stage.engines[there]
    began = time.monotonic()
    source.run("stop", CONTAINER)
    _pipe(source.environment, f"podman volume export {VOLUME} | zstd -3 -T0 -q", "put")
    fresh = "by-hand"
    destination.run("volume", "create", fresh)
    load = f"zstd -d -q | podman volume import {fresh} -"
    _pipe(destination.environment, load, "get")
    image = source.run("inspect", "--format", "{{.Image}}", CONTAINER).strip()
    options = ["--name", "by-hand", "--volume", f"{fresh}:{STATE}"]
    options += ["--publish", f"127.0.0.1:{PORT}:8080", "--env", TOKEN, "--detach"]
    options += ["--env", f"TALLY_STATE={STATE}", "--env", "LOBSTERTRAP_EPOCH=9"]
    command = ["podman", "run", *options, "--user", "0:0", image]
    environment = {**destination.environment, TOKEN: os.environ[TOKEN]}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    downtime = client.gap(began)
    seconds = time.monotonic() - began
    destination.run("rm", "--force", "--time", "0", "by-hand")
    destination.run("volume", "rm", fresh)
    client.forget()
    source.run("start", CONTAINER)
    client.wait()
    return Row(megabytes=megabytes, way="by-hand", downtime=downtime, seconds=seconds)


def _pipe(environment: Any, shell: str, direction: str) -> None:
    """Run a shell line with its output or input in the store, as one object."""
    me = f"{sys.executable} -m benchmarks.downtime --{direction}"
    line = f"{shell} | {me}" if direction == "put" else f"{me} | {shell}"
    command = ["bash", "-o", "pipefail", "-c", line]
    cwd = find_checkout()
    subprocess.run(command, env={**os.environ, **environment}, cwd=cwd, check=True)


def _carry(direction: str) -> None:
    """Be the upload or the download in a pipe; multipart, as `aws s3 cp -` does it."""
    import boto3  # noqa: PLC0415 - only in the pipe

    store = json.loads(os.environ["BENCH_STORE"])
    client = boto3.client(
        "s3",
        endpoint_url=store["endpoint"],
        region_name="us-east-1",
        aws_access_key_id=os.environ["DEMO_ACCESS_KEY"],
        aws_secret_access_key=os.environ["DEMO_SECRET_KEY"],
    )
    place = {"Bucket": store["bucket"], "Key": "by-hand.tar.zst"}
    if direction == "put":
        client.upload_fileobj(sys.stdin.buffer, **place)
    else:
        body = client.get_object(**place)["Body"]
        for piece in body.iter_chunks(PIECE):
            sys.stdout.buffer.write(piece)


def _home(stage: Stage) -> str:
    record = read_record(stage.config.open_store(), AGENT)
    if record is None or record.target is None:
        raise AssertionError("the agent was not launched")
    return record.target


def _archive(stage: Stage, target: str) -> Path:
    name = ("volume", "inspect", "--format", "{{.Mountpoint}}", VOLUME)
    return Path(stage.engines[target].run(*name).strip()) / "archive"


def load() -> float:
    """Return how many processes wanted to run in the last minute."""
    return round(os.getloadavg()[0], 1)


WAYS = {"migrate": migrate, "restart": restart, "by-hand": by_hand}


def bench(
    directory: Path, sizes: list[int], ways: list[str], rounds: int, minutes: float
) -> list[Row]:
    """Return the rows of every size and way."""
    rows: list[Row] = []
    until = time.monotonic() + 60 * minutes
    with Stage(directory, "podman") as stage:
        _own_agents(stage)
        program = str(Path(sys.executable).with_name("lobstertrap"))
        subprocess.run(
            [program, "launch", AGENT, "--on", SOURCE],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        for megabytes in sizes:
            with Client() as client:
                client.ask("POST", "/grow", {"megabytes": megabytes})
                for number in range(rounds):
                    for way in ways:
                        if time.monotonic() > until or (number and way == "by-hand"):
                            continue
                        rows += _tried(way, stage, client, megabytes)
                        if way != "by-hand":
                            client.check()
    return rows


def _tried(way: str, stage: Stage, client: Client, megabytes: int) -> list[Row]:
    """Return the row of one way, or say why there is none."""
    try:
        row = WAYS[way](stage, client, megabytes)
    except (OSError, subprocess.SubprocessError, LobsterTrapError) as error:
        print(f"{megabytes} MB, {way}: {error}", file=sys.stderr, flush=True)
        stage.engines[_home(stage)].run("start", CONTAINER)
        client.wait()
        return []
    row.notes["load"] = load()
    print(json.dumps(asdict(row)), flush=True)
    return [row]


def _own_agents(stage: Stage) -> None:
    """Give tally a port that stays the same, so that a client finds it everywhere."""
    agents = stage.directory / "agents" / AGENT
    agents.mkdir(parents=True)
    for name in ("agent.yaml", "tally.py", "Containerfile"):
        text = (find_checkout() / "agents" / AGENT / name).read_text("utf-8")
        fixed = text.replace("port: 8080", f"port: 8080\n    publish: {PORT}")
        text = fixed.replace("memory: 256Mi", "memory: 1Gi")
        (agents / name).write_text(text, "utf-8")
    file = stage.config.path
    lines = file.read_text("utf-8").splitlines()
    lines[0] = f'agents = "{agents.parent}"'
    file.write_text("\n".join(lines) + "\n", "utf-8")
    section = stage.config.file.store
    bucket = section.url.removeprefix("s3://").partition("/")[0]
    place = {"endpoint": section.endpoint, "bucket": bucket}
    os.environ["BENCH_STORE"] = json.dumps(place)


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 300, 3000])
    parser.add_argument("--only", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=30.0)
    for direction in ("put", "get"):
        parser.add_argument(f"--{direction}", action="store_true")
    asked = parser.parse_args()
    if asked.put or asked.get:
        _carry("put" if asked.put else "get")
        return
    rows = bench(
        asked.directory, asked.megabytes, asked.only, asked.rounds, asked.minutes
    )
    print(table(rows))


def table(rows: list[Row]) -> str:
    """Return a line for each size: the downtimes of every way, and the load."""
    ways = [way for way in WAYS if any(row.way == way for row in rows)]
    lines = [f"| state | {' | '.join(ways)} | load |", "|---" * (len(ways) + 2) + "|"]
    for size in sorted({row.megabytes for row in rows}):
        of_size = [row for row in rows if row.megabytes == size]
        cells = [_cell([r.downtime for r in of_size if r.way == way]) for way in ways]
        loads = sorted(row.notes["load"] for row in of_size)
        busy = f"{loads[0]:.0f} to {loads[-1]:.0f}"
        lines.append(f"| {size} MB | {' | '.join(cells)} | {busy} |")
    return "\n".join(lines)


def _cell(seconds: list[float]) -> str:
    if not seconds:
        return ""
    each = ", ".join(f"{value:.1f}" for value in sorted(seconds))
    return f"**{median(seconds):.1f} s** ({each})"


if __name__ == "__main__":
    main()
