"""Prefect servers that cannot be used: one line says which and why, and what to do."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from prefect import __version__ as ours
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    temporary_settings,
)

from lobstertrap.cli import checkup
from lobstertrap.cli.chosen_server import explained, is_away, require_server
from lobstertrap.cli.prefect_database import require_writable
from lobstertrap.cli.prefect_server import PrefectServer
from lobstertrap.errors import (
    AccessDenied,
    IntegrityError,
    InvalidInput,
    NotFound,
    Unavailable,
)
from lobstertrap.job import Progress
from tasks import live_progress
from tests.fixtures.ports import free_port

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(1200)]
PASSWORD = "admin:right"
MOVE = ("migrate", "tally", "--to", "server")
CONFIG = """
[store]
url = "file://{directory}/store"
[repository]
key = {{ source = "env", id = "REPOSITORY_KEY" }}
[targets.desk]
kind = "host"
root = "desk"
"""
AGENT = """
name: idle
image: localhost/idle:1
host:
  command: ["sleep", "1000"]
volumes:
  - name: state
    path: /state
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[PrefectServer]:
    """Return a server with a password, which the last test here kills."""
    secret = {"PREFECT_SERVER_API_AUTH_STRING": PASSWORD}
    directory = tmp_path_factory.mktemp("server")
    with PrefectServer(directory, settings=secret) as made:
        yield made


@pytest.fixture(scope="module")
def prefect_environment(server) -> dict[str, str]:
    """Return the environment of a program that uses this server, not the session's."""
    known = server.client_environment(os.environ)
    return {**known, "PREFECT_API_AUTH_STRING": PASSWORD}


@pytest.fixture
def project(tmp_path) -> Path:
    """Return a directory with a configuration and an agent, which lives nowhere."""
    (tmp_path / "agents/idle").mkdir(parents=True)
    (tmp_path / "agents/idle/agent.yaml").write_text(AGENT)
    (tmp_path / "lobstertrap.toml").write_text(CONFIG.format(directory=tmp_path))
    return tmp_path


def refusal(project: Path, *arguments: str, **variables: str) -> list[str]:
    """Run a command that has to fail; returns its exit code's and error's lines."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PREFECT_", "LOBSTERTRAP_"))
    }
    own = {"HOME": str(project), "XDG_DATA_HOME": str(project / "data")}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lobstertrap")), *arguments],
        cwd=project,
        env=kept | own | {"REPOSITORY_KEY": "x", "DO_NOT_TRACK": "1"} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], lines
    return lines


@contextmanager
def answering(status: int, body: object) -> Iterator[str]:
    """Answer every request in the same way; yields what PREFECT_API_URL has to be."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            said = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        listening = threading.Thread(target=server.serve_forever)
        listening.start()
        try:
            api = f"http://127.0.0.1:{server.server_port}/api"
            with temporary_settings(updates={PREFECT_API_URL: api}):
                yield api
        finally:
            server.shutdown()
            listening.join()


def test_a_server_that_is_away_is_named(project):
    api = f"http://127.0.0.1:{free_port()}/api"

    error, hint = refusal(project, "snapshot", "idle", PREFECT_API_URL=api)

    assert error.startswith(f"error: Prefect's server at {api} does not answer: ")
    assert "PREFECT_API_URL" in hint


def test_a_server_with_a_password_says_who_is_let_in(project, server):
    wrong = {"PREFECT_API_AUTH_STRING": "admin:wrong"}
    error, hint = refusal(
        *(project, "snapshot", "idle"), PREFECT_API_URL=server.api, **wrong
    )
    known = {PREFECT_API_URL: server.api, PREFECT_API_AUTH_STRING: PASSWORD}
    with temporary_settings(updates=known):
        welcome = require_server()

    assert f"Prefect's server at {server.api} refuses this user (HTTP 401)" in error
    assert "PREFECT_API_AUTH_STRING" in hint
    assert "wrong" not in error + hint
    assert welcome == f"{ours} at {server.api}"


def test_a_locked_database_is_named_and_nothing_waits_for_it_for_ever(project):
    directory = project / "data/lobstertrap/prefect"
    directory.mkdir(parents=True)
    with closing(sqlite3.connect(directory / "prefect.db")) as other:
        other.execute("CREATE TABLE something (it)")
        other.execute("BEGIN IMMEDIATE")
        error, hint = refusal(project, "snapshot", "idle")

    assert f"database {directory}/prefect.db cannot be written to" in error
    assert "locked" in error
    assert "fuser" in hint


@pytest.mark.parametrize("content", [b"", None])
def test_a_database_that_nobody_keeps_is_used(tmp_path, content):
    if content is not None:
        (tmp_path / "prefect.db").write_bytes(content)

    require_writable(tmp_path)

    assert (tmp_path / "prefect.db").exists() is (content is not None)


