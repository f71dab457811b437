"""The mover as a child process: request in, progress out, and never left running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

from lobstertrap.errors import Unavailable
from lobstertrap.job import OnProgress, read_events
from lobstertrap.redaction import redactor

_GRACE_SECONDS = 5.0
_TAIL_BYTES = 2000


def run_mover_child(
    request: str,
    on_progress: OnProgress,
    *,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> dict[str, Any]:
    """Run `python -m lobstertrap.mover` on this machine and return its result.

    `prefix` goes before the command (`podman unshare`); `env` replaces the environment,
    which holds the credential chains of the store. Whatever ends this call, Ctrl-C
    included, ends the mover and all that it started.
    """
    command = [*prefix, sys.executable, "-P", "-m", "lobstertrap.mover"]
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
            errors="replace",
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,  # Ctrl-C is ours to handle
        ) as child,
    ):
        try:
            _ask(child, request)
            result = read_events(child.stdout or (), on_progress)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_SECONDS)
        except Unavailable as error:
            said = redactor.redact(_tail(complaints))
            message = f"{error.message}: {said}" if said else error.message
            raise Unavailable(message, hint=error.hint) from None
        finally:
            _end(child)
        return result


def _ask(child: subprocess.Popen[str], request: str) -> None:
    # One that died already is explained by what it printed, not by the broken pipe.
    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError), child.stdin:
            child.stdin.write(request + "\n")


def _end(child: subprocess.Popen[str]) -> None:
    """Let it clean up, then make sure; its group holds whatever it started."""
    try:
        if child.poll() is None:
            _signal(child, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_SECONDS)
    finally:
        _signal(child, signal.SIGKILL)


def _signal(child: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _tail(complaints: IO[bytes]) -> str:
    end = complaints.seek(0, os.SEEK_END)
    complaints.seek(max(0, end - _TAIL_BYTES))
    return " | ".join(complaints.read().decode("utf-8", "replace").split("\n")).strip()
