"""Flow: take a snapshot of an agent where it lives, or of each of them."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from tasks.choose_mode import choose_mode
from tasks.find_agents import find_agents
from tasks.find_home import find_home
from tasks.names import AgentName
from tasks.outcomes import outcome_of
from tasks.pause_agent import pause_agent
from tasks.publish_round import publish_round
from tasks.publish_snapshot import publish_snapshot
from tasks.resume_agent import resume_agent
from tasks.snapshot_held import snapshot_held
from tasks.step import hold, run_name, watched
from tasks.take_snapshot import take_snapshot

Mode = Literal["stop", "freeze", "hook", "live"]


@flow(
    name="snapshot-agent",
    flow_run_name=run_name("snapshot {agent} ({mode})", agent="every agent"),
    persist_result=True,
    result_serializer="json",
)
def snapshot_agent(
    agent: AgentName | None = None,
    mode: Literal["stop", "freeze", "hook", "live"] | None = None,
) -> dict[str, Any]:
    """Take a snapshot of an agent's volumes, or of every agent's, one after the other.

    Args:
        agent: The agent's name. Without one, every agent that has a state and at which
            no other operation is at work; one that fails stops no other.
        mode: What the agent's spec says when it is left out. In the moment in which the
            last changes are read, `stop` stops the agent, `freeze` suspends it and
            `hook` runs the spec's commands before and after; `live` does nothing, and
            is not of one point in time.
    """
    return _snapshot_every(mode) if agent is None else _snapshot(agent, mode)


def _snapshot_every(mode: Mode | None) -> dict[str, Any]:
    with watched():
        states = {
            name: snapshot_agent(agent=name, mode=mode, return_state=True)
            for name in find_agents()
        }
        return publish_round([outcome_of(*item) for item in states.items()])


def _snapshot(agent: str, mode: Mode | None) -> dict[str, Any]:
    with hold(agent, "snapshot") as operation:
        home = find_home(agent, operation)
        running = resume_agent(agent, operation, home) == "running"
        if not running:
            taken = take_snapshot(agent, operation, home, "stopped", "asked for")
        else:
            chosen = choose_mode(agent, operation, mode)
            taken = _snapshot_running(agent, operation, home, chosen)
    with watched():
        return publish_snapshot(agent, home, taken)


def _snapshot_running(
    agent: str, operation: str, home: str, mode: Mode
) -> dict[str, Any]:
    if mode == "live":
        return take_snapshot(agent, operation, home, "live", "asked for")
    take_snapshot(agent, operation, home, "live", "pre-copy")  # shortens what follows
    if mode == "stop":
        return _stop_and_snapshot(agent, operation, home)
    return snapshot_held(agent, operation, home, mode)


def _stop_and_snapshot(agent: str, operation: str, home: str) -> dict[str, Any]:
    try:
        pause_agent(agent, operation, home)
        return take_snapshot(agent, operation, home, "stopped", "asked for")
    finally:
        resume_agent(agent, operation, home)
