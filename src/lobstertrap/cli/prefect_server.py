"""A Prefect server of one's own on loopback, as a child process: serve, demo and tests.

Everything that it keeps is in one directory, it reads no profile and no setting of the
person who starts it, and neither it nor its clients report anything to anybody.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from lobstertrap.cli.ports import address, free_port
from lobstertrap.cli.prefect_database import require_writable
from lobstertrap.cli.served import LOCK
from lobstertrap.errors import NotFound, Refused, Unavailable
from lobstertrap.tied import tied

HOST = "127.0.0.1"
_REACHED_AT = {"0.0.0.0": HOST, "::": "::1"}  # noqa: S104 - where all addresses listen
"""Where this machine reaches a server that listens on all addresses."""
_START_SECONDS = 240.0
_STOP_SECONDS = 20.0


class PrefectServer:
    """One server with its database in one directory; a second one there is refused.

    Args:
        directory: where its database and its log go; made when missing.
        port: where it listens on loopback; a free port when it is not given.
        host: the address that it listens on.
        settings: of Prefect's server besides, such as another database.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        host: str = HOST,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory.absolute()
        self._host = host
        self._port = port
        self._settings = dict(settings or {})
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the UI is, for a person."""
        host = _REACHED_AT.get(self._host, self._host)
        return f"http://{address(host)}:{self._port}"

    @property
    def api(self) -> str:
        """What PREFECT_API_URL has to be."""
        return f"{self.url}/api"

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self._directory / "server.log"

    @property
    def pid(self) -> int | None:
        """Its process, while it was not stopped."""
        return None if self._process is None else self._process.pid

    def alive(self) -> bool:
        """Say whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    def client_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return `environ` for a program whose Prefect is this server and no other."""
        return isolated(environ, self._directory) | {"PREFECT_API_URL": self.api}

    def start(self) -> None:
        """Start it and return when its API answers: `begin`, then `wait`."""
        self.begin()
        self.wait()

    def begin(self) -> None:
        """Start its process; raises `Refused` when another keeps the directory.

        And `Unavailable` when the port is taken or another program keeps its database.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_directory()
        try:
            require_writable(self._directory)
            self._port = free_port(self._host, self._port)
            self._spawn()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Return when its API answers; stops it when it does not come up.

        Raises `Unavailable`, or `NotFound` when Prefect is not installed.
        """
        try:
            self._await_health()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it surely: politely, then by force; not running is no error."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def died(self) -> Unavailable:
        """Return the error that says how the server ended."""
        tail = self.log.read_text(errors="replace").splitlines()[-3:]
        words = " | ".join(line.strip() for line in tail if line.strip())
        return Unavailable(
            f"Prefect's server ended by itself: {words}", hint=f"read {self.log}"
        )

    def _take_directory(self) -> None:
        lock = (self._directory / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise Refused(
                f"another `lobstertrap` uses {self._directory} (pid {owner})",
                hint="stop it (`lobstertrap serve --stop`) or wait for its end, or "
                "give this one another --data-dir",
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def _spawn(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start"]
        command += ["--host", self._host, "--port", str(self._port)]
        own = {
            "PREFECT_SERVER_UI_API_URL": self.api,
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_CLI_PROMPT": "false",
        }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                tied(command),
                cwd=self._directory,  # where no pyproject.toml changes its settings
                env=isolated(os.environ, self._directory) | own | self._settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we stop it when it is time
            )

    def _await_health(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if not self.alive():
                if "No module named prefect" in self.log.read_text(errors="replace"):
                    raise NotFound(
                        "Prefect is not installed",
                        hint="pip install 'lobstertrap[prefect]'",
                    )
                raise self.died()
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Prefect's server does not answer at {self.url}",
                    hint=f"read {self.log}",
                )
            time.sleep(0.1)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=5)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/api/health")
                return connection.getresponse().status == http.client.OK
            except (OSError, http.client.HTTPException):
                return False


def isolated(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return `environ` without a person's Prefect settings, and with our own."""
    kept = {k: v for k, v in environ.items() if not k.startswith("PREFECT_")}
    return kept | {
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "lobstertrap",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
            return
