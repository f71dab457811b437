"""`lobstertrap serve`: Prefect's server and a runner of the flows, in one command."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from lobstertrap import config
from lobstertrap.cli import served
from lobstertrap.cli.checkout import find_checkout
from lobstertrap.cli.prefect_server import HOST, PrefectServer
from lobstertrap.errors import Unavailable
from lobstertrap.tied import tied

PORT = 4200
_START_SECONDS = 240.0


def serve(
    *,
    port: int = PORT,
    host: str = HOST,
    data_dir: Path | None = None,
    scheduled: bool = True,
) -> None:
    """Run the server and the flows until Ctrl-C or SIGTERM.

    Flow runs that are in progress then are cancelled, and end before it does.

    Raises `Refused` when another `serve` uses `data_dir`, `Unavailable` when the port
    is taken or the server or the runner ends by itself.
    """
    settings = config.load(Path.cwd(), os.environ)
    directory = data_dir or served.data_dir()
    with PrefectServer(directory, port=port, host=host) as server:
        _say(f"Prefect's UI: {server.url}")
        with FlowRunner(server, settings.path, scheduled=scheduled) as runner:
            _say(_invitation(server, settings))
            with (
                served.noted(directory, server.url, settings.path),
                contextlib.suppress(KeyboardInterrupt, SystemExit),
            ):
                _watch(server, runner)
            _say("stopping; flow runs in progress are rolled back (Ctrl-C: at once)")


def serve_behind(
    *,
    port: int = PORT,
    host: str = HOST,
    data_dir: Path | None = None,
    scheduled: bool = True,
) -> served.Note:
    """Run `serve` as a process that outlives this one; return when it is ready."""
    config.load(Path.cwd(), os.environ)  # what is wrong with it is said here
    directory = (data_dir or served.data_dir()).absolute()
    asked = ["--host", host, "--port", str(port), "--data-dir", str(directory)]
    asked += [] if scheduled else ["--no-schedules"]
    return served.start(asked, directory)


class FlowRunner:
    """The child process that runs the flows which a server's users ask for."""

    def __init__(
        self,
        server: PrefectServer,
        config_file: Path,
        *,
        log: Path | None = None,
        scheduled: bool = True,
    ) -> None:
        """Give it `log` for what it prints; it prints to our own streams without.

        Not `scheduled`, it runs only what somebody asks for.
        """
        self._scheduled = scheduled
        self._server = server
        self._config_file = config_file
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def alive(self) -> bool:
        """Say whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Cancel its flow runs and return when they and it have ended.

        Interrupted while it waits, it kills them: the next command on the agent goes
        on from the journal.
        """
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.terminate()
            process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _start(self) -> None:
        told, tell = os.pipe()
        command = [sys.executable, "-m", "lobstertrap.cli.serve_flows", str(tell)]
        command += [] if self._scheduled else ["unscheduled"]
        own = {config.VARIABLE: str(self._config_file), "PYTHONUNBUFFERED": "1"}
        with contextlib.ExitStack() as files:
            output = files.enter_context(self._log.open("wb")) if self._log else None
            self._process = subprocess.Popen(
                tied(command),
                cwd=find_checkout(),
                env=self._server.client_environment(os.environ) | own,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[tell],
                start_new_session=True,  # Ctrl-C is for us; we stop it when it is time
            )
        os.close(tell)
        try:
            ready = select.select([told], [], [], _START_SECONDS)[0] and os.read(
                told, 9
            )
        finally:
            os.close(told)
        if not ready:
            raise Unavailable(
                "the program that runs the flows did not start",
                hint="its own message is above; is the `prefect` extra installed?",
            )


def _watch(server: PrefectServer, runner: FlowRunner) -> None:
    while True:
        time.sleep(0.5)
        if not server.alive():
            raise server.died()
        if not runner.alive():
            raise Unavailable(
                "the program that runs the flows ended by itself",
                hint="its last lines are above; start `lobstertrap serve` again",
            )


def _invitation(server: PrefectServer, settings: config.Config) -> str:
    agent = next(iter(settings.agent_names), "AGENT")
    target = settings.target_names[-1]
    return (
        "serving what prefect.yaml has: an hourly snapshot of every agent, and more; "
        "from another shell:\n"
        f"  export PREFECT_API_URL={server.api}\n"
        f"  prefect deployment run migrate-agent/default "
        f"--param agent={agent} --param to={target}\n"
        "Ctrl-C ends it"
    )


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - this is the command line
