"""The commands that run a flow, from a shell, against a real Prefect server."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lobstertrap.config import load
from lobstertrap.lease import read_record

ROOT = Path(__file__).parents[2]
CONFIG = """
[store]
url = "file://{directory}/store"
[repository]
key = {{ source = "env", id = "REPOSITORY_KEY" }}
[targets.desk]
kind = "host"
root = "desk"
[targets.shelf]
kind = "host"
root = "shelf"
"""
SECRETS = {"REPOSITORY_KEY": "correct horse", "TALLY_TOKEN": "hunter2-hunter2"}

pytestmark = [pytest.mark.prefect, pytest.mark.slow]


class Shell:
    """Runs `lobstertrap` in a project, as a person would."""

    def __init__(self, directory: Path, environ: dict[str, str]) -> None:
        self.directory = directory
        self.environ = environ

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start one command."""
        code = "from lobstertrap.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Run one command; returns its code, stdout and stderr."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=240)
        for secret in SECRETS.values():
            assert secret not in out + err
        assert "\x1b" not in out + err
        return process.returncode, out, err

    def json(self, *arguments: str) -> dict:
        """Run one command that succeeds and return the one object that it prints."""
        code, out, err = self(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    def row(self) -> dict:
        """Return the row of tally's home."""
        return self.json("status", "tally")["agents"][0]


@pytest.fixture
def shell(tmp_path, prefect_environment):
    shutil.copytree(ROOT / "agents/tally", tmp_path / "agents/tally")
    (tmp_path / "lobstertrap.toml").write_text(CONFIG.format(directory=tmp_path))
    environ = {**prefect_environment, **SECRETS, "PYTHONPATH": str(ROOT)}
    environ.pop("LOBSTERTRAP_CONFIG", None)
    yield Shell(tmp_path, environ)
    config = load(tmp_path, os.environ)
    for name in config.target_names:
        config.target(name).stop(config.agent("tally"))


def test_an_agent_is_launched_snapshotted_moved_and_restored(shell):
    launched = shell.json("launch", "tally", "--on", "desk")
    assert (launched["phase"], launched["healthy"]) == ("running", True)

    taken = shell.json("snapshot", "tally")
    assert taken["status"] == "complete"
    listed = shell.json("snapshots", "tally")["snapshots"]
    assert listed[-1]["id"] == taken["snapshot"]

    moved = shell.json("migrate", "tally", "--to", "shelf")
    assert (moved["destination"], moved["digest_equal"]) == ("shelf", True)
    row = shell.row()
    assert (row["target"], row["state"], row["healthy"]) == ("shelf", "running", True)
    assert row["snapshot"] == moved["snapshot"]

    code, out, err = shell(
        "restore", "tally", "--to", "shelf", "--snapshot", taken["snapshot"][:8]
    )
    assert code == 0, err
    assert taken["snapshot"] in out
    assert err.startswith("snapshot tally on shelf: ")

    code, _out, err = shell("restore", "tally", "--to", "desk")
    assert code == 3
    assert err.splitlines()[-2].startswith("error: agent 'tally' lives on 'shelf'")


def test_ctrl_c_in_a_migration_leaves_the_agent_running_where_it_was(shell):
    shell.json("launch", "tally", "--on", "desk")
    config = load(shell.directory, {**os.environ, **SECRETS})
    store = config.open_store()

    with shell.start("migrate", "tally", "--to", "shelf") as process:
        deadline = time.monotonic() + 120
        while not (record := read_record(store, "tally")) or not record.migration:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=120)

    assert process.returncode == 130, err
    assert err.endswith("interrupted\nhint: run the same command again to go on\n")
    row = shell.row()
    assert (row["target"], row["state"], row["healthy"]) == ("desk", "running", True)
    assert not [note for note in row["notes"] if "migration" in note]
    assert shell.json("migrate", "tally", "--to", "shelf")["destination"] == "shelf"


def test_an_agent_is_frozen_for_its_snapshot_and_its_target_is_drained(shell):
    shell.json("launch", "tally", "--on", "desk")
    began = shell.row()["epoch"]

    taken = shell.json("snapshot", "tally", "--mode", "freeze")

    listed = shell.json("snapshots", "tally")["snapshots"]
    assert listed[-1]["id"] == taken["snapshot"]
    assert [one["tags"]["consistency"] for one in listed] == ["live", "frozen"]
    assert (shell.row()["healthy"], shell.row()["epoch"]) == (True, began)
    assert shell("snapshot", "tally", "--live", "--mode", "stop")[0] == 2

    drained = shell.json("drain", "desk", "--to", "shelf")

    assert (drained["moved"], drained["agents"][0]["agent"]) == (1, "tally")
    row = shell.row()
    assert (row["target"], row["state"], row["healthy"]) == ("shelf", "running", True)
