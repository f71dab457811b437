"""The supervisor: a small program that keeps one agent's processes, and ends them all.

HostTarget starts it by its path, isolated, so it imports the standard library only. It
reads one JSON request from standard input (the secrets are in it, so they are never an
argument or a file), answers one JSON line, and lives on as a daemon:

- it inherits a lock that HostTarget took before: as long as a supervisor lives, and
  from before it was born, nobody else can start this agent in this root;
- it is the subreaper of everything that the agent starts, so nothing escapes it, and
  it lets go of the lock only when nothing is left;
- the agent dies with it (PR_SET_PDEATHSIG) should somebody kill it with SIGKILL;
- SIGUSR1 freezes the agent's processes, SIGUSR2 lets them go on; nobody has to: they go
  on by themselves after a while, or when the agent is to stop;
- an agent that crashes is started again a few times; after a reboot nothing starts.

Its state file says what it did. Only the lock says whether it runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARK = "LOBSTERTRAP_INSTANCE"
"""The variable by which processes of an agent are found when the supervisor is gone."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STEADY_SECONDS = 60.0  # running so long, an agent's earlier crashes are forgotten
_SEVERAL = 65536
_FREEZE_LOOKS = 200


def process_table() -> dict[int, tuple[int, str, int]]:
    """Return (parent, state letter, start in ticks since boot) by process id."""
    table = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = (entry / "stat").read_text(errors="replace")
                fields = stat[stat.rindex(")") + 2 :].split()  # the name may hold ')'
                table[int(entry.name)] = (int(fields[1]), fields[0], int(fields[19]))
    return table


def descendants(ancestor: int) -> list[int]:
    """Return every living process below `ancestor`; ones that wait for a reaper too."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in process_table().items():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [ancestor]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the state file as a whole; a reader never sees a half of it."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


class Log:
    """What the agent prints, in a file that is set aside when it reaches `limit`."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit

    def write(self, data: bytes) -> None:
        """Append; on a full disk drop it, because the agent must not wait for a log."""
        with contextlib.suppress(OSError):
            with self._path.open("ab") as file:
                file.write(data)
                full = file.tell() >= self._limit
            if full:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))


