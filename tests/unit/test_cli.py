"""The command line against a real host target and a store in a directory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lobstertrap import lifecycle
from lobstertrap.cli.app import explain, run
from lobstertrap.config import load
from lobstertrap.redaction import SecretValue, redactor

ROOT = Path(__file__).parents[2]
TOKEN = "hunter2-hunter2"
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
ENVIRONMENT = {"REPOSITORY_KEY": "correct horse", "TALLY_TOKEN": TOKEN}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Give a project with tally in it, as the working directory."""
    shutil.copytree(ROOT / "agents/tally", tmp_path / "agents/tally")
    text = CONFIG.format(directory=tmp_path)
    (tmp_path / "lobstertrap.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOBSTERTRAP_CONFIG", raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def tally(project):
    """Give a project whose tally runs on `desk`."""
    config = load(project, os.environ)
    try:
        with config.hold("tally", "launch", repository=False) as handle:
            lifecycle.launch(handle, "desk")
        yield project
    finally:
        config.target("desk").stop(config.agent("tally"))


def command(*arguments: str) -> list[str]:
    code = "from lobstertrap.cli import main; main()"
    return [sys.executable, "-c", code, *arguments]


def lobstertrap(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
        **options,
    )


# What is wrong is told in a line, a hint and a code.


@pytest.mark.parametrize(
    "line",
    [
        ["launch", "taly", "--on", "desk"],
        ["status", "taly"],
        ["logs", "taly"],
        ["stop", "taly"],
        ["remove", "taly"],
        ["snapshot", "taly"],
        ["restore", "taly", "--to", "desk"],
        ["migrate", "taly", "--to", "desk"],
    ],
)
def test_an_unknown_agent_is_told_with_a_suggestion(project, capsys, line):
    code = run(line)

    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err == (
        f"error: no agent 'taly' in {project}/agents; known: tally\n"
        "hint: did you mean 'tally'?\n"
    )


@pytest.mark.parametrize(
    "line",
    [
        ["launch", "tally", "--on", "dsk"],
        ["stop", "tally", "--on", "dsk"],
        ["remove", "tally", "--on", "dsk"],
        ["logs", "tally", "--on", "dsk"],
        ["restore", "tally", "--to", "dsk"],
        ["migrate", "tally", "--to", "dsk"],
    ],
)
def test_an_unknown_target_is_told_with_a_suggestion(project, capsys, line):
    assert run(line) == 1

    assert "hint: did you mean 'desk'?\n" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["TALLY_TOKEN", "REPOSITORY_KEY"])
@pytest.mark.parametrize(
    "line",
    [
        ["launch", "tally", "--on", "desk"],
        ["snapshot", "tally"],
        ["restore", "tally", "--to", "desk"],
        ["migrate", "tally", "--to", "desk"],
    ],
)
def test_a_missing_secret_is_told_before_prefect_is_started(
    project, capsys, monkeypatch, line, missing
):
    monkeypatch.delenv(missing)

    assert run(line) == 1

    assert f"the variable {missing} is not set" in capsys.readouterr().err
    assert not (project / "store").exists()


def test_without_a_configuration_the_next_step_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOBSTERTRAP_CONFIG", raising=False)

    assert run(["status"]) == 1
    assert "hint: copy lobstertrap.example.toml" in capsys.readouterr().err


def test_every_mistake_of_the_configuration_is_a_line_and_the_code_is_2(
    project, capsys
):
    (project / "lobstertrap.toml").write_text("[store]\nurl = 'x'\n")

    assert run(["status"]) == 2
    err = capsys.readouterr().err
    assert err.count("lobstertrap.toml: ") == 3
    assert err.startswith("error: ")


@pytest.mark.parametrize(
    "line",
    [["launch", "tally"], ["migrate", "tally"], ["fly"], ["logs", "tally", "-n", "x"]],
)
def test_wrong_usage_is_code_2(project, capsys, line):
    assert run(line) == 2

    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert "--help` shows what it takes" in hint


