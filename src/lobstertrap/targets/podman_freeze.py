"""Freezing a container: Podman pauses it, and a guard makes sure that it goes on.

The guard is a process of its own. It lets the container go on when whoever froze it
is gone (its end of a pipe is closed, also by SIGKILL) or takes too long. If the guard's
own machine dies as well, the next operation on the agent thaws it.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lobstertrap.errors import (
    LobsterTrapError,
    NotFound,
    Refused,
    Transient,
    Unavailable,
)
from lobstertrap.targets.podman_api import PodmanApi

_TRIES = 60
_START_SECONDS = 30.0


class Guard:
    """The process that thaws a container should nobody else do it."""

    def __init__(
        self, url: str, identity: Path | None, container: str, seconds: float
    ) -> None:
        command = [sys.executable, "-P", "-m", "lobstertrap.targets.podman_freeze"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd="/",
            start_new_session=True,  # Ctrl-C must not end it
        )
        request = {
            "url": url,
            "identity": str(identity) if identity else None,
            "container": container,
            "seconds": seconds,
        }
        self._tell(json.dumps(request))
        output = self._process.stdout
        ready = output and select.select([output], [], [], _START_SECONDS)[0]
        if not ready or not output or output.readline() != "ready\n":
            self.dismiss(done=True)
            raise Unavailable("the guard that thaws the agent could not be started")

    def dismiss(self, *, done: bool) -> None:
        """Let it end; unless the container is known to go on, it sees to that first."""
        if done:
            self._tell("done")
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if not done:  # it may have to wait for the engine: it is left to itself
            self._process.returncode = 0
            return
        try:
            self._process.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, line: str) -> None:
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()


def pause(api: PodmanApi, container: str, about: str) -> None:
    """Pause the container; `Refused` where the engine cannot."""
    try:
        api.post(f"/containers/{container}/pause")
    except NotFound:
        raise
    except Transient:
        raise
    except LobsterTrapError as error:
        raise Refused(
            f"{about} it cannot be frozen: {error.message}",
            hint="use snapshot.mode stop or hook (rootless needs cgroup v2 to pause)",
        ) from error


def unpause(api: PodmanApi, container: str) -> bool:
    """Let the container go on; says whether it was paused."""
    found: Any = api.find(f"/containers/{container}/json")
    if not found or found["State"]["Status"] != "paused":
        return False
    api.post(f"/containers/{container}/unpause")
    return True


def main() -> None:
    """Be the guard."""
    request = json.loads(sys.stdin.readline())
    identity = Path(request["identity"]) if request["identity"] else None
    api = PodmanApi("guard", request["url"], identity=identity)
    unpause_later = time.monotonic() + request["seconds"]
    print("ready", flush=True)  # noqa: T201 - to who waits
    left = max(0.0, unpause_later - time.monotonic())
    if select.select([sys.stdin], [], [], left)[0] and sys.stdin.readline():
        return
    for _ in range(_TRIES):
        try:
            unpause(api, request["container"])
        except LobsterTrapError:
            time.sleep(1)
        else:
            return


if __name__ == "__main__":
    main()
