"""The commands that look into snapshots, on a real repository in a directory."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from lobstertrap.cli.app import run
from lobstertrap.config import load
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Owners, Repository, Snapshot, take_snapshot
from lobstertrap.repository.attributes import OWNERS_LEFT
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
ME = (os.getuid(), os.getgid())
OWNERS = Owners(local=ME, canonical=(1000, 1000))


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


def test_ls_shows_a_directory_with_names_that_play_no_tricks(project, capsys):
    snapshot(project)

    assert run(["ls", "latest", "/state/"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list((project / "state").iterdir()))
    assert any(line.endswith("state/new\\nline") for line in lines)
    assert any(line.endswith("state/link -> small.txt") for line in lines)
    (setuid,) = [line for line in lines if line.endswith("state/setuid")]
    assert setuid.split()[:3] == ["-rwsr-xr-x", "1000:1000", "1"]


def test_ls_as_json_is_lossless(project, capsys):
    snapshot(project)

    assert run(["ls", "ada:latest", "state", "-r", "--json"]) == 0

    entries = json.loads(capsys.readouterr().out)["entries"]
    names = {os.fsencode(entry["path"]) for entry in entries}
    assert {b"state/not \xff utf-8", b"state/a/b/c/deep"} < names
    (one,) = [e for e in entries if e["path"] == "state/third name"]
    assert (one["kind"], one["target"]) == ("hard link", "state/a/second name")


def test_cat_writes_the_bytes_and_nothing_else(project, capfdbinary):
    snapshot(project)

    assert run(["cat", "latest", "state/sparse"]) == 0

    assert capfdbinary.readouterr().out == (project / "state/sparse").read_bytes()


def test_what_is_not_there_is_an_error(project, capsys):
    snapshot(project)

    assert run(["cat", "latest", "state/nothing"]) == 1
    assert run(["ls", "latest", "nothing"]) == 1
    assert run(["cat", "latest", "state"]) == 2
    assert run(["export", "latest", "--volume", "x"]) == 1
    assert run(["diff", "ada"]) == 1
    assert run(["ls", "bob:latest"]) == 1

    said = capsys.readouterr().err
    assert "has no 'state/nothing'" in said
    assert "agent 'ada' has 1 snapshots" in said


def test_find_shows_each_version_once(project, capsys):
    first = snapshot(project, 1000.0)
    second = snapshot(project, 2000.0)
    (project / "state/small.txt").write_text("changed")
    third = snapshot(project, 3000.0)

    assert run(["find", "small.*", "--agent", "ada", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["versions"]
    assert run(["find", "state/sm*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert run(["find", "small.*", "--snapshot", third.id, "--agent", "ada"]) == 0

    assert [v["snapshots"] for v in found] == [[first.id, second.id], [third.id]]
    assert [v["size"] for v in found] == [6, 7]
    assert lines[1].endswith(f"2: {first.short_id} .. {second.short_id}")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_diff_of_an_agent_is_that_of_its_last_two_snapshots(project, capsys):
    snapshot(project, 1000.0)
    first = snapshot(project, 2000.0)
    (project / "state/new\x1b[2Jfile").write_text("x")
    (project / "state/small.txt").write_text("changed")
    second = snapshot(project, 3000.0)

    assert run(["diff", "ada"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert run(["diff", first.id, second.id[:8], "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]

    assert "+ state/new\\x1b[2Jfile" in lines
    assert "M state/small.txt  (content, mtime)" in lines
    assert {c["kind"] for c in changes} == {"added", "changed"}


def test_diff_compares_with_a_directory(project, capsys):
    snapshot(project)

    assert run(["diff", "latest", "./"]) == 0
    same = capsys.readouterr().out
    (project / "state/secret").unlink()
    assert run(["diff", "latest", str(project)]) == 0

    assert same == ""
    assert "- state/secret" in capsys.readouterr().out.splitlines()


def test_a_volume_goes_out_as_a_tar_and_comes_back_by_import(
    project, capfdbinary, monkeypatch
):
    taken = snapshot(project)
    assert run(["export", "latest", "--volume", "state"]) == 0
    data = capfdbinary.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    monkeypatch.setenv("TMPDIR", str(project / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (project / "tmp").mkdir()

    assert run(["import", "ada", "--volume", "state", "--json"]) == 0

    told = json.loads(capfdbinary.readouterr().out)
    assert told["tree_digest"] == taken.tree_digest
    assert told["warnings"] == ([] if os.geteuid() == 0 else [OWNERS_LEFT])
    assert list((project / "tmp").iterdir()) == []


def test_an_import_leaves_out_what_the_spec_excludes(project, capfdbinary, monkeypatch):
    snapshot(project)
    assert run(["export", "latest", "--volume", "state"]) == 0
    data = capfdbinary.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    spec = SPEC.replace("path: /state", "path: /state, exclude: [/small.txt]")
    (project / "agents/ada/agent.yaml").write_text(spec)

    assert run(["import", "ada", "--volume", "state", "--json"]) == 0

    told = json.loads(capfdbinary.readouterr().out)
    assert run(["ls", told["snapshot"], "state"]) == 0
    names = capfdbinary.readouterr().out.split()
    assert b"state/link" in names
    assert b"state/small.txt" not in names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "ada", "--volume", "other"], "agent 'ada' has no volume 'other'"),
        (["import", "bob", "--volume", "state"], "no agent 'bob'"),
        (["import", "ada", "--volume", "state"], "not a whole tar archive"),
    ],
)
def test_an_import_that_cannot_be_leaves_nothing(
    project, capsys, monkeypatch, arguments, said
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x" * 2000)))
    monkeypatch.setenv("TMPDIR", str(project / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (project / "tmp").mkdir()

    assert run(arguments) in (1, 2)

    assert said in capsys.readouterr().err
    assert list((project / "tmp").iterdir()) == []
    assert not list(project.glob("store/repository/snapshots/*"))


def test_a_reader_that_goes_away_ends_it_quietly(project):
    snapshot(project)
    program = "import sys; from lobstertrap.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "export", "latest"]

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read()
        code = process.wait(timeout=60)

    assert (code, said) == (141, b"")


def test_the_exported_tar_is_one_that_python_reads(project, capfdbinary):
    snapshot(project)

    assert run(["export", "latest"]) == 0

    data = io.BytesIO(capfdbinary.readouterr().out)
    with tarfile.open(fileobj=data, errors="surrogateescape") as tar:
        names = {os.fsencode(name) for name in tar.getnames()}
    below = {b"state" + path for path in describe(project / "state")}
    assert names == below