@pytest.mark.parametrize(
    ("line", "error", "meant"),
    [
        (["migrat"], "no such command 'migrat'", "'migrate'"),
        (["migrate", "tally", "--too", "x"], "no such option: --too", "'--to'"),
    ],
)
def test_a_slip_in_the_command_line_is_told_with_what_was_meant(
    project, capsys, line, error, meant
):
    assert run(line) == 2

    told, hint = capsys.readouterr().err.splitlines()
    assert told == f"error: {error}"
    assert hint.startswith(f"hint: did you mean {meant}? ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["migrate", "--json"], "missing argument 'AGENT'"),
        (["migrate", "tally", "--too", "x", "--json"], "no such option: --too"),
    ],
)
def test_wrong_usage_is_an_object_too_when_json_was_asked_for(
    project, capsys, line, message
):
    assert run(line) == 2

    out, err = capsys.readouterr()
    told = json.loads(out)["error"]
    assert (told["kind"], told["exit_code"]) == ("InvalidInput", 2)
    assert told["message"] == message
    assert err.startswith(f"error: {told['message']}\n")


def test_without_a_command_the_help_is_shown(capsys):
    assert run([]) == 2

    shown = "".join(capsys.readouterr())
    assert "Usage: lobstertrap" in shown
    assert "error: " not in shown


def test_volumes_are_removed_only_with_yes_when_nobody_can_be_asked(project):
    done = lobstertrap("remove", "tally", "--volumes")

    assert done.returncode == 2
    assert "hint: add --yes" in done.stderr


def test_an_agent_that_was_never_launched_cannot_be_stopped(project, capsys):
    assert run(["stop", "tally"]) == 1
    assert "hint: lobstertrap launch tally --on TARGET" in capsys.readouterr().err


def test_an_error_is_an_object_on_stdout_too_when_json_was_asked_for(project, capsys):
    assert run(["status", "taly", "--json"]) == 1

    out, err = capsys.readouterr()
    told = json.loads(out)["error"]
    assert (told["kind"], told["exit_code"]) == ("NotFound", 1)
    assert err.startswith(f"error: {told['message']}\n")


