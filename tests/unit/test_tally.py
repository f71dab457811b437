"""Tally keeps what it acknowledged, through a stop, a kill and a full disk."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lobstertrap.agent import load_agent
from tests.fixtures.ports import free_port
from tests.fixtures.tally import AGENT, TOKEN, Answered, TallyClient, entries, rows


@contextmanager
def spawned(
    state: Path, environ: Mapping[str, str], *prefix: str
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*prefix, sys.executable, str(AGENT / "tally.py")],
        env={"TALLY_STATE": str(state), "PATH": os.environ["PATH"], **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def tally(
    state: Path, *prefix: str, epoch: int = 1
) -> Iterator[tuple[TallyClient, subprocess.Popen[str]]]:
    port = free_port()
    environ = {
        "TALLY_PORT": str(port),
        "TALLY_TOKEN": TOKEN,
        "LOBSTERTRAP_EPOCH": str(epoch),
    }
    with spawned(state, environ, *prefix) as process:
        yield TallyClient(address=f"127.0.0.1:{port}").wait(), process


def texts(state: Path) -> list[str]:
    return [entry["text"] for entry in entries(state)]


def stopped(process: subprocess.Popen[str]) -> int:
    process.terminate()
    return process.wait(120)


def test_it_answers_with_the_number_the_epoch_and_the_host(tmp_path: Path) -> None:
    with tally(tmp_path, epoch=7) as (agent, _process):
        answer = agent.post("/message", {"text": "hello there"})

    assert answer["sequence"] == 1
    assert answer["epoch"] == 7
    assert answer["host"] == socket.gethostname()
    assert answer["reply"] == "2 words so far"


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with tally(tmp_path, epoch=1) as (agent, process):
        agent.say("one")
        assert stopped(process) == 0
    with tally(tmp_path, epoch=2) as (agent, process):
        second = agent.say("two")
        state = agent.get("/state")

    assert second == 2
    assert state["epochs"] == [1, 2]
    assert state["rows"] == state["messages"] == 2


def test_a_stop_leaves_the_write_ahead_log_to_be_carried(tmp_path: Path) -> None:
    with tally(tmp_path) as (agent, process):
        agent.say("one")
        stopped(process)

    assert (tmp_path / "tally.sqlite-wal").stat().st_size > 0


def test_without_its_secret_it_says_so_and_ends_with_78(tmp_path: Path) -> None:
    with spawned(tmp_path, {}) as process:
        output, _ = process.communicate(timeout=120)

    assert process.returncode == 78
    assert "TALLY_TOKEN is not set" in output


def test_a_taken_port_is_one_clear_line_and_leaves_the_state_alone(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        environ = {"TALLY_TOKEN": TOKEN, "TALLY_PORT": port}
        with spawned(tmp_path, environ) as process:
            output, _ = process.communicate(timeout=120)

    assert process.returncode == 1
    assert output.startswith(f"tally: cannot start on 127.0.0.1:{port}")
    assert [*tmp_path.iterdir()] == []


def test_a_wrong_token_changes_nothing(tmp_path: Path) -> None:
    with tally(tmp_path) as (agent, _process):
        stranger = TallyClient(address=agent.address, token="guess")
        with pytest.raises(Answered) as caught:
            stranger.say("let me in")
        state = agent.get("/state")

    assert caught.value.status == 401
    assert state["messages"] == 0


@pytest.mark.parametrize("body", [{}, [], {"text": "\ud800"}])
def test_a_bad_message_is_refused_and_leaves_nothing(
    tmp_path: Path, body: object
) -> None:
    with tally(tmp_path) as (agent, _process):
        with pytest.raises(Answered) as caught:
            agent.post("/message", body)
        following = agent.say("a good one")

    assert caught.value.status == 400
    assert following == 1
    assert texts(tmp_path) == ["a good one"]


def test_a_stop_finishes_the_message_in_hand(tmp_path: Path) -> None:
    answers: list[Any] = []
    with tally(tmp_path) as (agent, process):
        body = {"text": "slow", "delay_ms": 1000}
        slow = threading.Thread(
            target=lambda: answers.append(agent.post("/message", body))
        )
        slow.start()
        time.sleep(0.4)
        code = stopped(process)
        slow.join(120)

    assert code == 0
    assert answers[0]["sequence"] == 1
    assert texts(tmp_path) == ["slow"]


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    with tally(tmp_path) as (agent, process):
        agent.post("/write", {"interval_ms": 1})
        acknowledged = [agent.say(f"mine {number}") for number in range(20)]
        process.send_signal(signal.SIGKILL)
        process.wait(120)
    with tally(tmp_path) as (agent, process):
        state = agent.get("/state")

    assert state["messages"] == state["rows"]
    for place, sequence in enumerate(acknowledged):
        assert texts(tmp_path)[sequence - 1] == f"mine {place}"


def test_a_torn_last_line_is_dropped_and_a_missing_row_is_made_up(
    tmp_path: Path,
) -> None:
    with tally(tmp_path) as (agent, process):
        agent.say("one")
        agent.say("two")
        stopped(process)
    with closing(sqlite3.connect(tmp_path / "tally.sqlite")) as database:
        database.execute("DELETE FROM messages WHERE sequence = 2")
        database.commit()
    with (tmp_path / "transcript.jsonl").open("a") as transcript:
        transcript.write('{"sequence": 3, "te')

    with tally(tmp_path) as (agent, process):
        third = agent.say("three")

    assert third == 3
    assert texts(tmp_path) == ["one", "two", "three"]
    assert rows(tmp_path) == [(1, "one"), (2, "two"), (3, "three")]


def test_a_database_from_another_state_is_noticed(tmp_path: Path) -> None:
    with tally(tmp_path) as (agent, process):
        agent.say("one")
        stopped(process)
    (tmp_path / "transcript.jsonl").write_bytes(b"")

    environ = {"TALLY_TOKEN": TOKEN, "TALLY_PORT": str(free_port())}
    with spawned(tmp_path, environ) as process:
        output, _ = process.communicate(timeout=120)

    assert process.returncode == 65
    assert "torn state: 1 messages in the database, 0 in the transcript" in output


def test_a_message_that_does_not_fit_on_the_disk_leaves_no_half(
    tmp_path: Path,
) -> None:
    limit = ("sh", "-c", "ulimit -f 400; trap '' XFSZ; exec \"$@\"", "sh")
    with tally(tmp_path, *limit) as (agent, _process):
        agent.say("small")
        with pytest.raises(Answered) as caught:
            agent.say("x" * 500_000)
        following = agent.say("small again")

    assert caught.value.status == 507
    assert following == 2
    assert texts(tmp_path) == ["small", "small again"]


def test_the_writer_writes_in_order_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with tally(tmp_path) as (agent, _process):
        agent.post("/write", {"interval_ms": 5})
        while agent.get("/state")["messages"] < 5:
            time.sleep(0.05)
        agent.post("/write", {"interval_ms": 0})
        before = agent.get("/state")["messages"]
        time.sleep(0.1)
        after = agent.get("/state")["messages"]

    assert before == after
    assert [number for number, _ in rows(tmp_path)] == [*range(1, after + 1)]


def test_it_grows_to_the_size_asked_for(tmp_path: Path) -> None:
    with tally(tmp_path) as (agent, _process):
        agent.post("/grow", {"megabytes": 3})
        answer = agent.post("/grow", {"megabytes": 10})

    assert answer == {"bytes": 10 * 2**20}
    assert sum(f.stat().st_size for f in (tmp_path / "archive").iterdir()) == 10 * 2**20


def test_its_workspace_has_what_a_careless_copy_loses(tmp_path: Path) -> None:
    with tally(tmp_path):
        workspace = tmp_path / "workspace"

        assert (workspace / "bin" / "greet.sh").stat().st_mode & 0o777 == 0o755
        assert (workspace / "links" / "relative").read_text() == "two names, one file\n"
        assert (workspace / "links" / "absolute").readlink().is_absolute()
        assert not (workspace / "links" / "dangling").exists()
        assert (workspace / "notes" / "one.txt").stat().st_nlink == 2
        assert [*(workspace / "notes" / "empty").iterdir()] == []
        assert (workspace / "notes" / "日本語" / "naïve café.txt").exists()


def test_its_spec_is_valid() -> None:
    spec = load_agent(AGENT / "agent.yaml")

    assert spec.name == "tally"
    assert str(spec.secrets["TALLY_TOKEN"]) == "env:default:TALLY_TOKEN"