class Supervisor:
    """One agent from its start to its end."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self._state = dict(request["state"])
        self._state_path = Path(request["state_path"])
        self._log = Log(Path(request["log_path"]), request["log_limit"])
        self._delays: list[float] = list(request["restart_delays"])
        self._agent = 0
        self._ended: int | None = None  # exit status, negative for a signal
        self._stopping = False
        self._freeze_wanted = False
        self._frozen_until: float | None = None
        self._output, self._agent_output = os.pipe()
        os.set_blocking(self._output, False)
        self._wakeup, waker = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(waker, False)
        # Not SIG_IGN: that would be inherited by the agent.
        for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):
            signal.signal(ignored, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_freeze)
        signal.signal(signal.SIGUSR2, self._on_thaw)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True

    def _on_freeze(self, *_: object) -> None:
        self._freeze_wanted = True

    def _on_thaw(self, *_: object) -> None:
        self._freeze_wanted = False

    def save(self, **changes: Any) -> None:
        """Record what happened; a full disk is no reason to leave the agent alone."""
        self._state |= changes
        with contextlib.suppress(OSError):
            write_state(self._state_path, self._state)

    def start(self) -> None:
        """Start the agent in a session of its own; raises OSError when it cannot."""
        me = os.getpid()

        def prepare() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != me:  # the supervisor died before the line above
                os._exit(1)
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.umask(0o022)

        agent = subprocess.Popen(
            self._request["command"],
            env=self._request["env"],
            cwd=self._request["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=self._agent_output,
            stderr=self._agent_output,
            start_new_session=True,
            # Safe: there is one thread here.
            preexec_fn=prepare,  # noqa: PLW1509
        )
        agent.returncode = 0  # it is reaped by _reap, not by Popen
        self._agent, self._ended = agent.pid, None
        self.save(phase="running", agent_pid=agent.pid, started_at=time.time())

    def supervise(self) -> None:
        """Return when the agent has ended for good and nothing of it is left."""
        crashes = 0
        while True:
            began = time.monotonic()
            status = self._until_ended()
            self._sweep()
            if self._stopping or status == 0:
                self.save(phase="stopped", exit_status=status)
                return
            if time.monotonic() - began > _STEADY_SECONDS:
                crashes = 0
            if crashes == len(self._delays):
                self.save(phase="crashed", exit_status=status, restarts=crashes)
                return
            self.save(phase="restarting", exit_status=status, restarts=crashes)
            if self._pause(self._delays[crashes]):
                self.save(phase="stopped")
                return
            crashes += 1
            try:
                self.start()
            except OSError as error:
                self.save(phase="crashed", problem=str(error))
                return

    def _until_ended(self) -> int:
        """Wait for the agent; pass a stop on, first kindly and then by force."""
        deadline: float | None = None
        while self._ended is None:
            self._freeze_or_thaw()
            if self._stopping and deadline is None:
                self._signal_group(signal.SIGTERM)
                deadline = time.monotonic() + self._request["stop_timeout"]
            if deadline is not None and time.monotonic() >= deadline:
                self._signal_group(signal.SIGKILL)
                deadline = time.monotonic() + 1
            ends = [at for at in (deadline, self._frozen_until) if at is not None]
            self._wait(max(0.0, min(ends) - time.monotonic()) if ends else None)
            self._reap()
        self._frozen_until, self._freeze_wanted = None, False
        return self._ended

    def _freeze_or_thaw(self) -> None:
        """Do what was asked for last; what is frozen for too long goes on by itself."""
        now = time.monotonic()
        if self._stopping or now >= (self._frozen_until or now + 1):
            self._freeze_wanted = False
        if self._freeze_wanted and self._frozen_until is None:
            self._frozen_until = now + self._request["freeze_seconds"]
            self._stop_all()
            self.save(frozen=True)
        elif not self._freeze_wanted and self._frozen_until is not None:
            self._frozen_until = None
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGCONT)
            self.save(frozen=False)

    @staticmethod
    def _stop_all() -> None:
        """Suspend everything below; again while there are new ones or still running."""
        for _ in range(_FREEZE_LOOKS):
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGSTOP)
            table = process_table()
            states = [table[pid][1] for pid in descendants(os.getpid()) if pid in table]
            if all(state in "TtZX" for state in states):
                return
            time.sleep(0.005)

    def _pause(self, seconds: float) -> bool:
        """Sleep, and say whether a stop came meanwhile."""
        deadline = time.monotonic() + seconds
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            self._wait(left)
            self._reap()
        return self._stopping

    def _sweep(self) -> None:
        """Kill what the agent left behind; return only when there is nothing."""
        pause = 0.001
        while pids := descendants(os.getpid()):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self._wait(pause)
            self._reap()
            pause = min(pause * 2, 1.0)
        self._wait(0)  # its last words

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._agent, number)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self._agent:
                    self._ended = os.waitstatus_to_exitcode(found[1])

    def _wait(self, seconds: float | None) -> None:
        """Wait for a signal, carrying the agent's output into the log meanwhile."""
        ready, _, _ = select.select([self._output, self._wakeup], [], [], seconds)
        for descriptor in ready:
            with contextlib.suppress(BlockingIOError):
                data = os.read(descriptor, _SEVERAL)
                if descriptor == self._output:
                    self._log.write(data)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process; Linux only."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _answer(**fields: Any) -> None:
    """Tell the one who started us, and let go of its pipes."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(fields).encode() + b"\n")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def main() -> None:
    """Read the request, become a daemon, supervise."""
    request = json.load(sys.stdin.buffer)  # one that was cut short starts nothing
    if os.fork():
        os._exit(0)
    supervisor = Supervisor(request)
    started = process_table()[os.getpid()][2]
    supervisor.save(supervisor_pid=os.getpid(), supervisor_start=started, frozen=False)
    try:
        supervisor.start()
    except (OSError, ValueError) as error:
        supervisor.save(phase="failed", problem=str(error))
        _answer(error=str(error), errno=getattr(error, "errno", None))
        return
    _answer(pid=os.getpid())
    try:
        supervisor.supervise()
    except BaseException:  # only to leave a word: the agent dies with this process
        supervisor.save(phase="failed", problem=traceback.format_exc(limit=-3))
        raise


if __name__ == "__main__":
    main()