def test_a_name_cannot_send_escape_codes_to_the_terminal(project, capsys):
    assert run(["status", "a\x1b[2Jb"]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_debug_shows_the_traceback_without_secrets(project, capsys):
    assert run(["--debug", "status", "taly"]) == 1

    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("hint: did you mean 'tally'?\n")
    assert TOKEN not in err


def test_an_unexpected_error_is_told_without_secrets(capsys):
    secret = SecretValue("swordfish-swordfish")
    redactor.add(secret)
    try:
        raise ValueError(f"got {secret.reveal()}")
    except ValueError as error:
        code = explain(error, debug=True, as_json=True)

    out, err = capsys.readouterr()
    assert code == 1
    assert "error: unexpected ValueError: got **********\n" in err
    assert json.loads(out)["error"]["message"].endswith("got **********")
    assert "swordfish" not in out + err


def test_a_store_that_cannot_be_used_is_told_and_the_rest_is_shown(project, capsys):
    text = (project / "lobstertrap.toml").read_text()
    keys = ('access_key = "${A}"', 'secret_key = "${B}"', "[repository]")
    text = text.replace("[repository]", "\n".join(keys))
    (project / "lobstertrap.toml").write_text(text)

    code = run(["status"])

    out, err = capsys.readouterr()
    assert code == 1
    assert out.splitlines()[1].startswith("tally  -       unknown")
    assert err.startswith("store: secret access_key (env:default:A)")


def test_a_record_that_cannot_be_read_is_a_row_and_no_abort(project, capsys):
    shutil.copytree(project / "agents/tally", project / "agents/ada")
    spec = project / "agents/ada/agent.yaml"
    spec.write_text(spec.read_text().replace("name: tally", "name: ada"))
    load(project, os.environ).open_store().put("agents/ada/record.json", b"garbage")

    code = run(["status"])

    ada, tally_row = capsys.readouterr().out.splitlines()[1:]
    assert code == 1
    assert ada.startswith("ada")
    assert "the agent record cannot be read" in ada
    assert tally_row.startswith("tally  -       never launched")


def test_ctrl_c_is_130_and_says_so(project):
    code = (
        "import sys; sys.argv[1:] = ['status']; import lobstertrap.survey as s\n"
        "def ask(*_): raise KeyboardInterrupt\n"
        "s.survey = ask\n"
        "from lobstertrap.cli import main; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )

    assert done.returncode == 130
    assert done.stderr.startswith("interrupted\nhint: ")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("ValueError('x')", 130, "interrupted\n"),
        ("errors.Refused('still runs')", 3, "error: still runs\n"),
    ],
)
def test_what_breaks_in_the_wake_of_ctrl_c(project, raised, code, said):
    """Prefect breaks in odd ways; a rollback that failed has to be told."""
    program = (
        "import sys; sys.argv[1:] = ['status']; import lobstertrap.survey as s\n"
        "from lobstertrap import errors\n"
        "def ask(*_):\n"
        "    try: raise KeyboardInterrupt\n"
        f"    finally: raise {raised}\n"
        "s.survey = ask\n"
        "from lobstertrap.cli import main; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert done.returncode == code
    assert done.stderr.startswith(said)


# What does not need Prefect does not import it.


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, time; began = time.perf_counter()\n"
        "from lobstertrap.cli.app import run; run(['--help'])\n"
        "print(sorted({'prefect', 'botocore', 'podman', 'pydantic', 'zstandard'}"
        " & set(sys.modules)), time.perf_counter() - began)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert "Exit codes: 0 done, 1 failed, 2 wrong usage" in done.stdout
    modules, seconds = done.stdout.splitlines()[-1].rsplit(maxsplit=1)
    assert modules == "[]"
    assert float(seconds) < 20  # 0.2 on a quiet machine; the imports are the real guard


@pytest.mark.parametrize(
    "line",
    [
        ["status"],
        ["status", "tally", "--json"],
        ["logs", "tally"],
        ["schema"],
        ["snapshots"],
        ["stop", "tally"],
        ["remove", "tally"],
    ],
)
def test_commands_that_read_or_stop_do_not_import_prefect(project, line):
    code = (
        "import sys; from lobstertrap.cli.app import run; "
        f"run({line!r}); print('prefect' in sys.modules, file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stderr.splitlines()[-1] == "False"


# What they say.


@pytest.mark.parametrize("of", ["agent", "config"])
def test_schema_prints_one_json_object(capsys, of):
    assert run(["schema", of]) == 0

    schema = json.loads(capsys.readouterr().out)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("columns", ["40", "200"])
@pytest.mark.parametrize("line", [["--help"], ["migrate", "--help"], ["status"]])
def test_without_a_terminal_there_are_no_escape_codes(project, columns, line):
    done = lobstertrap(*line, env=os.environ | {"COLUMNS": columns})

    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr


def test_status_shows_an_agent_that_was_never_launched(project, capsys):
    assert run(["status"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        *("agent", "target", "state", "health", "epoch", "snapshot", "address", "notes")
    ]
    assert lines[1].startswith("tally  -       never launched")


def test_status_shows_a_running_agent(tally, capsys):
    assert run(["status", "--json"]) == 0

    (row,) = json.loads(capsys.readouterr().out)["agents"]
    assert (row["target"], row["state"], row["healthy"]) == ("desk", "running", True)
    assert row["epoch"] == 1
    assert row["addresses"].keys() == {"http"}
    assert row["notes"] == []


def test_status_tells_of_an_agent_that_died(tally, capsys):
    config = load(tally, os.environ)
    config.target("desk").stop(config.agent("tally"))

    assert run(["status", "--json"]) == 0

    (row,) = json.loads(capsys.readouterr().out)["agents"]
    assert (row["state"], row["should_be"]) == ("stopped", "running")
    assert row["notes"][0] == "should be running"


def test_a_target_that_does_not_answer_is_a_row_and_no_abort(tally, capsys):
    silent = '[targets.box]\nkind = "podman"\nurl = "unix:///nowhere/podman.sock"\n'
    with (tally / "lobstertrap.toml").open("a") as file:
        file.write(silent)

    code = run(["status"])

    tally_row, box_row = capsys.readouterr().out.splitlines()[1:]
    assert code == 1
    assert tally_row.startswith("tally  desk    running")
    assert box_row.startswith("-      box     unreachable")


def test_logs_shows_the_last_lines(tally, capsys):
    assert run(["logs", "tally", "-n", "1"]) == 0

    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("tally: ready on port")


def test_logs_follows_until_ctrl_c(tally):
    with subprocess.Popen(
        command("logs", "tally", "-f"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        first = following.stdout.readline()
        time.sleep(0.2)
        following.send_signal(signal.SIGINT)
        rest, err = following.communicate(timeout=60)

    assert first.startswith("tally: ready")
    assert (rest, err, following.returncode) == ("", "", 130)


def test_a_reader_that_goes_away_is_no_traceback(tally):
    done = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *command("schema")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "Traceback" not in done.stderr


def test_stop_stops_and_may_be_repeated(tally, capsys):
    for _ in range(2):
        assert run(["stop", "tally", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said == {"agent": "tally", "target": "desk", "state": "stopped"}

    run(["status", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["agents"]
    assert (row["state"], row["should_be"], row["notes"]) == ("stopped", "stopped", [])


def test_stop_needs_no_repository_key(tally, monkeypatch):
    monkeypatch.delenv("REPOSITORY_KEY")

    assert run(["stop", "tally"]) == 0


def test_a_stray_copy_is_stopped_without_touching_the_record(tally, capsys):
    assert run(["stop", "tally", "--on", "shelf"]) == 0

    run(["status", "--json"])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["agents"][0]
    assert (row["state"], row["should_be"]) == ("running", "running")


def test_a_running_agent_is_not_removed(tally, capsys):
    assert run(["remove", "tally"]) == 3
    assert "it runs" in capsys.readouterr().err


def test_the_only_copy_of_the_state_is_saved_before_it_is_removed(tally, capsys):
    run(["stop", "tally", "--json"])
    capsys.readouterr()

    assert run(["remove", "tally", "--volumes", "--yes", "--json"]) == 0
    saved = json.loads(capsys.readouterr().out)["snapshot"]
    assert not [*(tally / "desk").rglob("transcript.jsonl")]
    run(["snapshots", "--json"])
    assert saved in capsys.readouterr().out


def test_remove_keeps_the_volumes(tally, capsys):
    run(["stop", "tally"])

    assert run(["remove", "tally"]) == 0
    run(["status", "--json"])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["agents"][0]
    assert row["state"] == "absent"
    assert [*(tally / "desk").rglob("state")]


def test_no_secret_is_ever_printed(tally, capsys):
    for line in (["status"], ["logs", "tally"], ["stop", "tally"], ["snapshots"]):
        run(["--debug", *line])

    out, err = capsys.readouterr()
    assert TOKEN not in out + err
    assert "correct horse" not in out + err


def test_an_agent_whose_bucket_was_lost_is_reclaimed(tally, capsys):
    run(["stop", "tally"])
    (record,) = (tally / "store").rglob("record.json")
    record.unlink()
    capsys.readouterr()

    assert run(["remove", "tally", "--on", "desk", "--volumes", "--yes"]) == 3
    assert "lobstertrap reclaim tally --on TARGET" in capsys.readouterr().err
    assert run(["reclaim", "tally", "--on", "desk"]) == 2  # nobody can be asked
    assert run(["reclaim", "tally", "--on", "desk", "--yes", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"agent": "tally", "target": "desk", "state": "stopped", "epoch": 1}
    assert run(["remove", "tally"]) == 0
