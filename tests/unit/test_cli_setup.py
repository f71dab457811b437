"""From nothing to an agent that runs: `init`, `doctor`, and what shows it then."""

import json
import os
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lobstertrap import lifecycle, migration
from lobstertrap.cli import checkup
from lobstertrap.cli.app import run
from lobstertrap.config import Config, load
from lobstertrap.lease import read_record


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty directory and an empty home, without a Podman of this machine."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home/data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/cache"))
    monkeypatch.delenv("LOBSTERTRAP_CONFIG", raising=False)
    monkeypatch.setattr("lobstertrap.cli.scaffold.which", lambda _: None)
    directory = tmp_path / "project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def launched(project, capsys):
    """The example agent, running on the host target; ends with the test."""
    assert run(["init", "--yes"]) == 0
    with (project / "lobstertrap.toml").open("a") as file:
        file.write('\n[targets.other]\nkind = "host"\nroot = "~/other"\n')
    config = load(project, os.environ)
    with config.hold("hello", "launch") as handle:
        lifecycle.launch(handle, "desk")
    capsys.readouterr()
    yield config
    with config.hold("hello", "stop") as handle:
        lifecycle.prove_stopped(handle, "desk")


def test_init_makes_all_that_a_first_launch_needs(project, capsys):
    assert run(["init", "--yes"]) == 0

    config = load(project, os.environ)
    assert config.agent("hello").name == "hello"
    assert config.target_names == ("desk",)
    assert config.open_repository().snapshots() == []
    assert "Keep a copy" in capsys.readouterr().err


def test_the_key_is_the_owners_alone_and_no_two_are_the_same(project, tmp_path):
    assert run(["init", "--yes"]) == 0
    first = tmp_path / "home/.config/lobstertrap/repository.key"
    text = first.read_text()
    first.rename(tmp_path / "kept")
    assert run(["init", "elsewhere", "--yes", "--store", f"file://{tmp_path}/s"]) == 0

    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert len(text.strip()) == 44
    assert first.read_text() != text


def test_init_changes_nothing_that_is_there(project, capsys):
    assert run(["init", "--yes"]) == 0
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    capsys.readouterr()

    assert run(["init", "--yes"]) == 1

    after = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert after == before
    assert "is there already" in capsys.readouterr().err


