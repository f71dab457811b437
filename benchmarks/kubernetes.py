"""A mover pod beside `kubectl exec tar`, and a launch beside `kubectl apply`.

    python -m benchmarks.kubernetes [--scale 0.85] [--rounds 3]

Starts the single-node cluster of tests/cluster (root), a Podman engine that builds and
pushes, and an S3 server (rclone) that pods reach. One claim holds the set `agent` of
benchmarks/generate.py (1 GB at scale 0.85). Each step is done both ways in the same
run, through the same API server: by the mover pod, which compresses, encrypts, uploads
and verifies, and by `kubectl exec tar` into a file or out of one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.generate import SEED, SETS, change
from lobstertrap.agent import AgentSpec, Resources, load_agent
from lobstertrap.cli.checkout import find_checkout
from lobstertrap.job import MoverJob
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository
from lobstertrap.stores import StoreSettings, open_store
from lobstertrap.targets import kubernetes_spec as spec
from lobstertrap.targets.kubernetes import KubernetesTarget
from lobstertrap.targets.kubernetes_api import Access
from lobstertrap.targets.podman_engine import PodmanEngine
from lobstertrap.tied import tied
from tests.cluster.cluster import Cluster

KEY = "benchmark"
NAMESPACE = "lobstertrap"
BASE = "localhost/lobstertrap/python:bench"
SECRETS = {"TALLY_TOKEN": SecretValue("benchmark")}
VOLUME = "state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One step, done one way."""

    step: str
    way: str
    seconds: float
    megabytes: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Everything that a step needs."""

    cluster: Cluster
    target: KubernetesTarget
    store: StoreSettings
    agent: AgentSpec
    work: Path

    def kubectl(self, *arguments: str, **options: Any) -> float:
        """Run kubectl in the namespace, and return the seconds that it took."""
        command = [self.cluster.layout.kube, "kubectl", "-n", NAMESPACE, *arguments]
        environment = {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)}
        began = time.monotonic()
        subprocess.run(command, env=environment, check=True, **options)
        return time.monotonic() - began

    def run_mover(self, command: Any, **fields: Any) -> tuple[float, dict[str, Any]]:
        """Run a mover pod; return the seconds and its result."""
        job = MoverJob(
            command=command,
            agent=self.agent.name,
            volumes=(VOLUME,),
            request={
                "store": self.store.to_dict(),
                "key": KEY,
                "cache": False,
                "owner": [self.agent.security.user, self.agent.security.group],
                "exclude": {},
                **fields,
            },
        )
        began = time.monotonic()
        result = self.target.run_mover(self.agent, job, lambda _: None)
        return time.monotonic() - began, result

    def snapshot(self) -> tuple[float, dict[str, Any]]:
        """Take a snapshot beside the agent, which is idle."""
        return self.run_mover("snapshot", consistency="stopped", tags={})

    def restore(self, snapshot: str) -> tuple[float, dict[str, Any]]:
        """Restore into the claim."""
        return self.run_mover("restore", snapshot=snapshot, delete_extra=True)

    def data(self) -> Path:
        """Return where the node has the volume's files."""
        claim = self.cluster.get(
            "-n", NAMESPACE, "pvc", spec.claim_name(self.agent, VOLUME)
        )
        volume = self.cluster.get("pv", claim["spec"]["volumeName"])
        return Path(volume["spec"]["local"]["path"]) / spec.DATA

    def launch(self, epoch: int) -> float:
        """Launch the agent, and return the seconds until it was ready."""
        began = time.monotonic()
        image = self.target.ensure_image(self.agent)
        self.target.bind_secrets(self.agent, SECRETS)
        self.target.launch(self.agent, epoch=epoch, image=image, secrets=SECRETS)
        self.await_ready()
        return time.monotonic() - began

    def await_ready(self) -> None:
        """Return when the agent is ready."""
        while not self.target.status(self.agent).healthy:
            time.sleep(0.05)

    def clear(self) -> None:
        """Stop the agent and remove it with its volumes."""
        self.target.stop(self.agent)
        self.target.remove(self.agent, volumes=True)


def measure_bytes(bench: Bench, scale: float) -> Iterator[Row]:
    """Yield the rows of snapshots and restores."""
    archive = bench.work / "volume.tar"
    place = f"/home/tally/{VOLUME}"
    out = ("exec", spec.pod_name(bench.agent), "--", "tar", "-cf", "-", "-C", place)

    def read_by_exec() -> float:
        with archive.open("wb") as file:
            return bench.kubectl(*out, ".", stdout=file)

    bench.launch(1)
    data = bench.data()
    SETS["agent"](data / "bench", random.Random(SEED), scale)
    _give(data)
    size = _megabytes(data)
    row = _rows(size)
    yield row("first snapshot", "exec tar", read_by_exec())
    seconds, first = bench.snapshot()
    yield row("first snapshot", "mover pod", seconds, first)
    change(data / "bench", random.Random(SEED + 1))
    _give(data)
    time.sleep(2.5)  # so that the files are old enough to be trusted
    yield row("snapshot after a change of 1%", "exec tar", read_by_exec())
    seconds, second = bench.snapshot()
    yield row("snapshot after a change of 1%", "mover pod", seconds, second)
    for _ in range(3):
        seconds, unchanged = bench.snapshot()
        yield row("snapshot, nothing changed", "mover pod", seconds, unchanged)
    bench.clear()
    bench.launch(2)
    with archive.open("rb") as file:
        back = ("exec", "-i", out[1], "--", "tar", "-xf", "-", "-C", place)
        yield row(
            "restore into an empty volume", "exec tar", bench.kubectl(*back, stdin=file)
        )
    bench.clear()
    seconds, done = bench.restore(first["snapshot"])
    yield row("restore into an empty volume", "mover pod", seconds, done)
    seconds, done = bench.restore(second["snapshot"])
    yield row("restore onto the older copy", "mover pod", seconds, done)
    bench.target.remove(bench.agent, volumes=True)


