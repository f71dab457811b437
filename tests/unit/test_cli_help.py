"""Help and completion: what is shown before a command is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lobstertrap.cli import complete

LOBSTERTRAP = Path(sys.executable).with_name("lobstertrap")
CONFIG = """
[store]
url = "file:///nowhere/store"
[repository]
key = "${KEY}"
[targets.desk]
kind = "host"
root = "desk"
[targets.shelf]
kind = "host"
root = "shelf"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two agents, of which nothing was ever launched."""
    for name in ("ada", "tally"):
        (tmp_path / "agents" / name).mkdir(parents=True)
        (tmp_path / "agents" / name / "agent.yaml").touch()
    (tmp_path / "lobstertrap.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOBSTERTRAP_CONFIG", raising=False)
    return tmp_path


def lobstertrap(*arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [LOBSTERTRAP, *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def test_help_on_a_narrow_terminal_cuts_nothing_off():
    shown = lobstertrap("restore", "--help", COLUMNS="40")

    assert max(map(len, shown.splitlines())) <= 40
    assert "--snapshot ID" in shown
    assert "--takeover" in shown
    assert "…" not in shown


def test_help_in_a_pipe_is_plain_text():
    shown = lobstertrap("migrate", "--help")

    assert shown.isascii()
    assert "Example: lobstertrap migrate tally --to cluster --dry-run" in shown


def test_the_shell_offers_agents_and_targets(project):
    assert complete.agents("") == ["ada", "tally"]
    assert complete.agents("t") == ["tally"]
    assert complete.targets("s") == ["shelf"]


def test_the_shell_offers_nothing_where_no_project_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOBSTERTRAP_CONFIG", raising=False)

    assert complete.agents("") == complete.targets("") == []


def test_the_offer_reaches_the_shell(project):
    asked = {"_LOBSTERTRAP_COMPLETE": "complete_bash", "COMP_CWORD": "4"}

    offered = lobstertrap(COMP_WORDS="lobstertrap launch ada --on ", **asked)

    assert offered.split() == ["desk", "shelf"]
