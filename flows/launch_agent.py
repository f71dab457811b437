"""Flow: run an agent on a target."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow

from tasks.choices import only_agent
from tasks.launch_on import launch_on
from tasks.names import AgentName, TargetName
from tasks.step import hold, run_name


@flow(
    name="launch-agent",
    flow_run_name=run_name("launch {agent} on {on}"),
    persist_result=True,
    result_serializer="json",
)
def launch_agent(on: TargetName, agent: AgentName | None = None) -> dict[str, Any]:
    """Run an agent on a target and wait until it is healthy.

    Args:
        on: The target's name.
        agent: The agent's name; may be left out when there is only one.
    """
    agent = agent or only_agent()
    with hold(agent, "launch") as operation:
        status = launch_on(agent, operation, on)
    return {"agent": agent, "target": on, **asdict(status)}