def test_a_damaged_database_is_named_before_a_server_starts(tmp_path):
    (tmp_path / "prefect.db").write_bytes(b"no database at all" * 1000)

    with pytest.raises(IntegrityError, match=r"prefect\.db is damaged") as refused:
        PrefectServer(tmp_path).begin()

    assert "move it away" in refused.value.hint
    assert not (tmp_path / "server.log").exists()


def test_another_major_version_is_refused():
    with (
        answering(200, "2.20.1") as api,
        pytest.raises(InvalidInput, match=r"is version 2\.20\.1, here it is 3") as no,
    ):
        require_server()

    assert api in no.value.message
    assert no.value.hint == "use a server of version 3"


def test_an_older_server_is_used_with_a_warning(capsys):
    with answering(200, "3.1.0") as api:
        assert require_server() == f"3.1.0 at {api}"

    assert "is version 3.1.0, which is older" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (404, {}, NotFound, "is not Prefect's API"),
        (200, {"what": "something else"}, NotFound, "is not Prefect's API"),
        (403, {}, AccessDenied, "refuses this user"),
        (500, "database is locked", Unavailable, "HTTP 500: .*database is locked"),
    ],
)
def test_what_answers_wrongly_is_told(status, body, error, said):
    with answering(status, body), pytest.raises(error, match=said) as told:
        require_server()

    assert told.value.hint


@pytest.mark.parametrize(("status", "verdict"), [(200, "ok"), (403, "bad")])
def test_doctor_asks_the_server_that_a_person_has_chosen(monkeypatch, status, verdict):
    with answering(status, ours) as api:
        monkeypatch.setenv("PREFECT_API_URL", api)
        found = checkup._prefect()[-1]

    assert (found.part, found.verdict) == ("prefect server", verdict)
    assert api in found.found


def test_a_password_in_the_address_is_not_shown():
    api = f"http://admin:hunter2@127.0.0.1:{free_port()}/api"

    with (
        temporary_settings(updates={PREFECT_API_URL: api}),
        pytest.raises(Unavailable) as told,
    ):
        require_server()

    assert "hunter2" not in told.value.message


def test_an_error_of_something_else_stays_what_it_is():
    with pytest.raises(RuntimeError, match="no server"), explained():
        raise RuntimeError("no server")


def test_a_request_that_ctrl_c_broke_is_an_interrupt():
    def interrupted():
        try:
            raise KeyboardInterrupt
        finally:
            raise httpx.ReadError("half an answer")

    with pytest.raises(httpx.ReadError), explained():
        interrupted()


def test_an_error_tells_a_server_that_is_away_from_one_that_answers():
    api = f"http://127.0.0.1:{free_port()}/api"

    with (
        temporary_settings(updates={PREFECT_API_URL: api}),
        pytest.raises(Unavailable) as away,
    ):
        require_server()
    with answering(500, "ill"), pytest.raises(Unavailable) as ill:
        require_server()

    assert is_away(away.value)
    assert not is_away(ill.value)


def test_progress_that_cannot_be_shown_is_not_tried_again(monkeypatch):
    tried = []

    def away(percent: float, **_: object) -> None:
        tried.append(percent)
        raise httpx.ConnectError("away")

    monkeypatch.setattr(live_progress, "create_progress_artifact", away)
    monkeypatch.setattr(live_progress, "EVERY", 0.0)
    tell = live_progress.reporting("a transfer")

    with live_progress.live_progress("a transfer"):
        for done in (25, 50):
            tell(Progress(phase="read", done_bytes=done, total_bytes=100))

    assert tried == [25.0]


@pytest.mark.s3
@pytest.mark.long
def test_a_server_that_dies_in_a_migration_stops_none_of_its_steps(world, server):
    launch = world.start("launch", "tally", "--on", "laptop")
    _, said = launch.communicate(timeout=300)
    assert launch.returncode == 0, said
    tally = world.suspend_tally()

    move = world.start(*MOVE)
    world.wait_for("cutover", 300)
    os.killpg(server.pid, signal.SIGKILL)
    os.kill(tally, signal.SIGCONT)
    world.settle_on("server")
    settled = time.monotonic()
    _, said = move.communicate(timeout=600)

    # Fifteen where the machine is quiet; Prefect's client alone takes minutes.
    assert time.monotonic() - settled < 90
    assert move.returncode == 1, said
    error, hint = said.splitlines()[-2:]
    assert error.startswith(f"error: Prefect's server at {server.api} does not answer")
    assert hint == (
        "hint: the home of 'tally' is server, where it should be running; no migration "
        "is open"
    )
    assert "Traceback" not in said
