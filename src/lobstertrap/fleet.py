"""Many migrations: a few at a time, and the failure of one stops no other.

Each runs in a process of its own, as if somebody had typed it, so it can be ended in
order (it rolls back) and a crash takes no other with it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lobstertrap.lease import AgentRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one agent."""

    agent: str
    moved: bool
    downtime_seconds: float | None = None
    seconds: float = 0.0
    message: str = ""
    hint: str | None = None

    def __str__(self) -> str:
        if not self.moved:
            return f"{self.agent}: failed: {self.message}"
        down = self.downtime_seconds
        return f"{self.agent}: moved" + (f", down {down:.1f} s" if down else "")


def members(
    records: Mapping[str, AgentRecord | None], source: str | None, destination: str
) -> list[str]:
    """Return the agents that live on `source`, or are on their way from it.

    Without a source: those that live anywhere else than on `destination`.
    """
    return [
        name
        for name, record in records.items()
        if record is not None
        and _lives(record, source, destination)
        and (record.migration is None or record.migration.destination == destination)
    ]


def left_out(
    records: Mapping[str, AgentRecord | None], source: str | None, destination: str
) -> list[str]:
    """Return the agents on `source` whose open migration leads elsewhere."""
    chosen = members(records, source, destination)
    return [
        name
        for name, record in records.items()
        if record is not None
        and _lives(record, source, destination)
        and name not in chosen
    ]


def _lives(record: AgentRecord, source: str | None, destination: str) -> bool:
    if source is None:
        return record.target not in (None, destination)
    return record.target == source


Migrate = Callable[[str], Outcome]


def move_all(
    agents: Sequence[str],
    migrate: Migrate,
    *,
    parallel: int,
    end: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Move every agent, `parallel` at a time; returns what became of each, in order.

    A cancel calls `end`, which has to make every `migrate` return, and waits for them.
    """
    with ThreadPoolExecutor(max(1, parallel), "fleet") as pool:
        futures = [pool.submit(migrate, agent) for agent in agents]
        try:
            return [future.result() for future in futures]
        except BaseException:  # a cancel: what has not begun does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            end()
            raise


class Commands:
    """Runs `lobstertrap migrate` for one agent at a time and thread."""

    def __init__(self, destination: str, env: Mapping[str, str]) -> None:
        self._destination = destination
        self._env = dict(env)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def end(self) -> None:
        """Ask whatever still runs to roll back and end; nothing new begins."""
        with self._lock:
            self._ended = True
            for child in self._running:
                child.terminate()

    def migrate(self, agent: str) -> Outcome:
        """Move one agent and return what became of it; raises nothing for a failure."""
        began = time.monotonic()
        child = self._start(agent)
        if child is None:
            return Outcome(agent=agent, moved=False, message="not begun")
        try:
            out, complaints = child.communicate()
        finally:
            with self._lock:
                self._running.discard(child)
        return read_outcome(
            agent, child.returncode, out, complaints, time.monotonic() - began
        )

    def _start(self, agent: str) -> subprocess.Popen[str] | None:
        program = "from lobstertrap.cli import main; main()"
        asked = ["migrate", agent, "--to", self._destination, "--json"]
        with self._lock:
            if self._ended:
                return None
            child = subprocess.Popen(
                [sys.executable, "-c", program, *asked],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is ours to pass on, once
            )
            self._running.add(child)
            return child


def read_outcome(
    agent: str, status: int, out: str, complaints: str, seconds: float
) -> Outcome:
    """Return what a migration's exit status and its one JSON object say."""
    said: Any = None
    with contextlib.suppress(ValueError):
        said = json.loads(out.strip().splitlines()[-1] if out.strip() else "")
    answer: dict[str, Any] = said if isinstance(said, dict) else {}
    if status == 0:
        return Outcome(
            agent=agent,
            moved=True,
            downtime_seconds=answer.get("downtime_seconds"),
            seconds=round(seconds, 3),
        )
    error = answer.get("error") or {}
    last = complaints.strip().splitlines()[-1:] or [f"ended with status {status}"]
    return Outcome(
        agent=agent,
        moved=False,
        seconds=round(seconds, 3),
        message=str(error.get("message") or last[0]),
        hint=error.get("hint"),
    )
