"""A `lobstertrap serve` that runs on this machine: where it is, and how it is ended.

It writes a note beside its database when it is ready. Whether it still runs is said by
the lock on that directory, never by the note alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lobstertrap.errors import LobsterTrapError, TimedOut, Unavailable

LOCK = "server.lock"
_NOTE = "serve.json"
_LOG = "serve.log"
_START_SECONDS = 300.0
_STOP_SECONDS = 600.0
"""A migration in progress is rolled back first, with the agent's own grace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a running `serve` says of itself."""

    pid: int
    url: str
    config: str
    started: float

    @property
    def api(self) -> str:
        """What PREFECT_API_URL has to be."""
        return f"{self.url}/api"


def data_dir() -> Path:
    """Return where the server of a person's own keeps everything."""
    from platformdirs import user_data_dir  # noqa: PLC0415 - only when it is not given

    return Path(user_data_dir("lobstertrap")) / "prefect"


@contextlib.contextmanager
def noted(directory: Path, url: str, config: Path) -> Iterator[None]:
    """Let others find this process until the block ends."""
    note = Note(pid=os.getpid(), url=url, config=str(config), started=time.time())
    path = directory / _NOTE
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(note)), "utf-8")
    new.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def find(directory: Path) -> Note | None:
    """Return the note of the `serve` that runs with this directory, if one does."""
    owner = holder(directory)
    try:
        note = Note(**json.loads((directory / _NOTE).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return note if owner == note.pid else None


def holder(directory: Path) -> int | None:
    """Return the process that keeps the directory, or None when nobody does."""
    try:
        lock = (directory / LOCK).open("r+", encoding="utf-8")
    except OSError:
        return None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            words = lock.read().split()
            return int(words[0]) if words and words[0].isdigit() else None
    return None


def start(arguments: list[str], directory: Path) -> Note:
    """Run `lobstertrap serve` with `arguments`, detached; return when it is ready."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = directory / _LOG
    program = "from lobstertrap.cli import main; main()"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # it outlives this command and its terminal
        )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        note = find(directory)
        if note is not None and note.pid == process.pid:
            return note
        if process.poll() is not None:
            raise _ended(process.returncode, log)
        time.sleep(0.1)
    process.terminate()
    raise TimedOut("`serve` did not become ready", hint=f"read {log}")


def stop(directory: Path) -> Note | None:
    """End the `serve` of this directory and return when it has; None if none runs."""
    note = find(directory)
    if note is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(note.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while holder(directory) == note.pid:
        if time.monotonic() > deadline:
            raise TimedOut(
                f"`serve` (pid {note.pid}) still waits for its flow runs",
                hint="look at them in its UI, or end it with kill -9: the next command "
                "on an agent goes on from the journal",
            )
        time.sleep(0.1)
    return note


def _ended(status: int, log: Path) -> LobsterTrapError:
    said = log.read_text(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in said if line[:7] == "error: "]
    hints = [line.removeprefix("hint: ") for line in said if line[:6] == "hint: "]
    return Unavailable(
        errors[0] if errors else f"`serve` ended with status {status}",
        hint="; ".join([*hints[:1], f"read {log}"]),
    )