def _rows(size: float) -> Callable[..., Row]:
    def row(
        step: str, way: str, seconds: float, result: dict[str, Any] | None = None
    ) -> Row:
        names = ("seconds", "uploaded_bytes", "bytes_written", "fetched_bytes", "files")
        notes = {n: result[n] for n in names if n in result} if result else {}
        return Row(step=step, way=way, seconds=seconds, megabytes=size, notes=notes)

    return row


def measure_launch(bench: Bench, rounds: int) -> Iterator[Row]:
    """Yield how long a launch takes until the agent is ready, both ways by turns."""
    image = bench.target.ensure_image(bench.agent)
    documents = bench.target.manifests(bench.agent, image=image)
    secret = next(d for d in documents if d["kind"] == "Secret")
    secret["stringData"] = {n: value.reveal() for n, value in SECRETS.items()}
    everything = {"apiVersion": "v1", "kind": "List", "items": documents}
    for number in range(rounds):
        yield Row(step="launch", way="lobstertrap", seconds=bench.launch(number + 1))
        bench.clear()
        text = json.dumps(everything)
        began = time.monotonic()
        bench.kubectl("apply", "-f", "-", input=text, text=True, stdout=sys.stderr)
        bench.await_ready()
        yield Row(step="launch", way="kubectl apply", seconds=time.monotonic() - began)
        bench.clear()


def _give(directory: Path) -> None:
    # Only what is not: a file that is given away once more counts as changed.
    owners = ("--from=0:0", "1000:1000")
    subprocess.run(["chown", "--recursive", *owners, directory], check=True)
    os.sync()


def _megabytes(directory: Path) -> float:
    files = (p for p in directory.rglob("*") if p.is_file())
    return sum(p.stat().st_size for p in files) / 1e6


@contextmanager
def opened(work: Path) -> Iterator[Bench]:
    """Yield a cluster, an engine and a store, all removed at the end."""
    with ExitStack() as stack:
        work.mkdir(parents=True, exist_ok=True)
        cluster = Cluster.start(work / "k")
        stack.callback(cluster.remove)
        store = stack.enter_context(_store(work / "s3", cluster.gateway))
        Repository.create(open_store(store), SecretValue(KEY))
        engine = stack.enter_context(PodmanEngine(work / "engine"))
        build = find_checkout() / "deployments" / "base-image" / "build"
        subprocess.run(
            [sys.executable, build, "--tag", BASE, "--load", engine.url],
            check=True,
            capture_output=True,
        )
        target = KubernetesTarget(
            "cluster",
            Access(kubeconfig=cluster.kubeconfig),
            namespace=NAMESPACE,
            registry=f"{cluster.registry}/bench",
            insecure_registry=True,
            engine=engine.url,
            build_args={"BASE": BASE},
        )
        agent = load_agent(find_checkout() / "agents" / "tally" / "agent.yaml")
        agent = agent.model_copy(update={"resources": Resources(memory=2**29, cpus=2)})
        yield Bench(cluster=cluster, target=target, store=store, agent=agent, work=work)


@contextmanager
def _store(directory: Path, address: str) -> Iterator[StoreSettings]:
    (directory / "bench").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind((address, 0))
        place = f"{address}:{probe.getsockname()[1]}"
    rclone = str(Path(sys.executable).with_name("rclone"))
    options = ["--addr", place, "--vfs-cache-mode", "off", "--config", os.devnull]
    server = subprocess.Popen(
        tied([rclone, "serve", "s3", str(directory), *options]),
        env={**os.environ, "RCLONE_AUTH_KEY": f'"bench,{KEY}"'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await_port(place)
        yield StoreSettings(
            url="s3://bench",
            endpoint=f"http://{place}",
            region="us-east-1",
            access_key=SecretValue("bench"),
            secret_key=SecretValue(KEY),
        )
    finally:
        server.kill()
        server.wait()


def _await_port(place: str) -> None:
    host, _, port = place.partition(":")
    for _ in range(300):
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(place)


def bench(work: Path, scale: float, rounds: int, only: list[str]) -> list[Row]:
    """Run all that is wanted, and return the rows."""
    rows = []
    with opened(work) as parts:
        steps = {
            "launch": lambda: measure_launch(parts, rounds),
            "bytes": lambda: measure_bytes(parts, scale),
        }
        for name in only:
            for row in steps[name]():
                print(json.dumps(asdict(row)), file=sys.stderr, flush=True)
                rows.append(row)
    return rows


def print_tables(rows: list[Row]) -> None:
    """Print medians, each beside the other way."""
    print("\n| step | way | seconds | MB/s of the volume |\n|---|---|---|---|")
    for step, way in dict.fromkeys((row.step, row.way) for row in rows):
        found = [row for row in rows if (row.step, row.way) == (step, way)]
        seconds = statistics.median(row.seconds for row in found)
        size = found[0].megabytes
        rate = f"{size / seconds:.0f}" if size else ""
        print(f"| {step} | {way} | {seconds:.1f} | {rate} |")


def main() -> None:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.85)
    parser.add_argument("--rounds", type=int, default=3)
    both = ["launch", "bytes"]
    parser.add_argument("--only", nargs="+", choices=both, default=both)
    asked = parser.parse_args()
    # Short, for sockets, and not where only root may enter; TMPDIR can name another.
    work = Path(tempfile.mkdtemp(prefix="lt-bench-"))
    work.chmod(0o711)
    try:
        print_tables(bench(work, asked.scale, asked.rounds, asked.only))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
