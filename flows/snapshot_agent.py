"""Flow: take a snapshot of an agent where it lives."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from tasks.choices import only_agent
from tasks.choose_mode import choose_mode
from tasks.find_home import find_home
from tasks.pause_agent import pause_agent
from tasks.resume_agent import resume_agent
from tasks.snapshot_held import snapshot_held
from tasks.step import hold, run_name
from tasks.take_snapshot import take_snapshot


@flow(
    name="snapshot-agent",
    flow_run_name=run_name("snapshot {agent} ({mode})"),
    persist_result=True,
    result_serializer="json",
)
def snapshot_agent(
    agent: str | None = None,
    mode: Literal["stop", "freeze", "hook", "live"] | None = None,
) -> dict[str, Any]:
    """Take a snapshot of an agent's volumes.

    Args:
        agent: The agent's name; may be left out when there is only one.
        mode: What the agent's spec says when it is left out. In the moment in which the
            last changes are read, `stop` stops the agent, `freeze` suspends it and
            `hook` runs the spec's commands before and after; `live` does nothing, and
            is not of one point in time.
    """
    agent = agent or only_agent()
    with hold(agent, "snapshot") as operation:
        home = find_home(agent, operation)
        running = resume_agent(agent, operation, home) == "running"
        if not running:
            taken = take_snapshot(agent, operation, home, "stopped", "asked for")
        else:
            chosen = choose_mode(agent, operation, mode)
            taken = _snapshot_running(agent, operation, home, chosen)
    return {"agent": agent, "target": home, **taken}


def _snapshot_running(
    agent: str,
    operation: str,
    home: str,
    mode: Literal["stop", "freeze", "hook", "live"],
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
