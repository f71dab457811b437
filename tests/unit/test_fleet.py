"""Fleets: who belongs to one, how many move at once, and what becomes of each."""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import pytest

from lobstertrap.fleet import (
    Commands,
    Outcome,
    left_out,
    members,
    move_all,
    read_outcome,
)
from lobstertrap.lease import AgentRecord, Journal


def record(target: str, towards: str | None = None) -> AgentRecord:
    journal = towards and Journal(
        id="1",
        source=target,
        destination=towards,
        step="staging",
        was_running=True,
        started=0,
    )
    return AgentRecord(agent="any", target=target, migration=journal or None)


RECORDS = {
    "ada": record("laptop"),
    "bea": record("server"),
    "cleo": None,
    "dora": record("laptop", "server"),
    "eve": record("laptop", "cloud"),
}


def test_who_lives_there_or_is_on_the_way_belongs_to_the_fleet() -> None:
    assert members(RECORDS, "laptop", "server") == ["ada", "dora"]
    assert left_out(RECORDS, "laptop", "server") == ["eve"]


def test_without_a_source_whoever_lives_elsewhere_belongs_to_it() -> None:
    assert members(RECORDS, None, "server") == ["ada", "dora"]
    assert left_out(RECORDS, None, "server") == ["eve"]


def test_a_few_move_at_the_same_time_and_no_more() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def migrate(agent: str) -> Outcome:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return Outcome(agent=agent, moved=agent != "b")

    outcomes = move_all([*"abcdef"], migrate, parallel=2)

    assert [outcome.agent for outcome in outcomes] == [*"abcdef"]
    assert [outcome.moved for outcome in outcomes].count(False) == 1
    assert most == [2]


def test_a_cancel_ends_what_runs_and_begins_nothing_more() -> None:
    ended, begun = threading.Event(), []

    def migrate(agent: str) -> Outcome:
        begun.append(agent)
        if agent == "a":
            raise KeyboardInterrupt
        assert ended.wait(120)
        return Outcome(agent=agent, moved=False)

    with pytest.raises(KeyboardInterrupt):
        move_all([*"abcdef"], migrate, parallel=2, end=ended.set)

    assert ended.is_set()
    assert len(begun) < 6


def test_an_outcome_is_read_from_what_the_command_says() -> None:
    moved = read_outcome("ada", 0, json.dumps({"downtime_seconds": 1.5}), "", 9)
    error = {"message": "it is ill", "hint": "see a doctor"}
    failed = read_outcome("ada", 1, json.dumps({"error": error}), "much", 9)
    killed = read_outcome("ada", -9, "", "line\nlast words", 9)

    assert str(moved) == "ada: moved, down 1.5 s"
    assert str(failed) == "ada: failed: it is ill"
    assert failed.hint == "see a doctor"
    assert str(killed) == "ada: failed: last words"


def test_a_command_that_cannot_run_is_an_outcome(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    environment.pop("LOBSTERTRAP_CONFIG", None)

    outcome = Commands("server", environment).migrate("ada")

    assert not outcome.moved
    assert "lobstertrap.toml" in outcome.message


def test_nothing_begins_after_the_end(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/at/all")
    commands = Commands("server", {})
    commands.end()

    assert commands.migrate("ada") == Outcome(
        agent="ada", moved=False, message="not begun"
    )
