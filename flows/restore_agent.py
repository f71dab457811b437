"""Flow: put an agent's volumes back to a snapshot."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from tasks.choices import only_agent
from tasks.names import AgentName, TargetName
from tasks.prepare_restore import prepare_restore
from tasks.restore_volumes import restore_volumes
from tasks.resume_agent import resume_agent
from tasks.step import hold, run_name
from tasks.take_over import take_over


@flow(
    name="restore-agent",
    flow_run_name=run_name("restore {agent} on {to} ({snapshot})"),
    persist_result=True,
    result_serializer="json",
)
def restore_agent(
    to: TargetName,
    agent: AgentName | None = None,
    snapshot: Annotated[str, Field(min_length=4)] = "latest",
    takeover: bool = False,
) -> dict[str, Any]:
    """Make an agent's volumes on a target equal to a snapshot.

    What the volumes hold now is snapshotted first, so nothing is lost; an agent that
    ran runs again afterwards. A restore that was killed is continued by the next one.

    Args:
        to: The target's name: where the agent lives, or any for one that lives nowhere.
        agent: The agent's name; may be left out when there is only one.
        snapshot: A snapshot's id (4 characters are enough), or `latest`.
        takeover: The agent's home is gone for good: run it here, from the snapshot.
            What it did after the snapshot is lost.
    """
    agent = agent or only_agent()
    with hold(agent, "restore") as operation:
        prepare = take_over if takeover else prepare_restore
        found = prepare(agent, operation, to, snapshot)
        restored = restore_volumes(agent, operation, to, found)
        phase = resume_agent(agent, operation, to)
    return {"agent": agent, "target": to, "phase": phase, **restored}
