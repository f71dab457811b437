"""What a program cost, and the store that it put its objects into."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.requests import counting_requests

ACCESS = "bench"
SECRET = "benchmark"  # noqa: S105 - of a server that lives as long as the run
BUCKET = "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of one program; children that it waited for are part of it."""

    wall: float
    cpu: float
    """Of the program alone: what the S3 server costs is not in it."""
    rss: float
    """MB, of the largest process."""
    stored: float = 0.0
    """MB by which the store grew."""
    requests: dict[str, int] = field(default_factory=dict)
    """By HTTP method; only of a run that was asked to count them."""


def measure(
    command: list[str | Path],
    environment: dict[str, str],
    text: str = "",
    *,
    cwd: Path | None = None,
) -> Measured:
    """Run a program to its end and return what it cost; exits when it fails."""
    started = time.monotonic()
    with subprocess.Popen(
        command,
        env=os.environ | environment,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError
        process.stdin.write(text)
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
    """Where a program puts its objects: an S3 server's bucket, or a directory."""

    directory: Path
    """The server's own, so that it can be seen what is stored."""
    endpoint: str | None = None
    requests: dict[str, int] | None = None
    """Counted so far, by HTTP method; None when nobody counts."""

    def stored(self) -> float:
        """Return the MB that the objects take."""
        files = (path for path in self.directory.rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files) / 1e6


@contextmanager
def open_store(kind: str, work: Path, *, count: bool) -> Iterator[Store]:
    """Yield a fresh store; for `s3` behind rclone's server, which costs least.

    To `count` requests, a proxy stands before the server: then time means nothing.
    """
    directory = work / "store"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / BUCKET).mkdir(parents=True)
    if kind == "directory":
        yield Store(directory=directory)
        return
    with _serve(directory) as address:
        if not count:
            yield Store(directory=directory, endpoint=f"http://{address}")
            return
        with counting_requests(address) as (endpoint, requests):
            yield Store(directory=directory, endpoint=endpoint, requests=requests)


@contextmanager
def _serve(directory: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rclone = find_rclone()
    options = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS},{SECRET}"]
    options += ["--vfs-cache-mode", "off", "--config", os.devnull]
    command = [rclone, "serve", "s3", directory, *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port, server)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    sys.exit("rclone's S3 server does not start")


def find_rclone() -> str:
    """Return the program from the test group."""
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if beside.exists() else "rclone"
