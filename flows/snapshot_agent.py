"""Flow: take a snapshot of an agent where it lives."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from tasks.choices import only_agent
from tasks.find_home import find_home
from tasks.pause_agent import pause_agent
from tasks.resume_agent import resume_agent
from tasks.step import hold, run_name
from tasks.take_snapshot import take_snapshot


@flow(
    name="snapshot-agent",
    flow_run_name=run_name("snapshot {agent} ({mode})"),
    persist_result=True,
    result_serializer="json",
)
def snapshot_agent(
    agent: str | None = None, mode: Literal["stop", "live"] = "stop"
) -> dict[str, Any]:
    """Take a snapshot of an agent's volumes.

    Args:
        agent: The agent's name; may be left out when there is only one.
        mode: `stop` stops the agent for the moment in which the last changes are read,
            and is consistent; `live` never stops it, and is not of one point in time.
    """
    agent = agent or only_agent()
    with hold(agent, "snapshot") as operation:
        home = find_home(agent, operation)
        running = resume_agent(agent, operation, home) == "running"
        if not running:
            taken = take_snapshot(agent, operation, home, "stopped", "asked for")
        elif mode == "live":
            taken = take_snapshot(agent, operation, home, "live", "asked for")
        else:
            taken = _stop_and_snapshot(agent, operation, home)
    return {"agent": agent, "target": home, **taken}


def _stop_and_snapshot(agent: str, operation: str, home: str) -> dict[str, Any]:
    take_snapshot(agent, operation, home, "live", "pre-copy")  # shortens the stop
    try:
        pause_agent(agent, operation, home)
        return take_snapshot(agent, operation, home, "stopped", "asked for")
    finally:
        resume_agent(agent, operation, home)
