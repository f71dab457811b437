"""The commands that list and name snapshots, on a real repository in a directory."""

import json
import os
from pathlib import Path

import pytest

from lobstertrap.cli.app import run
from lobstertrap.config import load
from lobstertrap.repository import Owners, Snapshot, take_snapshot

CONFIG = """
[store]
url = "file://{directory}/store"
[repository]
key = {{ source = "env", id = "REPOSITORY_KEY" }}
[targets.desk]
kind = "host"
root = "desk"
"""
SPEC = "name: ada\nimage: x\nvolumes: [{name: state, path: /state}]\n"
ANYBODY = Owners(local=(0, 0), canonical=(1000, 1000))


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "agents/ada").mkdir(parents=True)
    (tmp_path / "agents/ada/agent.yaml").write_text(SPEC)
    (tmp_path / "lobstertrap.toml").write_text(CONFIG.format(directory=tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOBSTERTRAP_CONFIG", raising=False)
    monkeypatch.setenv("REPOSITORY_KEY", "correct horse")
    return tmp_path


def snapshot(project: Path, agent: str, at: float) -> Snapshot:
    volume = project / "volume"
    volume.mkdir(exist_ok=True)
    (volume / "file").write_text(f"{agent} at {at}")
    return take_snapshot(
        load(project, os.environ).open_repository(create=True),
        agent=agent,
        roots={"state": volume},
        owners=ANYBODY,
        exclude={},
        consistency="stopped",
        tags={"purpose": "asked for"},
        cache_dir=None,
        now=lambda: at,
        on_progress=lambda _: None,
    )


def test_snapshots_are_listed_oldest_first(project, capsys):
    first, second = snapshot(project, "ada", 1000.0), snapshot(project, "ada", 2000.0)

    assert run(["snapshots"]) == 0

    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["snapshot", "agent", "taken"]
    assert [line.split()[0] for line in lines] == [first.short_id, second.short_id]
    assert lines[0].endswith("stopped, asked for")


def test_snapshots_as_json_is_one_object_with_full_ids(project, capsys):
    taken = snapshot(project, "ada", 1000.0)

    assert run(["snapshots", "ada", "--json"]) == 0

    (one,) = json.loads(capsys.readouterr().out)["snapshots"]
    assert (one["id"], one["tree_digest"]) == (taken.id, taken.tree_digest)
    assert (one["created_at"], one["files"]) == (1000.0, 1)


def test_the_snapshots_of_an_agent_that_was_deleted_are_listed(project, capsys):
    snapshot(project, "gone", 1000.0)

    assert run(["snapshots", "gone"]) == 0
    assert "gone" in capsys.readouterr().out


def test_an_agent_without_snapshots_has_an_empty_list(project, capsys):
    snapshot(project, "gone", 1000.0)

    assert run(["snapshots", "ada", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["snapshots"] == []


def test_an_agent_that_nobody_knows_is_told(project, capsys):
    snapshot(project, "gone", 1000.0)

    assert run(["snapshots", "adda"]) == 1
    assert "did you mean 'ada'?" in capsys.readouterr().err


def test_without_a_repository_that_is_told(project, capsys):
    assert run(["snapshots"]) == 1
    assert "error: no repository at file://" in capsys.readouterr().err


def test_a_wrong_key_is_told_without_showing_it(project, capsys, monkeypatch):
    snapshot(project, "ada", 1000.0)
    monkeypatch.setenv("REPOSITORY_KEY", "wrong horse")

    assert run(["snapshots"]) == 1

    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert "horse" not in out + err


@pytest.mark.parametrize("wanted", ["ffffffff", "../.."])
def test_an_unknown_snapshot_is_told_before_prefect_is_started(project, capsys, wanted):
    snapshot(project, "ada", 1000.0)

    assert run(["restore", "ada", "--to", "desk", "--snapshot", wanted]) in (1, 2)
    assert capsys.readouterr().err.startswith("error: ")


def test_status_shows_the_age_of_the_last_snapshot(project, capsys):
    taken = snapshot(project, "ada", 1000.0)
    config = load(project, os.environ)
    record = {
        "version": 1,
        "agent": "ada",
        "epoch": 3,
        "target": "desk",
        "state": "stopped",
        "operation": None,
        "migration": None,
        "snapshot": taken.id,
    }
    config.open_store().put("agents/ada/record.json", json.dumps(record).encode())

    assert run(["status", "--json"]) == 0

    (row,) = json.loads(capsys.readouterr().out)["agents"]
    assert (row["snapshot"], row["snapshot_at"]) == (taken.id, 1000.0)


def test_status_without_the_key_still_shows_the_records(project, capsys, monkeypatch):
    test_status_shows_the_age_of_the_last_snapshot(project, capsys)
    monkeypatch.delenv("REPOSITORY_KEY")

    assert run(["status"]) == 1

    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith("ada    desk    absent")
    assert err.startswith("store: secret repository.key")
