"""`restore` into a directory and its plan, on a real repository in a directory."""

import json
import os
from pathlib import Path

import pytest

from lobstertrap.cli.app import run
from lobstertrap.config import load
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Owners, Repository, Snapshot, take_snapshot
from tests.fixtures.repositories import contents
from tests.fixtures.trees import CHEAP, describe, make_everything

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
OWNERS = Owners(local=(os.getuid(), os.getgid()), canonical=(1000, 1000))


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "agents/ada").mkdir(parents=True)
    (tmp_path / "agents/ada/agent.yaml").write_text(SPEC)
    (tmp_path / "lobstertrap.toml").write_text(CONFIG.format(directory=tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOBSTERTRAP_CONFIG", raising=False)
    monkeypatch.setenv("REPOSITORY_KEY", "correct horse")
    make_everything(tmp_path / "state")
    store = load(tmp_path, os.environ).open_store()
    Repository.create(store, SecretValue("correct horse"), cost=CHEAP)
    return tmp_path


def snapshot(project: Path, at: float = 1000.0) -> Snapshot:
    return take_snapshot(
        load(project, os.environ).open_repository(create=True),
        agent="ada",
        roots={"state": project / "state"},
        owners=OWNERS,
        now=lambda: at,
    )


def test_a_snapshot_is_restored_into_a_directory(project, capsys):
    taken = snapshot(project)

    assert run(["restore", "ada", "--into", "back", "--json"]) == 0

    done = json.loads(capsys.readouterr().out)
    assert describe(project / "back/state") == describe(project / "state")
    assert (done["snapshot"], done["verified"]) == (taken.id, True)
    assert done["tree_digest"] == taken.tree_digest


def test_only_the_paths_that_are_named_are_restored(project, capsys):
    snapshot(project)
    (project / "back/state").mkdir(parents=True)
    (project / "back/state/mine").write_text("stays")
    wanted = ["state/a", "/state/third name", "state/sparse"]

    assert run(["restore", "ada", *wanted, "--into", "back", "--json"]) == 0

    done = json.loads(capsys.readouterr().out)
    found, all_of_it = describe(project / "back/state"), describe(project / "state")
    below = {name for name in all_of_it if name.startswith((b"/a/", b"/sparse"))}
    names = {b"", b"/a", b"/third name", b"/mine"} | below
    assert set(found) == names
    assert found[b"/third name"][6] == all_of_it[b"/third name"][6] == b"two names"
    assert all(found[n] == all_of_it[n] for n in below if n != b"/a/second name")
    assert done["files"] == len(names) - 5  # of the rest, directories


def test_a_path_that_the_snapshot_does_not_have_restores_nothing(project, capsys):
    snapshot(project)

    wanted = ["state/a", "state/nothing"]
    assert run(["restore", "ada", *wanted, "--into", "back"]) == 1

    assert "'state/nothing'" in capsys.readouterr().err
    assert not (project / "back").exists()


def test_a_dry_run_names_what_would_change_and_changes_nothing(project, capsys):
    snapshot(project)
    run(["restore", "ada", "--into", "back"])
    (project / "back/state/small.txt").write_text("another\n")
    (project / "back/state/exec.sh").unlink()
    before = contents(project / "back")
    capsys.readouterr()

    assert run(["restore", "ada", "--into", "back", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    dry = ["restore", "ada", "state/exec.sh", "--into", "back", "--dry-run", "--json"]
    assert run(dry) == 0
    plan = json.loads(capsys.readouterr().out)

    assert "+ state/exec.sh" in lines
    assert any(line.startswith("M state/small.txt  (content") for line in lines)
    assert [c["path"] for c in plan["changes"] if c["kind"] == "added"] == [
        "state/exec.sh"
    ]
    assert plan["bytes"] == len("#!/bin/sh\n")
    assert contents(project / "back") == before


def test_a_dry_run_onto_a_target_is_told_by_the_target(project, capsys):
    taken = snapshot(project)
    volume = project / "desk/ada/volumes/state"
    volume.mkdir(parents=True)
    (volume / "small.txt").write_text("another\n")
    (volume / "extra").write_text("goes")

    assert run(["restore", "ada", "--to", "desk", "--dry-run", "--json"]) == 0

    plan = json.loads(capsys.readouterr().out)
    kinds = {change["path"]: change["kind"] for change in plan["changes"]}
    assert (plan["snapshot"], plan["target"]) == (taken.id, "desk")
    assert kinds["state/extra"] == "removed"
    assert kinds["state/small.txt"] == "changed"
    assert kinds["state/exec.sh"] == "added"
    assert plan["added"] + plan["changed"] + plan["removed"] == len(kinds)
    assert sorted(path.name for path in volume.iterdir()) == ["extra", "small.txt"]


def test_a_dry_run_onto_a_target_without_volumes_adds_everything(project, capsys):
    taken = snapshot(project)

    assert run(["restore", "ada", "--to", "desk", "--dry-run", "--json"]) == 0

    plan = json.loads(capsys.readouterr().out)
    assert (plan["snapshot"], plan["target"]) == (taken.id, "desk")
    assert {change["kind"] for change in plan["changes"]} == {"added"}
    assert plan["added"] == len(describe(project / "state"))
    assert plan["bytes"] == taken.bytes
    assert not (project / "desk/ada").exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--to", "desk", "--into", "back"],
        ["--into", "back", "--takeover"],
        ["state/a", "--to", "desk"],
    ],
)
def test_what_makes_no_sense_is_wrong_usage(project, options):
    snapshot(project)

    assert run(["restore", "ada", *options]) == 2


def test_a_damaged_manifest_is_a_row_and_hides_no_other(project, capsys):
    first, second = snapshot(project), snapshot(project, 2000.0)
    (place,) = (project / "store/repository/snapshots").glob(f"*{second.id}")
    place.write_bytes(place.read_bytes()[:-1] + b"\0")

    assert run(["snapshots"]) == 0
    out, err = capsys.readouterr()
    assert run(["snapshots", "ada", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [
        [first.short_id, "ada"],
        [second.id[:8], "ada"],
    ]
    assert "unreadable: lobstertrap check" in out
    assert err.startswith("warning: ")
    assert [one["id"] for one in found["snapshots"]] == [first.id]
    assert [(one["id"], one["created_at"]) for one in found["unreadable"]] == [
        (second.id, 2000.0)
    ]
