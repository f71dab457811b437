"""What the store says of the agents, what the targets show, and where they differ."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lobstertrap.agent import AgentSpec
from lobstertrap.config import Config
from lobstertrap.errors import InvalidInput, LobsterTrapError
from lobstertrap.lease import AgentRecord, read_record
from lobstertrap.targets.base import AgentStatus

PATIENCE = 20.0
"""Seconds after which a target that says nothing counts as unreachable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Everything that could be found out; problems by the part that had them."""

    specs: Mapping[str, AgentSpec]
    records: Mapping[str, AgentRecord | None]
    shown: Mapping[str, Mapping[str, AgentStatus]]
    """By target that answered, by agent."""
    taken: Mapping[str, float]
    """When the agent's last snapshot was taken, in seconds since the epoch."""
    bad_agents: Mapping[str, str] = field(default_factory=dict)
    bad_targets: Mapping[str, str] = field(default_factory=dict)
    bad_store: str | None = None

    @property
    def complete(self) -> bool:
        """Say whether everything that was asked gave an answer."""
        return not (self.bad_agents or self.bad_targets or self.bad_store)


def survey(config: Config, agents: Sequence[str]) -> Survey:
    """Ask the store and every target about `agents`, all at the same time.

    Nothing that does not answer stops the rest: it is named in the result.
    """
    specs: dict[str, AgentSpec] = {}
    bad_agents: dict[str, str] = {}
    for name in agents:
        try:
            specs[name] = config.agent(name)
        except LobsterTrapError as error:
            bad_agents[name] = error.message
    questions: dict[str, Callable[[], Any]] = {
        name: _ask_target(config, name, tuple(specs.values()))
        for name in config.target_names
    }
    questions[""] = lambda: _ask_store(config, tuple(specs))  # no target has this name
    answers, failures = _ask_all(questions)
    store: _StoreAnswer = answers.pop("", _StoreAnswer())
    bad_agents |= store.bad_agents
    return Survey(
        specs={name: spec for name, spec in specs.items() if name not in bad_agents},
        records=store.records,
        taken=store.taken,
        shown=answers,
        bad_agents=bad_agents,
        bad_store=failures.pop("", store.problem),
        bad_targets=failures,
    )


def _ask_target(
    config: Config, name: str, specs: Sequence[AgentSpec]
) -> Callable[[], dict[str, AgentStatus]]:
    def ask() -> dict[str, AgentStatus]:
        target = config.target(name)
        return {spec.name: target.status(spec) for spec in specs}

    return ask


@dataclass(slots=True, kw_only=True)
class _StoreAnswer:
    records: dict[str, AgentRecord | None] = field(default_factory=dict)
    taken: dict[str, float] = field(default_factory=dict)
    bad_agents: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


def _ask_store(config: Config, agents: Sequence[str]) -> _StoreAnswer:
    store, answer = config.open_store(), _StoreAnswer()
    for name in agents:
        try:
            answer.records[name] = read_record(store, name)
        except InvalidInput as error:  # one unreadable record; the others still count
            answer.bad_agents[name] = error.message
    wanted = {r.snapshot for r in answer.records.values() if r and r.snapshot}
    if wanted:  # opening the repository costs a key derivation
        try:
            found = config.open_repository().snapshots()
        except LobsterTrapError as error:
            answer.problem = error.message
        else:
            answer.taken = {s.agent: s.created_at for s in found if s.id in wanted}
    return answer


def _ask_all(
    questions: Mapping[str, Callable[[], Any]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Ask in parallel; returns the answers and the failures, in the questions' order.

    The threads are daemons, so that one that hangs does not keep the program alive.
    """
    answers: dict[str, Any] = {}
    failures: dict[str, str] = {}

    def ask(name: str, question: Callable[[], Any]) -> None:
        try:
            answers[name] = question()
        except LobsterTrapError as error:
            failures[name] = error.message
        except Exception as error:
            failures[name] = f"unexpected {type(error).__name__}: {error}"

    threads = {
        name: threading.Thread(target=ask, args=(name, question), daemon=True)
        for name, question in questions.items()
    }
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for name, thread in threads.items():
        thread.join(max(deadline - time.monotonic(), 0))
        if thread.is_alive():
            failures.setdefault(name, f"no answer within {PATIENCE:.0f} s")
    known = [*questions]
    return (
        {n: answers[n] for n in known if n in answers and n not in failures},
        {n: failures[n] for n in known if n in failures},
    )