def test_an_init_that_cannot_open_its_store_can_be_repeated(project, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")

    assert run(["init", "--store", f"file://{tmp_path}/file/store"]) != 0

    assert not (project / "lobstertrap.toml").exists()
    assert run(["init", "--store", f"file://{tmp_path}/store"]) == 0


def test_a_second_init_with_another_key_does_not_take_the_store(
    project, tmp_path, capsys
):
    assert run(["init", "--yes"]) == 0
    (tmp_path / "home/.config/lobstertrap/repository.key").write_text("another\n")
    capsys.readouterr()

    assert run(["init", "elsewhere", "--yes"]) != 0

    assert "does not open repository" in capsys.readouterr().err
    assert not (project / "elsewhere/lobstertrap.toml").exists()


def test_doctor_finds_nothing_bad_after_init(project, capsys):
    assert run(["init", "--yes"]) == 0
    capsys.readouterr()

    assert run(["doctor", "--json"]) == 0

    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {f["part"] for f in findings} >= {
        "lobstertrap",
        "configuration",
        "agent hello",
        "store",
        "clock",
        "repository",
        "target desk",
    }
    assert [f for f in findings if f["verdict"] == "bad"] == []


@pytest.mark.parametrize(
    ("break_it", "part"),
    [
        (lambda p: (p / "agents/hello/agent.yaml").write_text("name: 3"), "agent"),
        (lambda p: Path("~/.config/lobstertrap/repository.key").expanduser().unlink(),
         "repository"),
        (lambda p: Path("~/.local/share/lobstertrap/desk").expanduser()
         .write_text("no directory"), "target desk"),
        (lambda p: (p / "lobstertrap.toml").write_text("what"), "configuration"),
    ],
    ids=["spec", "key", "target", "configuration"],
)  # fmt: skip
def test_doctor_names_what_is_wrong_and_how_to_mend_it(project, capsys, break_it, part):
    assert run(["init", "--yes"]) == 0
    break_it(project)
    capsys.readouterr()

    assert run(["doctor", "--json"]) == 1

    findings = json.loads(capsys.readouterr().out)["findings"]
    (bad,) = [f for f in findings if f["verdict"] == "bad"]
    assert bad["part"].startswith(part)
    assert bad["found"]


def test_doctor_prints_a_line_for_each_part_without_colours(project, capsys):
    assert run(["init", "--yes"]) == 0
    capsys.readouterr()

    assert run(["doctor"]) == 0

    printed = capsys.readouterr().out
    assert "ok      repository: the key opens it, 0 snapshots" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(("seconds", "way"), [(3600, "ahead of"), (-3600, "behind")])
def test_doctor_sees_a_clock_that_is_wrong(project, monkeypatch, seconds, way):
    assert run(["init", "--yes"]) == 0
    now = checkup.time.time
    monkeypatch.setattr(checkup.time, "time", lambda: now() + seconds)

    found = checkup._clock(load(project, os.environ).open_store())

    assert (found.verdict, way in found.found) == ("warning", True)


def test_the_example_agent_answers_where_open_says(launched: Config, capsys):
    assert run(["open", "hello", "--print"]) == 0

    url = capsys.readouterr().out.strip()
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - our own
        assert answer.read() == b"hello, this is start number 1\n"


def test_open_names_the_ports_that_there_are(launched: Config, capsys):
    assert run(["open", "hello", "--port", "ssh", "--print"]) == 1

    assert "known: http" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan_and_changes_nothing(launched: Config, capsys):
    before = read_record(launched.open_store(), "hello")

    assert run(["migrate", "hello", "--to", "other", "--dry-run", "--json"]) == 0

    plan = json.loads(capsys.readouterr().out)
    assert (plan["source"], plan["destination"]) == ("desk", "other")
    names = [step["name"] for step in plan["steps"]]
    assert names[:3] == ["stage", "pre-copy", "stop"]
    assert read_record(launched.open_store(), "hello") == before


def test_a_dry_run_is_refused_where_the_migration_would_be(launched: Config, capsys):
    assert run(["migrate", "hello", "--to", "desk", "--dry-run"]) == 2

    assert "already lives on 'desk'" in capsys.readouterr().err


def test_the_history_shows_snapshots_in_their_order(launched: Config, capsys):
    for _ in range(2):
        with launched.hold("hello", "snapshot") as handle:
            lifecycle.take_snapshot(
                handle, "desk", consistency="live", purpose="asked for"
            )

    assert run(["history", "hello", "--json"]) == 0

    events = json.loads(capsys.readouterr().out)["events"]
    assert [event["where"] for event in events] == ["desk", "desk"]
    assert events[0]["at"] < events[1]["at"]


def test_the_history_shows_a_move_and_one_that_was_undone(launched: Config, capsys):
    with launched.hold("hello", "migrate") as handle:
        migration.begin(handle, migration.plan(handle, "other"))
        migration.quiesce(handle)
        migration.rollback(handle)
        migration.begin(handle, migration.plan(handle, "other"))
        migration.stage(handle)
        migration.quiesce(handle)
        migration.transfer(handle)
        migration.launch(handle)
        migration.commit(handle, "other")
        lifecycle.prove_stopped(handle, "other")

    assert run(["history", "hello", "--json"]) == 0

    events = json.loads(capsys.readouterr().out)["events"]
    moves = [e for e in events if not e["event"].startswith("snapshot")]
    assert [(e["event"], e["where"]) for e in moves] == [
        ("move undone", "desk -> other"),
        ("moved", "desk -> other"),
    ]
    assert "for a migration" in events[-2]["details"]


def test_a_status_that_is_watched_ends_with_ctrl_c(launched: Config):
    program = "import sys; from lobstertrap.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", program, "status", "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        lines = [watching.stdout.readline() for _ in range(4)]
        watching.send_signal(2)
        _, said = watching.communicate(timeout=60)

    assert sum(line.startswith("hello") for line in lines) == 2
    assert (watching.returncode, said) == (130, "")
