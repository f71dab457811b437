"""Finding and ending a `serve`, with a process that behaves like one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lobstertrap.cli import flow_server, served
from lobstertrap.cli.served import LOCK, Note

SERVE = """
import fcntl, json, os, signal, sys
from pathlib import Path
from lobstertrap.cli.served import noted
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
directory = Path(sys.argv[1])
lock = (directory / "server.lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(f"{os.getpid()}\\n")
lock.flush()
with noted(directory, "http://127.0.0.1:1", Path("/a/lobstertrap.toml")):
    print("ready", flush=True)
    signal.sigwait([signal.SIGTERM])
"""


@pytest.fixture
def running(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_serve_that_runs_is_found_and_ended(running, tmp_path):
    found = served.find(tmp_path)

    ended = served.stop(tmp_path)

    assert found == ended
    assert (found.pid, found.api) == (running.pid, "http://127.0.0.1:1/api")
    assert running.wait(120) == 0
    assert served.find(tmp_path) is None
    assert served.stop(tmp_path) is None


def test_a_killed_serve_leaves_a_note_that_nobody_believes(running, tmp_path):
    running.kill()
    running.wait()

    assert (tmp_path / "serve.json").exists()
    assert served.find(tmp_path) is None


def test_a_directory_that_another_command_keeps_has_no_serve(running, tmp_path):
    (tmp_path / "serve.json").unlink()

    assert served.holder(tmp_path) == running.pid
    assert served.find(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"pid": 1, "x": 2}'])
def test_a_note_that_cannot_be_read_is_none(running, tmp_path, text):
    (tmp_path / "serve.json").write_text(text)

    assert served.find(tmp_path) is None


def test_the_note_of_a_process_whose_pid_is_used_again_is_not_believed(
    running, tmp_path
):
    note = Note(pid=os.getpid(), url="http://127.0.0.1:1", config="", started=0.0)
    body = {"pid": note.pid, "url": note.url, "config": "", "started": time.time()}
    (tmp_path / "serve.json").write_text(json.dumps(body))

    assert served.find(tmp_path) is None
    assert (tmp_path / LOCK).read_text().split() == [str(running.pid)]


@pytest.mark.parametrize(
    ("files", "environ", "configured"),
    [
        ({}, {}, False),
        ({}, {"PREFECT_API_URL": "http://x/api"}, True),
        ({}, {"PREFECT_PROFILE": "cloud"}, True),
        ({"profiles.toml": '[profiles.p]\nPREFECT_API_URL = "http://x"'}, {}, True),
        ({"profiles.toml": '[profiles.p]\n# PREFECT_API_URL = "http://x"'}, {}, False),
        ({"profiles.toml": 'active = "ephemeral"\n[profiles.ephemeral]'}, {}, False),
    ],
)
def test_a_server_that_a_person_has_chosen_is_theirs(
    tmp_path, monkeypatch, files, environ, configured
):
    for name, text in files.items():
        Path(tmp_path, name).write_text(text)
    monkeypatch.chdir(tmp_path)

    said = flow_server.is_configured({"PREFECT_HOME": str(tmp_path), **environ})

    assert said is configured
