"""The mover as a program: requests on standard input, JSON lines on standard output."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lobstertrap import job, mover
from lobstertrap.errors import (
    AccessDenied,
    InvalidInput,
    LobsterTrapError,
    NotFound,
    Unavailable,
)
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository
from lobstertrap.stores.directory import DirectoryStore
from tests.fixtures.trees import describe, make_everything

MOVER = [sys.executable, "-m", "lobstertrap.mover"]
KEY = "a-repository-key-nobody-knows"


@pytest.fixture
def request_for(tmp_path: Path):
    store = tmp_path / "store"
    repo = Repository.create(DirectoryStore(store), SecretValue(KEY))
    assert repo.id

    def make(command: str, root: Path, **more: Any) -> dict[str, Any]:
        return {
            "version": 1,
            "command": command,
            "agent": "ada",
            "volumes": {"state": str(root)},
            "local_owner": [os.getuid(), os.getgid()],
            "owner": [1000, 1000],
            "store": {"url": store.as_uri()},
            "key": KEY,
            "cache": False,
            "exclude": {},
            **more,
        }

    return make


def run(request: dict[str, Any]) -> tuple[dict[str, Any], list[job.Progress]]:
    """Run the mover as a target does."""
    progress: list[job.Progress] = []
    done = subprocess.run(
        MOVER,
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert KEY not in done.stdout + done.stderr
    assert done.stderr == ""
    try:
        return job.read_events(done.stdout.splitlines(), progress.append), progress
    except LobsterTrapError:
        assert done.returncode == 1
        raise


def test_a_snapshot_and_a_restore_through_the_mover(
    request_for: Any, tmp_path: Path
) -> None:
    make_everything(tmp_path / "in")

    taken, progress = run(
        request_for("snapshot", tmp_path / "in", consistency="live", tags={"a": "b"})
    )
    back, _ = run(
        request_for(
            "restore",
            tmp_path / "out",
            snapshot=taken["snapshot"],
            delete_extra=True,
        )
    )

    assert describe(tmp_path / "out") == describe(tmp_path / "in")
    assert back["tree_digest"] == taken["tree_digest"]
    assert back["verified"] is True
    assert progress[-1].phase == "commit"
    assert set(taken) == {
        "snapshot",
        "tree_digest",
        "status",
        "warnings",
        "files",
        "bytes",
        "new_bytes",
        "uploaded_bytes",
        "seconds",
    }
    assert set(back) == {
        "snapshot",
        "tree_digest",
        "verified",
        "files",
        "bytes",
        "files_written",
        "bytes_written",
        "fetched_bytes",
        "deleted",
        "warnings",
        "seconds",
    }


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 2}, InvalidInput),
        ({"command": "explode"}, InvalidInput),
        ({"volumes": {}}, InvalidInput),
        ({"volumes": {"../x": "/nowhere"}}, InvalidInput),
        ({"volumes": {"state": "/nowhere/at/all"}}, NotFound),
        ({"local_owner": [1]}, InvalidInput),
        ({"owner": ["a", "b"]}, InvalidInput),
        ({"store": {"url": "gopher://x"}}, InvalidInput),
        ({"store": None}, InvalidInput),
        ({"key": "another key"}, AccessDenied),
        ({"key": None}, InvalidInput),
        ({"exclude": {"state": "x"}}, InvalidInput),
        ({"exclude": {"state": ["!x"]}}, InvalidInput),
        ({"consistency": "maybe"}, InvalidInput),
        ({"tags": [1]}, InvalidInput),
    ],
)
def test_a_bad_request_is_one_error_line(
    request_for: Any, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    (tmp_path / "in").mkdir()

    with pytest.raises(error):
        run(request_for("snapshot", tmp_path / "in") | change)


@pytest.mark.parametrize("text", ["", "not json\n", "[1]\n", "{" * 5000 + "\n"])
def test_garbage_on_standard_input_is_one_error_line(text: str) -> None:
    done = subprocess.run(
        MOVER, input=text, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert done.stderr == ""
    with pytest.raises(InvalidInput):
        job.read_events(done.stdout.splitlines(), lambda _: None)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A volume that takes a while."""
    root = tmp_path / "big"
    root.mkdir()
    chance = random.Random(7)  # noqa: S311 - test data
    for number in range(400):
        (root / f"file{number}").write_bytes(chance.randbytes(20_000))
    for number in range(4):
        (root / f"large{number}").write_bytes(chance.randbytes(12 << 20))
    return root


def start(request: dict[str, Any]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        MOVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_with_one_error_line(
    request_for: Any, big: Path, number: int
) -> None:
    with start(request_for("snapshot", big)) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        asked = time.monotonic()
        process.send_signal(number)
        rest = process.stdout.readlines()
        status = process.wait(timeout=120)

    assert json.loads(first)["event"] == "progress"
    assert status == 1
    assert time.monotonic() - asked < 20
    with pytest.raises(Unavailable, match="stopped by SIG"):
        job.read_events(rest, lambda _: None)


def test_killed_at_any_moment_and_run_again_it_ends_well(
    request_for: Any, big: Path, tmp_path: Path
) -> None:
    chance = random.Random(11)  # noqa: S311 - moments to kill at
    for _ in range(5):
        with start(request_for("snapshot", big)) as process:
            time.sleep(chance.uniform(0.1, 0.9))
            process.kill()
    taken, _ = run(request_for("snapshot", big))
    out = tmp_path / "out"
    for _ in range(5):
        with start(request_for("restore", out, snapshot=taken["snapshot"])) as process:
            time.sleep(chance.uniform(0.2, 0.8))
            process.kill()

    run(request_for("restore", out, snapshot=taken["snapshot"]))

    assert describe(out) == describe(big)


def test_progress_comes_a_few_times_a_second(capfd: pytest.CaptureFixture[str]) -> None:
    output = mover.Output(1)
    for _ in range(1000):
        output.progress(job.Progress(phase="read"))
    output.progress(job.Progress(phase="commit"))

    assert len(capfd.readouterr().out.splitlines()) == 2


def test_a_bug_is_one_line_without_values(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> dict[str, Any]:
        raise RuntimeError("with a secret in it")

    handlers = {n: signal.getsignal(n) for n in (1, 2, 15)}
    monkeypatch.setattr(mover, "run", broken)
    monkeypatch.setattr(sys, "stdin", io.StringIO("{}\n"))
    try:
        status = mover.main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    printed = capfd.readouterr().out
    assert status == 1
    assert "secret" not in printed
    assert "RuntimeError" in printed


def test_a_new_store_gets_its_repository_with_the_first_snapshot(
    request_for: Any, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    elsewhere = {"store": {"url": (tmp_path / "new").as_uri()}}

    with pytest.raises(NotFound, match="no repository"):
        run(request_for("restore", tmp_path / "out", snapshot="latest") | elsewhere)
    run(request_for("snapshot", tmp_path / "in") | elsewhere)
    run(request_for("restore", tmp_path / "out", snapshot="latest") | elsewhere)

    assert (tmp_path / "out").is_dir()


def test_a_master_key_opens_the_repository_that_it_belongs_to(
    request_for: Any, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    repo = Repository.open(DirectoryStore(tmp_path / "store"), SecretValue(KEY))
    master = repo.keys.master.hex()

    taken, _ = run(request_for("snapshot", tmp_path / "in", master=master, key="none"))

    assert taken["status"] == "complete"
    with pytest.raises(AccessDenied, match="another repository"):
        run(request_for("snapshot", tmp_path / "in", master="00" * 32))
