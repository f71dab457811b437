"""What a host target keeps of one agent on disk, and what runs of it: the facts.

<root>/<agent>/volumes/<name>/   the volumes
<root>/<agent>/home/             HOME and working directory; does not travel
<root>/<agent>/run/lock          held while a supervisor lives (or is being born)
<root>/<agent>/run/moving        held while a mover writes (or, shared, reads)
<root>/<agent>/run/state.json    what the supervisor last did
<root>/<agent>/run/agent.log     what the agent printed; agent.log.1 is older
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lobstertrap.errors import TimedOut
from lobstertrap.targets import supervisor

ENDED = ("stopped", "crashed", "failed")
"""The phases in a state file after which nothing runs and nothing will."""
_BORN_SECONDS = 60.0
_ATTEMPTS = 10  # somebody who only looks holds a lock for a moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One agent's place below a host target's root."""

    directory: Path

    @property
    def volumes(self) -> Path:
        """The directory of the volumes."""
        return self.directory / "volumes"

    @property
    def home(self) -> Path:
        """What the agent's process calls home."""
        return self.directory / "home"

    @property
    def run(self) -> Path:
        """The directory of everything that is true only while the agent is here."""
        return self.directory / "run"

    @property
    def log(self) -> Path:
        """The newer part of what the agent printed."""
        return self.run / "agent.log"

    @property
    def state_path(self) -> Path:
        """What the supervisor last did."""
        return self.run / "state.json"

    @property
    def mark(self) -> str:
        """What the environment of every process of this agent holds."""
        return hashlib.sha256(os.fsencode(self.directory.resolve())).hexdigest()[:32]

    def claim(self, name: str = "lock", *, shared: bool = False) -> int | None:
        """Take a lock and return its descriptor; None when somebody else has it."""
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _lock(self.run / name, shared=shared, create=True, attempts=_ATTEMPTS)

    def is_held(self) -> bool:
        """Say whether a supervisor lives; makes nothing."""
        held = _lock(self.run / "lock", shared=True, create=False, attempts=1)
        if held is None:
            return (self.run / "lock").exists()
        os.close(held)
        return False

    def state(self) -> dict[str, Any] | None:
        """Return what the supervisor last wrote; None when there is no instance."""
        try:
            return dict(json.loads((self.state_path).read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            return {"phase": "failed", "problem": "its state file is not readable"}

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state; only who holds the lock may."""
        supervisor.write_state(self.state_path, state)

    def leftovers(self) -> list[int]:
        """Return the agent's processes that live without a supervisor.

        They are known by the mark in their environment, which a process could have
        changed, and which is not readable for a process of another user.
        """
        pids = (int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit())
        return [pid for pid in pids if self._is_marked(pid)]

    def signal_supervisor(self, number: int) -> None:
        """Send a signal to the supervisor and to nobody else.

        When its state file does not name it (not yet, or the disk was full), every
        process with the mark gets it: it is one of them.
        """
        state = self.state() or {}
        pid = state.get("supervisor_pid")
        start = state.get("supervisor_start")
        table = supervisor.process_table()
        if pid in table and table[pid][2] == start:
            _send(pid, number, lambda: supervisor.process_table()[pid][2] == start)
        else:
            self._signal_marked(number)

    def ask_supervisor(self, number: int) -> bool:
        """Send a signal that means something to the supervisor alone, if known."""
        state = self.state() or {}
        pid, start = state.get("supervisor_pid"), state.get("supervisor_start")
        table = supervisor.process_table()
        if pid not in table or table[pid][2] != start:
            return False
        _send(pid, number, lambda: supervisor.process_table()[pid][2] == start)
        return True

    def end_leftovers(self, grace: float) -> None:
        """End the processes without a supervisor; raises `TimedOut` when one stays."""
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            deadline = time.monotonic() + seconds
            while pids := self._signal_marked(number):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            else:
                return
        raise TimedOut(f"processes {pids} do not end, not even by SIGKILL")

    def _signal_marked(self, number: int) -> list[int]:
        pids = self.leftovers()
        for pid in pids:
            _send(pid, number, partial(self._is_marked, pid))
        return pids

    def _is_marked(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return f"{supervisor.MARK}={self.mark}".encode() in environment
        return False

    def spawn(self, lock: int, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a supervisor that takes over `lock`; return its answer.

        `{"pid": n}`, or `{"error": text, "errno": n}` when the agent's command could
        not be started.
        """
        # By its path and isolated: it needs nothing but the standard library, and
        # takes nothing from this process but the request.
        command = [sys.executable, "-I", "-S", supervisor.__file__, self.directory.name]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={supervisor.MARK: self.mark},  # found even without its lock
            cwd="/",
            pass_fds=(lock,),
            start_new_session=True,
        ) as process:
            line = json.dumps(request).encode()
            try:
                answer, complaints = process.communicate(line, _BORN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise TimedOut("the supervisor did not answer") from None
        if answer:
            return dict(json.loads(answer))
        last = complaints.decode(errors="replace").strip().splitlines()[-1:]
        return {"error": f"no supervisor: {' '.join(last)}", "errno": None}

    def remove(self, *, volumes: bool) -> None:
        """Remove what is here, volumes only when asked; the caller has the locks."""
        _remove_tree(self.home)
        if volumes:
            _remove_tree(self.volumes)
        _remove_tree(self.run)
        with contextlib.suppress(OSError):  # the volumes are in it
            self.directory.rmdir()

    def log_lines(self, last: int | None = None) -> list[str]:
        """Return what the agent printed, oldest first."""
        older = self.log_lines_of(self.log.with_name("agent.log.1"))
        lines = older + self.log_lines_of(self.log)
        return lines if last is None else lines[max(0, len(lines) - last) :]

    @staticmethod
    def log_lines_of(path: Path) -> list[str]:
        """Return the lines of one part of the log; none when it is not there."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return path.read_text(errors="replace").splitlines()
        return []

    def follow_log(self, last: int | None) -> Iterator[str]:
        """Yield lines as they come, until no supervisor lives."""
        reader = _LogReader(self.log)
        older = self.log_lines_of(self.log.with_name("agent.log.1"))
        while True:
            alive = self.is_held()  # asked first: what came before is then read
            lines = older + reader.lines(final=not alive)
            yield from lines if last is None else lines[max(0, len(lines) - last) :]
            older, last = [], None
            if not alive:
                return
            time.sleep(0.1)


def _send(pid: int, number: int, is_still: Callable[[], bool]) -> None:
    """Signal a process, unless it ended and another has its number now."""
    with contextlib.suppress(OSError, KeyError):
        descriptor = os.pidfd_open(pid)
        try:
            if is_still():
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


class _LogReader:
    """Reads a growing file on, also when another takes its place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place: tuple[int, int] | None = None
        self._offset = 0

    def lines(self, *, final: bool) -> list[str]:
        """Return the whole lines since the last call; with `final` the torn one too."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if (found.st_dev, found.st_ino) != self._place:
                    self._place, self._offset = (found.st_dev, found.st_ino), 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        end = len(data) if final else data.rfind(b"\n") + 1
        self._offset += end
        return data[:end].decode(errors="replace").splitlines()


def _lock(path: Path, *, shared: bool, create: bool, attempts: int) -> int | None:
    """Lock the file that is at `path` now; None when that cannot be had at once."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    for _ in range(attempts):
        try:
            flags = os.O_RDWR | (os.O_CREAT if create else 0)
            descriptor = os.open(path, flags, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            if create:
                raise
            return None
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            time.sleep(0.01 if attempts > 1 else 0)
        os.close(descriptor)
    return None


def _remove_tree(path: Path) -> None:
    """Remove a tree whatever modes its owner gave to the directories in it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(PermissionError):
        path.chmod(0o700)
    for entry in path.iterdir():
        _remove_tree(entry)
    path.rmdir()


def boot_id() -> str:
    """Return what changes with every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
