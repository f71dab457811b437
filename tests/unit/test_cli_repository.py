"""The commands of the repository's upkeep, on a real repository in a directory."""

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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def snapshot(project: Path, at: float) -> Snapshot:
    volume = project / "volume"
    volume.mkdir(exist_ok=True)
    (volume / "file").write_text(f"at {at}")
    return take_snapshot(
        load(project, os.environ).open_repository(create=True),
        agent="ada",
        roots={"state": volume},
        owners=ANYBODY,
        now=lambda: at,
    )


def output(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def packs(project: Path) -> list[Path]:
    found = (project / "store/repository/packs").rglob("*")
    return sorted(
        (path for path in found if path.is_file()), key=lambda p: p.stat().st_size
    )


def test_check_says_good(project, capsys):
    snapshot(project, 1000.0)

    assert run(["check", "--read-data", "--json"]) == 0

    report = output(capsys)
    assert report["ok"]
    assert report["packs_read"] == report["packs"] == 2
    assert [s["ok"] for s in report["snapshots"]] == [True]


def test_check_names_lost_files_and_exits_with_1(project, capsys):
    taken = snapshot(project, 1000.0)
    packs(project)[0].unlink()  # the chunks: the pages are more

    assert run(["check"]) == 1

    told = capsys.readouterr().out
    assert "is missing" in told
    assert f"snapshot {taken.short_id} of ada:" in told
    assert "lost: state/file" in told


def test_repair_replaces_what_is_damaged(project, capsys):
    taken = snapshot(project, 1000.0)
    packs(project)[0].unlink()

    assert run(["repair", "--json"]) == 0

    (mended,) = output(capsys)["snapshots"]
    assert mended["verdict"]["id"] == taken.id
    assert run(["check", "--sample", "100"]) == 0
    assert run(["snapshots", "--json"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    (left,) = json.loads(told)["snapshots"]
    assert left["id"] == mended["replaced_by"]
    assert "'state/file' is lost" in left["warnings"]


def test_repair_tells_a_person(project, capsys):
    snapshot(project, 1000.0)
    packs(project)[0].unlink()

    assert run(["repair"]) == 0

    assert "  replaced by " in capsys.readouterr().out


def test_forget_shows_why_each_is_kept_and_does_nothing_in_a_dry_run(project, capsys):
    taken = [snapshot(project, at) for at in (1000.0, 2000.0, 100_000.0)]

    assert run(["forget", "ada", "--keep-daily", "2", "--dry-run"]) == 0

    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["snapshot", "taken"]
    assert [line.split()[0] for line in lines] == [s.short_id for s in taken]
    assert lines[0].endswith("would be forgotten")
    assert lines[1].endswith("daily 2")
    assert lines[2].endswith("newest, last complete, daily 1")
    assert len(load(project, os.environ).open_repository().snapshots()) == 3


def test_forget_forgets(project, capsys):
    taken = [snapshot(project, at) for at in (1000.0, 2000.0)]

    assert run(["forget", "ada", "--keep-last", "1", "--json"]) == 0

    told = output(capsys)
    assert [(s["id"], s["kept"]) for s in told["snapshots"]] == [
        (taken[0].id, False),
        (taken[1].id, True),
    ]
    (left,) = load(project, os.environ).open_repository().snapshots()
    assert left.id == taken[1].id


@pytest.mark.parametrize(
    "options", [[], ["--keep-within", "soon"], ["--keep-within", "0d"]]
)
def test_forget_without_a_rule_that_means_something_is_refused(
    project, options, capsys
):
    snapshot(project, 1000.0)

    assert run(["forget", "ada", *options]) == 2

    assert "hint: " in capsys.readouterr().err


def test_prune_reports_in_both_ways(project, capsys):
    snapshot(project, 1000.0)

    assert run(["prune", "--dry-run"]) == 0
    assert run(["prune", "--json"]) == 0

    *text, line = capsys.readouterr().out.splitlines()
    assert text[0].split() == ["dry", "run", "yes"]
    result = json.loads(line)
    assert (result["packs"], result["deleted_packs"]) == (2, 0)


def test_prune_refuses_a_grace_that_is_too_short(project):
    snapshot(project, 1000.0)

    assert run(["prune", "--grace", "10m"]) == 2


def test_copy_brings_all_to_another_directory(project, capsys):
    taken = snapshot(project, 1000.0)

    assert run(["copy", "--to", f"file://{project}/second", "--json"]) == 0

    assert output(capsys)["snapshots"] == 1
    text = (project / "lobstertrap.toml").read_text()
    (project / "lobstertrap.toml").write_text(text.replace("/store", "/second"))
    assert run(["check", "--read-data"]) == 0
    (found,) = load(project, os.environ).open_repository().snapshots()
    assert found.id == taken.id


def test_a_passphrase_is_changed_by_adding_and_removing(project, capsys, monkeypatch):
    snapshot(project, 1000.0)
    monkeypatch.setenv("NEW_KEY", "battery staple")

    assert run(["key", "add", "--label", "new", "--env", "NEW_KEY"]) == 0
    capsys.readouterr()
    assert run(["key", "list", "--json"]) == 0
    old, new = output(capsys)["keys"]
    assert (old["label"], new["label"]) == ("passphrase", "new")
    assert run(["key", "remove", old["id"]]) == 3  # the one in use
    monkeypatch.setenv("REPOSITORY_KEY", "battery staple")
    assert run(["key", "remove", old["id"]]) == 0

    assert run(["check"]) == 0
    monkeypatch.setenv("REPOSITORY_KEY", "correct horse")
    assert run(["check"]) == 1


def test_a_new_key_comes_from_a_file_that_only_its_owner_reads(
    project, tmp_path, capsys
):
    snapshot(project, 1000.0)
    file = tmp_path / "key"
    file.write_text("battery staple\n")
    file.chmod(0o644)
    assert run(["key", "add", "--label", "x", "--file", str(file)]) == 1
    file.chmod(0o600)

    assert run(["key", "add", "--label", "x", "--file", str(file)]) == 0

    told = capsys.readouterr()
    assert "battery staple" not in told.out + told.err


def test_a_key_is_not_asked_for_where_nobody_answers(project):
    snapshot(project, 1000.0)

    assert run(["key", "add", "--label", "x"]) == 2


@pytest.mark.parametrize(
    "command",
    [
        ["check"],
        ["repair"],
        ["forget", "ada", "--keep-last", "1"],
        ["prune"],
        ["copy", "--to", "file:///tmp/nowhere"],
        ["key", "list"],
    ],
)
def test_without_a_repository_every_command_says_so(project, command, capsys):
    assert run(command) == 1

    assert "no repository at" in capsys.readouterr().err
    assert not (project / "store").exists()
