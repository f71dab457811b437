"""The mover as a child process: requests in, progress out, and never left running.

It answers one request after another, so that the last snapshot of a migration, and its
restore, need not wait for the start of a program. Between two requests it holds
nothing: no volume, no lock. It ends when its socket closes, and so with whoever
started it, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from typing import IO, Any

from lobstertrap.errors import Unavailable
from lobstertrap.job import STAY, OnProgress, read_events
from lobstertrap.redaction import redactor

_GRACE_SECONDS = 5.0
_TAIL_BYTES = 2000


class MoverChild:
    """One `python -m lobstertrap.mover` on this machine; for one thread at a time.

    `prefix` goes before the command (`podman unshare`).
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, sys.executable, "-P", "-m", "lobstertrap.mover", STAY]
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        except BaseException:
            self._socket.close()
            self._complaints.close()
            raise
        finally:
            theirs.close()

    @property
    def alive(self) -> bool:
        """Whether it can be asked; one that was idle for long has gone by itself."""
        return self._process.poll() is None

    def ask(
        self, request: str, on_progress: OnProgress, *, locks: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Let it do one request and return the result.

        The child gets `locks` too, and has let them go when this returns. Whatever else
        ends this call, Ctrl-C included, ends the mover and all that it started.
        """
        try:
            self._send(request, locks)
            return read_events(self._process.stdout or (), on_progress)
        except Unavailable as error:
            said = redactor.redact(_tail(self._complaints))
            self.end()
            message = f"{error.message}: {said}" if said else error.message
            raise Unavailable(message, hint=error.hint) from None
        except BaseException:
            self.end()
            raise

    def end(self, *, idle: bool = False) -> None:
        """Let it clean up, then make sure; its group holds whatever it started."""
        self._socket.close()
        try:
            if self.alive and not idle:
                self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
        finally:
            self._signal(signal.SIGKILL)
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._complaints.close()

    def _send(self, request: str, locks: Sequence[int]) -> None:
        # One that died already is explained by what it printed, not by the broken pipe.
        data = request.encode() + b"\n"
        with contextlib.suppress(ConnectionError):
            socket.send_fds(self._socket, [data[:1]], locks)
            self._socket.sendall(data[1:])

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class MoverChildren:
    """The movers of one target in this process: one stays for the next request.

    With several threads each gets a mover of its own. Whoever forgets `close` leaves
    nothing behind when the process, or only this object, is gone.
    """

    def __init__(self) -> None:
        self._idle: list[MoverChild] = []
        weakref.finalize(self, _end_all, self._idle, os.getpid())

    def run(
        self,
        request: str,
        on_progress: OnProgress,
        *,
        prefix: Sequence[str] = (),
        locks: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Have a mover do `request`; see `MoverChild.ask`."""
        child = self._take() or MoverChild(prefix)
        result = child.ask(request, on_progress, locks=locks)
        self._idle.append(child)
        return result

    def close(self) -> None:
        """End the one that stays; the next request starts another."""
        _end_all(self._idle, os.getpid())

    def _take(self) -> MoverChild | None:
        with contextlib.suppress(IndexError):  # one step: safe for threads
            child = self._idle.pop()
            if child.alive:
                return child
            child.end()
        return None


def run_mover_child(
    request: str, on_progress: OnProgress, *, prefix: Sequence[str] = ()
) -> dict[str, Any]:
    """Have a mover do this one request, and end it."""
    child = MoverChild(prefix)
    result = child.ask(request, on_progress)
    child.end(idle=True)
    return result


def _end_all(idle: list[MoverChild], owner: int) -> None:
    while idle and os.getpid() == owner:  # a fork's copy of it is not its own
        idle.pop().end(idle=True)


def _tail(complaints: IO[bytes]) -> str:
    end = complaints.seek(0, os.SEEK_END)
    complaints.seek(max(0, end - _TAIL_BYTES))
    return " | ".join(complaints.read().decode("utf-8", "replace").split("\n")).strip()
